"""The main entry: capture, plan, run, and a compressed module out."""

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from torch import Tensor, device, nn
from torch.fx import GraphModule

from chainfx.arguments import an_example, check_options, check_search, check_trainer, checked, listed
from chainfx.bitops import CostReport
from chainfx.bitops import count as count_graph
from chainfx.deploy import CompressedModel, EngineChoice
from chainfx.errors import CaptureError, InputError, LintError
from chainfx.ir.capture import (
    Signature,
    batch_first,
    capture,
    capture_to_read,
    capture_with_report,
    check_batch_first,
    export_to_read,
    signature_of,
    unwrapped,
)
from chainfx.ir.graph import device_of, has_inference_tensors, ordinary, recording
from chainfx.linting import findings_of
from chainfx.part import Part, put_in_place
from chainfx.passes import Execution, Pass, Trainer, Tunings, metric_of
from chainfx.progress import TerminalListener
from chainfx.scheduler import ChainReport, Ground, Plan, Stage, StageStore, open_stage, plan, run
from chainfx.search import Search, SearchResult, searched

__all__ = ["compile", "count"]

Inputs = Tensor | tuple[Tensor, ...] | list[Tensor] | Mapping[str, Tensor]

_M = TypeVar("_M", bound=nn.Module)


@overload
def compile(
    model: nn.Module,
    passes: Sequence[Pass] | Plan,
    *,
    example_inputs: Inputs | None = None,
    part: None = None,
    batch_dim: int = 0,
    trainer: Trainer | None = None,
    calibration: Sequence[Inputs] | None = None,
    workdir: str | Path | None = None,
    order: Literal["auto", "given"] = "auto",
    seed: int = 0,
    on_stage: Callable[[Stage], None] | None = None,
    start: Stage | str | Path | None = None,
    warn_drop: float | None = 0.05,
    refuse: Literal["errors"] | None = None,
    engine: EngineChoice = "auto",
    tuning: Mapping[str, Mapping[str, Any]] | None = None,
    execution: Execution | None = None,
) -> CompressedModel: ...


@overload
def compile(
    model: _M,
    passes: Sequence[Pass] | Plan,
    *,
    example_inputs: Any = None,
    part: str,
    batch_dim: int = 0,
    trainer: None = None,
    calibration: Sequence[Any] | None = None,
    workdir: str | Path | None = None,
    order: Literal["auto", "given"] = "auto",
    seed: int = 0,
    on_stage: Callable[[Stage], None] | None = None,
    start: Stage | str | Path | None = None,
    warn_drop: float | None = 0.05,
    refuse: Literal["errors"] | None = None,
    engine: EngineChoice = "auto",
    tuning: Mapping[str, Mapping[str, Any]] | None = None,
    execution: Execution | None = None,
) -> _M: ...


@overload
def compile(model: nn.Module, passes: Sequence[Pass] | Plan, *, search: Search, **options: Any) -> SearchResult: ...


def compile(  # type: ignore[misc]  # with a search its options are not listed again
    model: nn.Module,
    passes: Sequence[Pass] | Plan,
    *,
    example_inputs: Any = None,
    part: str | None = None,
    batch_dim: int = 0,
    trainer: Trainer | None = None,
    calibration: Sequence[Any] | None = None,
    workdir: str | Path | None = None,
    order: Literal["auto", "given"] = "auto",
    seed: int = 0,
    on_stage: Callable[[Stage], None] | None = None,
    start: Stage | str | Path | None = None,
    warn_drop: float | None = 0.05,
    refuse: Literal["errors"] | None = None,
    engine: EngineChoice = "auto",
    tuning: Mapping[str, Mapping[str, Any]] | None = None,
    execution: Execution | None = None,
    search: Search | None = None,
) -> nn.Module | SearchResult:
    """Compress a trained network by a chain of passes, in the order the scheduler finds.

    Does the same inside ``torch.no_grad()`` and ``torch.inference_mode()``, and the result can be used outside of them.

    Parameters:
        model: the trained network; it is not changed.
        passes: the passes with their options, in any order, or a :class:`Plan`. ``EarlyExit``, ``LowRank`` and
            ``PruneChannels`` are taken back where their result is no cheaper, unless they have ``keep=True``.
        example_inputs: one batch of inputs as the network takes them, in the order of its ``forward`` or by name, batch
            first (see ``batch_dim``); shapes and dtypes count. By default the first batch of ``calibration``, or one
            sample of the trainer's.
        part: the dotted path of a module inside of ``model``, such as ``"backbone"``, to compress that alone. The
            result is then a copy of ``model``, of its own class and in eval mode, with the :class:`CompressedModel` in
            the place of the part. ``example_inputs`` and ``calibration`` stay those of ``model`` and may be whatever
            it takes, a list of images for instance: ``model`` is run on them to see what the part is given. A trainer
            is for whole networks: to tune a part, compile that module by itself, on its own inputs.
        batch_dim: the dimension of the batch in the first input, and in each other one that is as long there: 1 for
            recurrent networks that take (length, batch, features). The result is called as ``model`` is, and
            ``calibration`` has the batch there too; within the chain the batch is first, so a trainer, its data and
            ``calibration`` of its own have it first.
        trainer: tunes after each pass and measures accuracy, e.g. :class:`chainfx.training.Trainer`. Without one only
            passes that need no training run.
        calibration: batches of inputs from the training data, for quantization; the trainer's by default.
        workdir: a folder that keeps every finished stage; a second call with the same arguments resumes after them, in
            the same process or another; :class:`~chainfx.scheduler.StageKey` has what must be the same. A stage that
            cannot be read is computed again, with a :class:`~chainfx.errors.StageWarning`.
        order: ``"auto"``, or ``"given"`` to run the passes as written; the errors and warnings of :func:`chainfx.lint`
            are then shown before anything is trained. All that it finds is in the report for both.
        seed: determines everything random.
        on_stage: called with each finished :class:`~chainfx.scheduler.Stage`, the original network first; its graph is
            on the device of the ``execution``.
        start: a finished stage of this model, or its folder in some ``workdir``, whatever machine, torch and chainfx
            made it; the passes go on from it. ``model`` stays the original that they are compared with and learn from.
        warn_drop: a stage that loses more than this, in units of the trainer's metric (0.05 is five points of
            accuracy), names the likely causes in the report and a :class:`~chainfx.errors.DropWarning`; or ``None``.
        refuse: ``"errors"`` to stop, before anything is trained, if lint finds an error.
        engine: what :class:`CompressedModel` runs on: ``"int8"``, ``"sparse"``, ``"float"``, ``"pt2e"``, or ``"auto"``.
        tuning: how passes are tuned other than they ask, by the name of the pass or ``"*"`` for all:
            ``{"quantize": {"loss": "task", "epochs": 5}}``; the options are the fields of
            :class:`~chainfx.passes.Objective` and :class:`~chainfx.passes.Schedule`, and ``teacher``. They are part of
            what determines a stage.
        execution: where the run computes, and in what precision it measures: an :class:`~chainfx.passes.Execution`. By
            default on CUDA where torch has it, else where ``model`` is; the result is where ``model`` was.
        search: which options of the passes to try, and how much accuracy may be lost: a :class:`chainfx.Search`. Every
            trial is a call of this function with a trainer, and the result is a :class:`chainfx.SearchResult` with all
            of them and the best compressed network. With ``workdir`` a second call finds the stages of the first.

    Raises:
        ChainfxError: with one sentence that says what to do. Stages finished before a failure of any kind (memory that
            ran out, an exception of ``on_stage``, Ctrl-C) are in ``workdir``, and in the exception's ``partial``
            attribute as what this function returns.

    Example:
        >>> import torch, chainfx
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)).eval()
        >>> x = torch.randn(2, 8)
        >>> small = chainfx.compile(net, [chainfx.passes.PruneChannels(0.5)], example_inputs=x)
        >>> small(x).shape, small.report.records[-1].after.macs
        (torch.Size([2, 4]), 192)
    """
    model = unwrapped(model)
    check_options(passes, seed, warn_drop, refuse, execution)
    if trainer is not None:
        check_trainer(trainer, part)
    calibration = None if calibration is None else listed(calibration)
    if example_inputs is None:
        example_inputs = an_example(calibration, trainer, batch_dim)
    if search is not None:
        check_search(search, trainer, part)
        compiled = partial(
            compile,
            model,
            example_inputs=example_inputs,
            batch_dim=batch_dim,
            trainer=trainer,
            calibration=calibration,
            on_stage=on_stage,
            tuning=tuning,
            execution=execution,
            order=order,
            seed=seed,
            start=start,
            warn_drop=warn_drop,
            refuse=refuse,
        )
        return searched(search, passes, compiled, engine, workdir)
    tunes = trainer is not None
    chain = passes if isinstance(passes, Plan) else plan(list(passes), order=order, tunes=tunes)
    if tuning and not tunes:
        raise InputError("tuning says how passes are tuned, and there is no trainer; give one, or leave it out.")
    tunings = Tunings.of(tuning or {}, [one.info.name for one in chain.passes])
    first, store = _stage(start), None if workdir is None else StageStore(Path(workdir))
    with recording():
        model = _own_copy(model) if has_inference_tensors(model) else model
        held = None if part is None else Part.seen(model, _own_copy(model), part, example_inputs)
        taken = _captured_network(model, held, example_inputs, calibration, batch_dim)
        home, execution = device_of(taken.graph_module), execution or Execution()
        place = execution.place(home)
        inputs = tuple(tensor.to(place) for tensor in taken.signature.to_graph(taken.inputs))
        captured = _own_copy(taken.graph_module).to(place)
        subject = model if part is None else model.get_submodule(part)
        chain = chain.used_on(Ground.of(subject, getattr(trainer, "data", None)))
        listener = TerminalListener(metric=metric_of(trainer))
        as_written = order == "given" or bool(chain.findings)
        chain = _linted(chain, captured, inputs, tunes, tunes or taken.calibration is not None, refuse)
        if as_written:
            listener.found(chain.findings)
        finished: list[Stage] = []

        def result(engine: EngineChoice = "auto") -> nn.Module:
            small = _result(finished, chain, taken, home, engine)
            return small if part is None else put_in_place(model, part, small)

        stages = run(
            captured,
            chain,
            example_inputs=inputs,
            trainer=trainer,
            calibration=taken.calibration,
            store=store,
            seed=seed,
            listener=listener,
            start=first,
            warn_drop=warn_drop,
            tunings=tunings,
            execution=execution,
        )
        try:
            for stage in stages:
                finished.append(stage)
                if on_stage:
                    on_stage(stage)
        except (Exception, KeyboardInterrupt) as error:
            if finished:
                _attach(error, finished, result)
            raise
        finally:
            listener.close()
        return result(engine)


def count(
    model: nn.Module,
    example_inputs: Inputs,
    convention: str = "mac_bw_ba",
    exit_rates: Mapping[str, float] | None = None,
    encodings: Sequence[str] = ("dense", "nominal"),
    batch_dim: int = 0,
) -> CostReport:
    """The cost of one sample: MACs, bit operations under a named convention, storage.

    ``model`` is any module (captured first; exported if it has no train form, as with ``torch.cond``), a graph in train
    or deploy form, or a :class:`CompressedModel`, whose measured exit rates are used unless others are given. Computed
    on shapes alone; ``encodings`` other than ``dense`` and ``nominal`` read weights or masks, see
    :mod:`chainfx.bitops.storage`. ``batch_dim`` is as in :func:`compile`, for modules.

    Example:
        >>> import torch, chainfx
        >>> chainfx.count(torch.nn.Linear(8, 4), torch.randn(1, 8)).macs
        32
    """
    model, given = unwrapped(model), checked(example_inputs, "example_inputs")
    if isinstance(model, CompressedModel):
        inputs = given if isinstance(given, tuple) else model.signature.bind((), given)
        measured = model.report.records[-1].exit_rates if model.report.records else None
        rates = exit_rates if exit_rates is not None else measured or None
        return count_graph(model.graph_module, model.signature.to_graph(inputs), convention, rates, encodings)
    signature, inputs = (None, given) if isinstance(given, tuple) and not batch_dim else signature_of(model, given)
    if signature is not None and batch_dim:
        model, signature = batch_first(model, signature, inputs, batch_dim)
        inputs = signature.to_graph(inputs)
        given = _as_given(given, signature, inputs)
    if isinstance(model, GraphModule):
        return count_graph(model, inputs, convention, exit_rates, encodings)
    graph_module = capture_to_read(model, given) or _captured(model, given)
    check_batch_first(graph_module, inputs)
    return count_graph(graph_module, inputs, convention, exit_rates, encodings)


@dataclass(frozen=True)
class _Taken:
    """A captured network: its graph, its inputs as callers have them, and calibration as the graph takes it."""

    graph_module: GraphModule
    signature: Signature
    inputs: tuple[Tensor, ...]
    calibration: list[tuple[Tensor, ...]] | None


def _captured_network(
    model: nn.Module, held: Part | None, example_inputs: Any, calibration: Sequence[Any] | None, batch_dim: int
) -> _Taken:
    """The graph of a model, or of the part of it that is ``held``."""
    module, given = (model, checked(example_inputs, "example_inputs")) if held is None else held.as_called()
    signature, inputs = signature_of(module, given)
    inputs = tuple(map(ordinary, inputs))
    if batch_dim != 0:
        module, signature = batch_first(module, signature, inputs, batch_dim)
    batches = None if calibration is None else [_batch(held, signature, item) for item in calibration]
    in_order = signature.to_graph(inputs)
    graph_module, how = capture_with_report(module, _as_given(given, signature, in_order))
    check_batch_first(graph_module, in_order)
    signature = how.signature.with_batch_of(signature)
    if held is not None:
        held.check(signature)
    return _Taken(graph_module, signature, inputs, batches)


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


def _linted(
    chain: Plan,
    graph_module: GraphModule,
    inputs: tuple[Tensor, ...],
    trainer: bool,
    calibration: bool,
    refuse: str | None,
) -> Plan:
    """The plan with all that lint finds in it; raises :class:`LintError` for errors, if they are to be refused."""
    found = findings_of(chain.passes, chain.findings, graph_module, inputs, trainer=trainer, calibration=calibration)
    errors = [finding for finding in found if finding.severity == "error"]
    if errors and refuse is not None:
        listed = "\n".join(f"  {finding}" for finding in errors)
        raise LintError(
            f"the chain {' -> '.join(chain.order)} is not run because lint finds errors in it (refuse='errors'); "
            f"mend it or leave refuse out.\n{listed}"
        )
    return replace(chain, findings=found)


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


def _attach(error: BaseException, finished: list[Stage], result: Callable[[], nn.Module]) -> None:
    """Give an error that goes on its way the result so far, as documented at :func:`compile`."""
    with contextlib.suppress(Exception):  # memory may still be short, and errors can be frozen: the first one counts
        error.add_note(f"finished stages: {', '.join(stage.record.name for stage in finished)}")
        error.partial = result()  # type: ignore[attr-defined]  # documented there


def _result(stages: list[Stage], chain: Plan, taken: _Taken, home: device, engine: EngineChoice) -> CompressedModel:
    order = str(replace(chain, findings=()))
    report = ChainReport(order, tuple(stage.record for stage in stages), chain.findings)
    graph_module = copy.deepcopy(stages[-1].graph_module).to(home)
    return CompressedModel(graph_module, taken.inputs, report, taken.signature, engine)


def _as_given(given: Any, signature: Signature, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | dict[str, Tensor]:
    """Inputs of the graph by position or by name, as the example inputs were given."""
    names = [each.name for each in signature.inputs]
    return dict(zip(names, inputs, strict=True)) if isinstance(given, Mapping) else inputs


def _batch(held: Part | None, signature: Signature, inputs: Any) -> tuple[Tensor, ...]:
    """One batch of calibration as the graph takes it."""
    if held is not None:
        return signature.to_graph(held.batch(signature, inputs))
    given = checked(inputs, "calibration")
    return signature.to_graph(given if isinstance(given, tuple) else signature.bind((), given))
