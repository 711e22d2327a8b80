"""What the command line counts: networks by name, saved networks, and reports that an earlier count wrote."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from chainfx.bitops import CostReport
from chainfx.compiler import count
from chainfx.deploy.model import CompressedModel, load
from chainfx.errors import InputError
from chainfx.models import resolve_model

if TYPE_CHECKING:
    from chainfx.bitops.crosscheck import CrossCheck
    from chainfx.bitops.diff import CostDiff
    from chainfx.ir.channels import ChannelAnalysis

__all__ = ["channels_of", "channels_to_dict", "cross_checked", "difference_of", "parse_rates", "report_of"]

Sizes = tuple[int, ...] | None
_MANIFEST = "manifest.json"


def report_of(name: str, sizes: Sizes, convention: str | None) -> CostReport:
    """The cost of what ``name`` stands for: a network (see :func:`network_of`), or a report in a ``.json`` file.

    ``sizes``: the input's shape, batch first; ``None`` where the name brings its own. ``convention``: ``None`` for
    ``mac_bw_ba``, or the one that a saved report is under.
    """
    if name.endswith(".json") and Path(name).name != _MANIFEST:
        report = _saved_report(name, sizes)
        return report if convention is None else report.reprice(convention)
    network, inputs = network_of(name, sizes)
    return count(network, inputs, convention=convention or "mac_bw_ba")


def difference_of(before: CostReport, after: CostReport, rates: dict[str, float] | None) -> "CostDiff":
    """What changes from one report to the other; exit rates go to ``after``, and to ``before`` if it has exits."""
    if rates is not None:
        after = after.reprice(exit_rates=rates)
        before = before.reprice(exit_rates=rates) if before.exits or before.conditions else before
    return before.diff(after)


def cross_checked(name: str, sizes: Sizes) -> "CrossCheck":
    """The MACs of a network by chainfx and by other tools, with the reason for every difference."""
    from chainfx.bitops.crosscheck import cross_check

    network, inputs = network_of(name, sizes)
    return cross_check(network.graph_module if isinstance(network, CompressedModel) else network, inputs)


def channels_of(name: str, sizes: Sizes) -> "ChannelAnalysis":
    """The channel groups of a network."""
    from chainfx.ir.capture import capture
    from chainfx.ir.channels import analyse_channels

    network, inputs = network_of(name, sizes)
    graph_module = network.graph_module if isinstance(network, CompressedModel) else capture(network, inputs)
    return analyse_channels(graph_module, inputs)


def channels_to_dict(analysis: "ChannelAnalysis") -> dict[str, Any]:
    """The groups and the channels that must stay, as plain JSON values."""
    groups = [
        {
            "name": group.name,
            "size": group.size,
            "sources": [{"node": source.node, "path": source.path, "dim": source.dim} for source in group.sources],
            "members": [{"path": m.path, "dim": m.dim, "channels": len(m.positions)} for m in group.members],
        }
        for group in analysis.groups
    ]
    frozen = [{"node": f.node, "path": f.path, "channels": f.channels, "reason": f.reason} for f in analysis.frozen]
    return {"groups": groups, "frozen": frozen}


def network_of(name: str, sizes: Sizes) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network ``name`` stands for, in eval mode, and inputs of these sizes.

    A folder that ``CompressedModel.save`` wrote (or its ``manifest.json``) is loaded, and brings inputs of its own; all
    else is a name for :func:`~chainfx.models.resolve_model`. Raises :class:`InputError` when there is no such network,
    and when nothing says the input's shape.
    """
    folder = Path(name).parent if Path(name).name == _MANIFEST else Path(name)
    if (folder / _MANIFEST).is_file():
        saved = load(folder)
        first, *rest = saved.example_inputs
        return saved, (first if sizes is None else torch.zeros(sizes, dtype=first.dtype), *rest)
    if "/" in name:
        what = "holds no saved network" if Path(name).exists() else "does not exist"
        raise InputError(f"{name!r} {what}; give the folder that CompressedModel.save wrote, or the name of a network.")
    network = resolve_model(name).eval()
    if sizes is None:
        raise InputError(f"--input is missing: {name!r} does not say the shape of its input; give e.g. 1,3,224,224.")
    return network, (torch.zeros(sizes),)


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


def _saved_report(name: str, sizes: Sizes) -> CostReport:
    try:
        report = CostReport.from_dict(json.loads(Path(name).read_text()))
    except OSError as error:
        raise InputError(f"report {name!r} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{name!r} is not a report; give a file that chainfx count --json wrote.") from error
    if sizes is not None and report.inputs and sizes[1:] != report.inputs[0][1:]:
        shapes = ["x".join(map(str, shape)) for shape in (report.inputs[0], sizes)]
        raise InputError(f"report {name!r} is for an input of {shapes[0]}, not {shapes[1]}; count both with one shape.")
    return report
