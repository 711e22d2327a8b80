"""The main entry: capture, plan, run, and a compressed module out."""

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import Tensor, nn
from torch.fx import GraphModule

from chainfx.bitops import CostReport
from chainfx.bitops import count as count_graph
from chainfx.deploy import CompressedModel, EngineChoice
from chainfx.errors import CaptureError, InputError
from chainfx.ir.capture import Signature, capture, capture_to_read, capture_with_report, export_to_read, signature_of
from chainfx.ir.graph import has_inference_tensors, ordinary, recording
from chainfx.passes import Pass, Trainer
from chainfx.progress import TerminalListener
from chainfx.scheduler import ChainReport, Plan, Stage, StageStore, open_stage, plan, run

__all__ = ["compile", "count"]

Inputs = Tensor | tuple[Tensor, ...] | list[Tensor] | Mapping[str, Tensor]

_M = TypeVar("_M", bound=nn.Module)
_OF_TRAINERS = ("fingerprint", "tune", "evaluate", "calibration", "validation")


def compile(
    model: nn.Module,
    passes: Sequence[Pass] | Plan,
    *,
    example_inputs: Inputs,
    trainer: Trainer | None = None,
    calibration: Sequence[Inputs] | None = None,
    workdir: str | Path | None = None,
    order: Literal["auto", "given"] = "auto",
    seed: int = 0,
    on_stage: Callable[[Stage], None] | None = None,
    start: Stage | str | Path | None = None,
    engine: EngineChoice = "auto",
) -> CompressedModel:
    """Compress a trained network by a chain of passes, in the order the scheduler finds.

    Does the same inside ``torch.no_grad()`` and ``torch.inference_mode()``, and the result can be used outside of them.

    Parameters:
        model: the trained network; it is not changed.
        passes: the passes with their options, in any order, or a :class:`Plan`.
        example_inputs: one batch of inputs as the network takes them, in the order of its ``forward`` or by name, batch
            first; shapes and dtypes count.
        trainer: tunes after each pass and measures accuracy, e.g. :class:`chainfx.training.Trainer`. Without one only
            passes that need no training run.
        calibration: batches of inputs from the training data, for quantization; the trainer's by default.
        workdir: a folder that keeps every finished stage; a second call with the same arguments resumes after them, in
            the same process or another; :class:`~chainfx.scheduler.StageKey` has what must be the same. A stage that
            cannot be read is computed again, with a :class:`~chainfx.errors.StageWarning`.
        order: ``"auto"``, or ``"given"`` to run the passes as written, with the plan's findings in the report.
        seed: determines everything random.
        on_stage: called with each finished :class:`~chainfx.scheduler.Stage`, the original network first.
        start: a finished stage of this model, or its folder in some ``workdir``, whatever machine, torch and chainfx
            made it; the passes go on from it. ``model`` stays the original that they are compared with and learn from.
        engine: what the result runs on: ``"int8"``, ``"float"``, or ``"auto"`` for integers where this machine can; see
            :class:`CompressedModel`.

    Raises:
        ChainfxError: with one sentence that says what to do. Stages finished before a failure of any kind (memory that
            ran out, an exception of ``on_stage``, Ctrl-C) are in ``workdir``, and in the exception's ``partial``
            attribute as a :class:`CompressedModel`.

    Example:
        >>> import torch, chainfx
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)).eval()
        >>> x = torch.randn(2, 8)
        >>> small = chainfx.compile(net, [chainfx.passes.PruneChannels(0.5)], example_inputs=x)
        >>> small(x).shape, small.report.records[-1].after.macs
        (torch.Size([2, 4]), 192)
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}, not a torch.nn.Module; give the network itself.")
    given = _checked(example_inputs, "example_inputs")
    signature, inputs = signature_of(model, given)
    batches = None if calibration is None else [_batch(signature, item) for item in calibration]
    if batches is not None and not batches:
        raise InputError("calibration is empty; give at least one batch of inputs, or leave it out.")
    if not isinstance(passes, Plan | list | tuple) or not (passes.passes if isinstance(passes, Plan) else passes):
        raise InputError(f"passes is {passes!r}; give a list with at least one pass, or a Plan.")
    if trainer is not None:
        _check_trainer(trainer)
    chain = passes if isinstance(passes, Plan) else plan(list(passes), order=order)
    first = _stage(start)
    with recording():
        inputs = tuple(map(ordinary, inputs))
        given = {name: ordinary(x) for name, x in given.items()} if isinstance(given, Mapping) else inputs
        graph_module, how = capture_with_report(_own_copy(model) if has_inference_tensors(model) else model, given)
        captured = _own_copy(graph_module)
        listener = TerminalListener()
        finished: list[Stage] = []
        try:
            stages = run(
                captured,
                chain,
                example_inputs=inputs,
                trainer=trainer,
                calibration=batches,
                store=StageStore(Path(workdir)) if workdir is not None else None,
                seed=seed,
                listener=listener,
                start=first,
            )
            for stage in stages:
                finished = [*finished, stage]
                if on_stage:
                    on_stage(stage)
        except (Exception, KeyboardInterrupt) as error:
            if finished:
                _attach(error, finished, chain, inputs, how.signature)
            raise
        finally:
            listener.close()
        return _result(finished, chain, inputs, how.signature, engine)


def count(
    model: nn.Module,
    example_inputs: Inputs,
    convention: str = "mac_bw_ba",
    exit_rates: Mapping[str, float] | None = None,
    encodings: Sequence[str] = ("dense", "nominal"),
) -> CostReport:
    """The cost of one sample: MACs, bit operations under a named convention, storage.

    ``model`` is any module (captured first; exported if it has no train form, as with ``torch.cond``), a graph in train
    or deploy form, or a :class:`CompressedModel`, whose measured exit rates are used unless others are given. Computed
    on shapes alone; ``encodings`` other than ``dense`` and ``nominal`` read weights or masks, see
    :mod:`chainfx.bitops.storage`.

    Example:
        >>> import torch, chainfx
        >>> chainfx.count(torch.nn.Linear(8, 4), torch.randn(1, 8)).macs
        32
    """
    given = _checked(example_inputs, "example_inputs")
    inputs = given if isinstance(given, tuple) else _in_order(model, given)
    if isinstance(model, CompressedModel):
        rates = exit_rates if exit_rates is not None else model.report.records[-1].exit_rates or None
        return count_graph(model.graph_module, inputs, convention, rates, encodings)
    if isinstance(model, GraphModule):
        return count_graph(model, inputs, convention, exit_rates, encodings)
    graph_module = capture_to_read(model, given) or _captured(model, given)
    return count_graph(graph_module, inputs, convention, exit_rates, encodings)


def _own_copy(model: _M) -> _M:
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        if "graph leaves" not in str(error):  # the only tensors that torch copies
            raise
        raise InputError(
            "a module of the network keeps a tensor that it computed, as torch.nn.utils.spectral_norm does, and torch "
            "cannot copy that; run the network once in torch.no_grad(), or take the normalization off."
        ) from error


def _captured(model: nn.Module, inputs: tuple[Tensor, ...] | Mapping[str, Tensor]) -> GraphModule:
    """The graph of a model to be counted: as torch exports it where it has no train form, as with ``torch.cond``."""
    try:
        return capture(model, inputs, compare=False)
    except CaptureError:
        exported = export_to_read(model, inputs)
        if exported is None:
            raise
        return exported


def _stage(start: Any) -> Stage | None:
    if start is None or isinstance(start, Stage):
        return start
    if isinstance(start, str | Path):
        return open_stage(start)
    raise InputError(f"start is a {type(start).__name__}; give a finished Stage or its folder in a workdir.")


def _check_trainer(trainer: Any) -> None:
    """Raise :class:`InputError` for what has not all that a :class:`~chainfx.passes.Trainer` has."""
    missing = [name for name in _OF_TRAINERS if not hasattr(trainer, name)]
    if isinstance(trainer, type) or missing:
        seen = f"the class {trainer.__name__}" if isinstance(trainer, type) else f"a {type(trainer).__name__}"
        lacks = f", which has no {', '.join(missing)}" if missing else ", not an object of it"
        raise InputError(
            f"trainer is {seen}{lacks}; give chainfx.training.Trainer(data) or an object with all that "
            f"chainfx.passes.Trainer lists."
        )


def _attach(
    error: BaseException, finished: list[Stage], chain: Plan, inputs: tuple[Tensor, ...], signature: Signature
) -> None:
    """Give an error that goes on its way the result so far, as documented at :func:`compile`."""
    with contextlib.suppress(Exception):  # memory may still be short, and errors can be frozen: the first one counts
        error.add_note(f"finished stages: {', '.join(stage.record.name for stage in finished)}")
        error.partial = _result(finished, chain, inputs, signature)  # type: ignore[attr-defined]  # documented there


def _result(
    stages: list[Stage],
    chain: Plan,
    inputs: tuple[Tensor, ...],
    signature: Signature,
    engine: EngineChoice = "auto",
) -> CompressedModel:
    report = ChainReport(str(chain), tuple(stage.record for stage in stages))
    return CompressedModel(copy.deepcopy(stages[-1].graph_module), inputs, report, signature, engine)


def _in_order(model: nn.Module, named: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Inputs by name in the order in which the graph of a model takes them."""
    if isinstance(model, CompressedModel):
        return model.signature.bind((), named)
    return signature_of(model, named)[1]


def _batch(signature: Signature, inputs: Any) -> tuple[Tensor, ...]:
    """One batch of calibration in the order of the graph."""
    given = _checked(inputs, "calibration")
    return given if isinstance(given, tuple) else signature.bind((), given)


def _checked(inputs: Any, name: str) -> tuple[Tensor, ...] | Mapping[str, Tensor]:
    """Inputs as they were given, one tensor as a tuple; raises :class:`InputError` for what is neither."""
    if isinstance(inputs, Mapping):
        return inputs
    found = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    if not found or not all(isinstance(item, Tensor) for item in found):
        kinds = ", ".join(type(item).__name__ for item in found) or "nothing"
        raise InputError(f"{name} must be a tensor or a tuple of tensors, but is {kinds}; give one batch of inputs.")
    return found
