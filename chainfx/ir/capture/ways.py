"""Capture: a model as a graph in train form.

The ways, in order: symbolic tracing (batch and resolution stay free), tracing with the sizes of the example inputs (the
batch stays free, and the other sizes where the code allows it), ``torch.export`` (the batch stays free), and the
innermost module that none of them can follow kept as an opaque leaf. A module without parameters that cannot be
followed becomes a leaf before ``torch.export`` is asked: it hides nothing.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from chainfx.errors import CaptureError, InputError
from chainfx.ir.capture.build import build, build_to_read, rename, simplify
from chainfx.ir.capture.compare import find_difference
from chainfx.ir.capture.explaining import Differs, Failure, explained, first_line, user_frame
from chainfx.ir.capture.export import export_trace
from chainfx.ir.capture.folding import FoldedWeight, fold_weights
from chainfx.ir.capture.guards import SizeError
from chainfx.ir.capture.hooks import alone, seen_here
from chainfx.ir.capture.modes import follow_training_wiring, in_mode, merge_modes, mode_dependent
from chainfx.ir.capture.quiet import quiet
from chainfx.ir.capture.signature import Signature, arguments, signature_of
from chainfx.ir.capture.sizes import Sizes, SizesTracer, sizes_to_free
from chainfx.ir.capture.tracer import Trace, TrainFormTracer
from chainfx.ir.capture.wrappers import unwrapped
from chainfx.ir.graph import evaluate_graph, evaluating, modules_by_path, needs_data

__all__ = ["CaptureReport", "OpaqueLeaf", "capture", "capture_to_read", "capture_with_report"]

Method = Literal["symbolic", "sizes", "export"]

_HIDING = (nn.RNNBase, nn.RNNCellBase, nn.Bilinear)


@dataclass(frozen=True, slots=True)
class OpaqueLeaf:
    """A module whose inside no pass sees: path, class name, parameters, and their share of the model's in [0, 1]."""

    path: str
    class_name: str
    parameters: int
    share: float


@dataclass(frozen=True, slots=True)
class CaptureReport:
    """How a graph was captured, and what of the model it does not show.

    ``method``: ``"symbolic"`` (batch and resolution free), ``"sizes"`` (batch free, and other sizes where the code
    allows it) or ``"export"`` (batch free). ``opaque``: leaves that hide matrix multiplications or could not be
    followed. ``dropped``: ``state_dict`` names of the model that the graph does not use, such as auxiliary heads of
    train mode. ``aliases``: (other name, kept name) of tensors that have several. ``eval_structure``: the model's own
    ``forward`` does other things in train mode; the graph does those of eval mode. ``folded``: weights that the model
    computes from its parameters, each with these; the graph stores what is computed, and no longer computes it, also in
    training. ``signature``: how the graph is called, and which sizes it has fixed.
    """

    method: Method
    signature: Signature
    opaque: tuple[OpaqueLeaf, ...] = ()
    dropped: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    eval_structure: bool = False
    folded: tuple[FoldedWeight, ...] = ()


Examples = Sequence[Tensor] | Mapping[str, Tensor]


def capture(model: nn.Module, example_inputs: Examples, *, compare: bool = True) -> GraphModule:
    """The graph of a model in train form; see :func:`capture_with_report` for what it may leave out.

    ``example_inputs`` are the inputs in the order of ``forward``, or by the names it has for them, batch first, on the
    model's device (meta included). Other arguments of ``forward`` keep their defaults. The graph takes the inputs by
    position, in the order of ``forward``. It *shares* parameters, buffers and leaf modules with ``model``, as
    ``torch.fx`` does: copy it (``copy.deepcopy``) before changing them. Weights that the model computes from
    parameters, as under a weight norm, are computed once and belong to the graph alone
    (:attr:`CaptureReport.folded`). The mode of ``model`` is left as it was, and the graph starts in it; no other thread
    may run the model itself meanwhile, as its mode changes for moments. Other models may run, be compiled and be
    captured in other threads: captures wait for each other.

    The graph is compared with the model: both run on a few of the samples, and on another batch, of another image size
    or length where none is fixed. ``compare=False`` leaves that out, for graphs whose answers do not matter;
    nothing on the meta device is compared.

    Raises :class:`~chainfx.errors.InputError` if the model does not accept the inputs, and
    :class:`~chainfx.errors.CaptureError`, with the line of its code, if no way leads to a graph that computes the same.

    >>> graph_module = capture(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), (torch.zeros(1, 4),))
    >>> [node.name for node in graph_module.graph.nodes]
    ['input_1', '_0_weight', '_0_bias', '_0', '_1', 'output']
    """
    return capture_with_report(model, example_inputs, compare=compare)[0]


def capture_with_report(
    model: nn.Module, example_inputs: Examples, *, compare: bool = True
) -> tuple[GraphModule, CaptureReport]:
    """As :func:`capture`, with the :class:`CaptureReport` of how it went and what the graph does not show."""
    with alone():
        run = _capture_of(model, example_inputs)
        run.compare = compare and not _without_data(model, run.examples)
        return run.run()


def capture_to_read(model: nn.Module, example_inputs: Examples) -> GraphModule | None:
    """What eval mode does for inputs of these very shapes, to be read and not run; ``None`` if tracing fails.

    It takes a fraction of the time of :func:`capture`, and differs from its graph in this: sizes are numbers, those of
    the batch too, so that no node computes them; plain convolution and linear layers are ``call_module``; what works
    otherwise in train mode is followed in eval mode, not kept whole; every node has its value in ``node.meta["val"]``.
    Raises as :func:`capture` for arguments that nothing can be captured from.
    """
    with alone():
        return _capture_of(model, example_inputs).to_read()


def _capture_of(model: nn.Module, example_inputs: Examples) -> "_Capture":
    model = unwrapped(model)
    signature, examples = signature_of(model, example_inputs)
    return _Capture(model, examples, signature)


@dataclass
class _Capture:
    """One run of capture. ``unfollowed`` are leaves because of their code, ``by_mode`` because of ``self.training``."""

    model: nn.Module
    examples: tuple[Tensor, ...]
    signature: Signature
    unfollowed: set[str] = field(default_factory=set)
    by_mode: set[str] = field(default_factory=set)
    eval_structure: bool = False
    folded: tuple[FoldedWeight, ...] = ()
    not_free: Failure | None = None
    compare: bool = False

    @cached_property
    def frees(self) -> dict[str, Sizes]:
        """The ways that keep sizes free while they trace with sizes, most free first: what each frees, by its name."""
        return {f"free sizes {number}": sizes for number, sizes in enumerate(sizes_to_free(self.examples))}

    def run(self) -> tuple[GraphModule, CaptureReport]:
        exported = False
        while True:
            result = self._first("symbolic", *self.frees, "sizes")
            if not isinstance(result, Failure):
                return result
            _check_runs(self.model, self.examples, self.signature.by_name)
            if isinstance(result.cause, InputError | CaptureError):  # said already, and not by the way of capture
                raise result.cause
            hides = bool(result.path) and _count_parameters(self.model.get_submodule(result.path)) > 0
            if (hides or not result.path) and not exported:
                exported = True
                by_export = self._first("export", "strict export")
                if not isinstance(by_export, Failure):
                    return by_export
            if not result.path or result.path in self.unfollowed:
                raise explained(self.model, result) from result.cause
            self.unfollowed.add(result.path)

    def to_read(self) -> GraphModule | None:
        try:
            with _one_attention_kernel():
                return build_to_read(self.model, self._trace("to read", False))
        except Failure:
            return None

    def _first(self, *ways: str) -> "tuple[GraphModule, CaptureReport] | Failure":
        """The graph of the first way that works, or how the last one failed."""
        for way in ways:
            try:
                return self._follow(way)
            except Failure as failure:
                failed = failure
                if way in ("symbolic", *list(self.frees)[:1]):
                    self.not_free = failure
        return failed

    def _follow(self, way: str) -> tuple[GraphModule, CaptureReport]:
        with _one_attention_kernel():
            evaluation, training = self._trace(way, False), self._trace(way, True)
            while inner := (differing := self._mode_dependent(way, evaluation, training)) - {""}:
                self.by_mode |= inner
                evaluation, training = self._trace(way, False), self._trace(way, True)
        self.eval_structure = bool(differing)
        known = replace(self.signature, output=evaluation.output)
        self.signature = known.with_bounds(evaluation.bounds)
        graph_module = build(self.model, evaluation, merge_modes(self.model, evaluation, training))
        self.folded = fold_weights(graph_module, self.model)
        if self.folded:
            rename(graph_module)
        if way != "sizes":
            self._check_shapes(graph_module)
        if self.compare:
            self._check_answers(graph_module, sizes_free=way == "symbolic" or way in self.frees)
        return graph_module, self._report(way, graph_module)

    def _check_shapes(self, graph_module: GraphModule) -> None:
        """See on shapes alone that the graph accepts the example inputs; what needs data cannot be seen so."""
        try:
            with evaluating(graph_module):
                evaluate_graph(graph_module, self.examples)
        except Exception as error:
            if not needs_data(error):
                raise Failure("", error) from error

    def _check_answers(self, graph_module: GraphModule, *, sizes_free: bool) -> None:
        """See that the graph computes what the model does; a module that it does not compute is the failing one."""
        by_name = self.signature.by_name
        try:
            found = find_difference(self.model, graph_module, self.examples, sizes_free=sizes_free, by_name=by_name)
        except Exception:
            _check_runs(self.model, self.examples, by_name)
            raise
        if found is not None:
            raise Failure("" if found.path in self.unfollowed else found.path, Differs(found))

    def _mode_dependent(self, way: str, evaluation: Trace, training: Trace) -> set[str]:
        """The modules that do other operations in train mode, so that they have to become leaves; ``""`` cannot."""
        if "export" in way:
            follow_training_wiring(self.model, evaluation, training)
        differing = set(mode_dependent(evaluation, training))
        if "export" in way and differing:
            raise Failure("", CaptureError("the exported graphs of train and eval mode differ."))
        return differing

    def _trace(self, way: str, training: bool) -> Trace:
        """The trace of one mode; whatever the model's code raises on the way becomes a ``Failure`` that keeps it."""
        leaves = self.unfollowed | self.by_mode
        inputs = tuple(each.name for each in self.signature.inputs)
        by_name = self.signature.by_name
        tracer: TrainFormTracer | None = None
        try:
            with in_mode(self.model, training) as modules:
                if "export" in way:
                    strict = way.startswith("strict")
                    with quiet():
                        trace = export_trace(self.model, inputs, self.examples, by_name, strict=strict)
                    return simplify(trace, self.model)
                if way != "symbolic":
                    to_read, free = way == "to read", self.frees.get(way)
                    tracer = SizesTracer(inputs, self.examples, leaves, free=free, to_read=to_read)
                else:
                    tracer = TrainFormTracer(inputs, leaves)
                tracer.by_name = by_name
                return simplify(tracer.run(self.model, modules), self.model)
        except Exception as error:
            raise Failure((tracer and tracer.failed_at) or "", error) from error

    def _report(self, way: str, graph_module: GraphModule) -> CaptureReport:
        kept = graph_module.state_dict(keep_vars=True)
        names = {id(tensor): name for name, tensor in reversed(kept.items())}
        used = {*kept, *(source for each in self.folded for source in each.sources)}
        missing = {name: t for name, t in self.model.state_dict(keep_vars=True).items() if name not in used}
        return CaptureReport(
            method="symbolic" if way == "symbolic" else "export" if "export" in way else "sizes",
            signature=self._signature(way),
            opaque=tuple(self._opaque(graph_module)),
            dropped=tuple(name for name, tensor in missing.items() if id(tensor) not in names),
            aliases=tuple((name, names[id(tensor)]) for name, tensor in missing.items() if id(tensor) in names),
            eval_structure=self.eval_structure,
            folded=self.folded,
        )

    def _signature(self, way: str) -> Signature:
        if way == "symbolic":
            return self.signature
        known = self.signature.with_fixed_sizes(self._why_fixed(), self.frees.get(way, ()))
        return known if any(each.fixed for each in known.inputs) else self.signature

    def _why_fixed(self) -> str:
        """What fixed the sizes, to be read after "as": the way of capture and the line that no free size can follow."""
        cause = None if self.not_free is None else self.not_free.cause
        if isinstance(cause, SizeError):
            return f"capture wrote the sizes down for {cause.line}"
        frame = None if cause is None else user_frame(cause)
        if frame is None or not frame.line:
            return "capture wrote the sizes of the example inputs down"
        return f"capture wrote the sizes down for `{frame.line}` at {Path(frame.filename).name}:{frame.lineno}"

    def _opaque(self, graph_module: GraphModule) -> Iterator[OpaqueLeaf]:
        modules = modules_by_path(graph_module)
        for path in dict.fromkeys(str(node.target) for node in graph_module.graph.find_nodes(op="call_module")):
            unfollowed = path in self.unfollowed
            if unfollowed or path in self.by_mode or isinstance(modules[path], _HIDING):
                count = _count_parameters(modules[path])
                if count or unfollowed:
                    total = _count_parameters(self.model)
                    yield OpaqueLeaf(path, type(modules[path]).__name__, count, count / max(1, total))


def _count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _one_attention_kernel() -> contextlib.AbstractContextManager[None]:
    """Without the fused eval path of ``nn.TransformerEncoderLayer``, whose preconditions cannot be traced."""
    return seen_here({(torch.backends.mha, "get_fastpath_enabled"): lambda: False})


def _check_runs(model: nn.Module, examples: tuple[Tensor, ...], by_name: tuple[str, ...]) -> None:
    """Raise :class:`InputError` if the model itself fails on the example inputs; models without data are not run."""
    if _without_data(model, examples):
        return
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), in_mode(model, False):
            args, kwargs = arguments(examples, by_name)
            model(*args, **kwargs)
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in examples)
        raise InputError(
            f"the model does not accept example_inputs of shape {shapes}: {first_line(error)}; "
            "give inputs of the shape it was made for."
        ) from error


def _without_data(model: nn.Module, examples: Sequence[Tensor]) -> bool:
    return any(tensor.is_meta for tensor in (*examples, *model.parameters(), *model.buffers()))
