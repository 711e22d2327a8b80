"""What the command line counts: networks by name, saved networks, and reports that an earlier count wrote."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from chainfx.bitops import CostDiff, CostReport, CrossCheck, cross_check
from chainfx.compiler import count
from chainfx.deploy import CompressedModel, load
from chainfx.errors import InputError, why_no_file
from chainfx.ir.capture import capture
from chainfx.ir.channels import ChannelAnalysis, analyse_channels
from chainfx.ir.graph import needs_data
from chainfx.models import resolve_model

__all__ = [
    "channels_of",
    "cross_checked",
    "difference_of",
    "graph_of",
    "inputs_of",
    "parse_inputs",
    "parse_rates",
    "report_of",
]

Inputs = tuple[Tensor, ...] | None
_DTYPES = {
    "float": torch.float32,
    "float64": torch.float64,
    "half": torch.float16,
    "int": torch.int64,
    "bool": torch.bool,
}
_MANIFEST = "manifest.json"


def report_of(name: str, inputs: Inputs, convention: str | None) -> CostReport:
    """The cost of what ``name`` stands for: a network (see :func:`network_of`), or a report in a ``.json`` file.

    ``inputs``: batch first; ``None`` where the name brings its own. ``convention``: ``None`` for ``mac_bw_ba``, or the
    one that a saved report is under. A network that chainfx or torchvision has under that name is built on the meta
    device, without memory for its weights, unless it reads them while it is built.
    """
    if name.endswith(".json") and Path(name).name != _MANIFEST:
        report = _saved_report(name, inputs)
        return report if convention is None else report.reprice(convention)
    network, given = network_of(name, inputs, on_meta=True)
    return count(network, given, convention=convention or "mac_bw_ba")


def difference_of(before: CostReport, after: CostReport, rates: dict[str, float] | None) -> CostDiff:
    """What changes from one report to the other; exit rates go to ``after``, and to ``before`` if it has exits."""
    if rates is not None:
        after = after.reprice(exit_rates=rates)
        before = before.reprice(exit_rates=rates) if before.exits or before.conditions else before
    return before.diff(after)


def cross_checked(name: str, inputs: Inputs) -> CrossCheck:
    """The MACs of a network by chainfx and by other tools, with the reason for every difference."""
    network, given = network_of(name, inputs)
    if isinstance(network, CompressedModel):
        return cross_check(network.graph_module, network.signature.to_graph(given))
    return cross_check(network, given)


def channels_of(name: str, inputs: Inputs) -> ChannelAnalysis:
    """The channel groups of a network."""
    return analyse_channels(*graph_of(name, inputs))


def graph_of(name: str, inputs: Inputs) -> tuple[GraphModule, tuple[Tensor, ...]]:
    """The graph of a network, and the inputs to look at it with; see :func:`network_of`."""
    network, given = network_of(name, inputs)
    if isinstance(network, CompressedModel):
        return network.graph_module, network.signature.to_graph(given)
    return capture(network, given), given


def network_of(name: str, inputs: Inputs, *, on_meta: bool = False) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network ``name`` stands for, in eval mode, and its inputs: these, or those it brings.

    A folder that ``CompressedModel.save`` wrote (or its ``manifest.json``) is loaded, and brings inputs of its own, the
    first of which may be given in other shapes; all else is a name for :func:`~chainfx.models.resolve_model`.
    ``on_meta``: build a listed one without data, if it can be. Raises :class:`InputError` when there is no such
    network, and when nothing says the input's shape.
    """
    folder = Path(name).parent if Path(name).name == _MANIFEST else Path(name)
    if (folder / _MANIFEST).is_file():
        saved = load(folder)
        own, given = saved.example_inputs, inputs or ()
        if len(given) > len(own):
            raise InputError(
                f"--input is given {len(given)} times, but {name!r} takes {len(own)}; leave the others out."
            )
        return saved, (*(x.to(y.dtype) for x, y in zip(given, own, strict=False)), *own[len(given) :])
    if "/" in name:
        raise _no_network(name)
    try:
        network = _built(name, on_meta)
    except InputError as error:
        raise _no_network(name) if Path(name).exists() else error from error
    if inputs is None:
        raise InputError(f"--input is missing: {name!r} does not say the shape of its input; give e.g. 1,3,224,224.")
    return network.eval(), inputs


def _no_network(name: str) -> InputError:
    """The error for a path at which no network is."""
    what = "holds no saved network" if Path(name).exists() else "does not exist"
    return InputError(f"{name!r} {what}; give the folder that CompressedModel.save wrote, or the name of a network.")


def _built(name: str, on_meta: bool) -> nn.Module:
    if on_meta and ":" not in name:  # somebody's factory may load weights
        try:
            with torch.device("meta"):
                return resolve_model(name)
        except RuntimeError as error:  # it reads its own initial values
            if not needs_data(error):
                raise
    return resolve_model(name)


def parse_inputs(texts: Sequence[str]) -> Inputs:
    """Zeros of the shapes and dtypes in ``["1,3,224,224", "1,16:int"]``; ``None`` of none."""
    return tuple(map(_zeros, texts)) or None


def inputs_of(report: CostReport) -> Inputs:
    """Zeros of the shapes and dtypes that a report is for."""
    given = zip(report.inputs, report.dtypes, strict=True)
    return tuple(torch.zeros(shape, dtype=getattr(torch, dtype), device="cpu") for shape, dtype in given) or None


def _zeros(text: str) -> Tensor:
    sizes, _, dtype = text.partition(":")
    parts = sizes.split(",")
    if len(parts) < 2 or not all(part.strip().isdecimal() and int(part) for part in parts):
        raise InputError(f"--input {text!r} is not a shape; give at least two positive numbers, e.g. 1,3,224,224.")
    if dtype and dtype not in _DTYPES:
        raise InputError(f"--input {text!r}: there is no dtype {dtype!r}; use {', '.join(_DTYPES)}.")
    return torch.zeros([int(part) for part in parts], dtype=_DTYPES[dtype or "float"], device="cpu")


def parse_rates(text: str) -> dict[str, float]:
    """The shares in ``exit1=0.3,exit2=0.2``."""
    rates: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.partition("=")
        try:
            rates[name.strip()] = float(share)
        except ValueError as error:
            raise InputError(
                f"--exit-rates {text!r}: {part.strip()!r} is not a name and a number; write exit1=0.3,exit2=0.2."
            ) from error
    return rates


def _saved_report(name: str, inputs: Inputs) -> CostReport:
    try:
        report = CostReport.from_dict(json.loads(Path(name).read_text()))
    except OSError as error:
        raise InputError(
            f"report {name!r} cannot be read: {why_no_file(error)}; give a file that chainfx count --json wrote."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{name!r} is not a report; give a file that chainfx count --json wrote.") from error
    if inputs and report.inputs and inputs[0].shape[1:] != report.inputs[0][1:]:
        shapes = ["x".join(map(str, shape)) for shape in (report.inputs[0], inputs[0].shape)]
        raise InputError(f"report {name!r} is for an input of {shapes[0]}, not {shapes[1]}; count both with one shape.")
    return report
