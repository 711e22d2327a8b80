"""Fixed-point fake quantization of weights and activations."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import ClassVar, Literal, final

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import Argument

from chainfx.errors import PassError
from chainfx.ir import edit, ops
from chainfx.passes.base import Granularity, Kind, Pass, PassContext, PassInfo, PassResult, Skipped, TuneRequest
from chainfx.passes.layers import beneath_mask, mask_of

__all__ = ["FLOAT", "LayerWidths", "Quantize", "insert_quantizers", "widths_in"]

FLOAT = 32
_SAMPLES = 1 << 16
_CANDIDATES = 64


@dataclass(frozen=True, slots=True)
class LayerWidths:
    """How one layer is quantized: bits of weight and input (32 is float), scheme and axis of the weight's scale."""

    weights: int
    activations: int
    scheme: str
    per_channel: bool


@final
@dataclass(frozen=True)
class Quantize(Pass):
    """Quantize the weights and inputs of convolution and linear layers to 1..8 bits (32 leaves them in float).

    What changes, for each layer::

        conv2d(x, weight, ...)  ->  quantize_activation(x, clip, bits, signed)
                                    quantize_weight(weight, bits, scheme, axis)
                                    conv2d(<quantized x>, <quantized weight>, ...)

    Formula: DoReFa (Zhou et al. 2016, arXiv 1606.06160, eq. 5 and 9; one bit: sign times mean magnitude, sign(0) = +1),
    see :mod:`chainfx.ir.ops`. Departures: the weight keeps its scale, per channel by default, and activations are
    clipped at a learnt value (Choi et al. 2018) that starts where the squared error on the calibration batches is
    least, not at 1. ``scheme="uniform"`` is symmetric rounding without tanh; it is what ``None`` means when nothing
    will be tuned, because tanh moves trained weights.

    A second ``Quantize`` replaces the quantizers of the first; masks stay, above them. Exact only at 32 bits. Biases,
    BatchNorm and products of two activations (attention scores) stay in float. Bit operations fall by
    ``1024 / (weights * activations)`` per layer; stored weights to ``weights / 32``.

    Options: ``first`` and ``last`` are the bits of the first and last layers (weights and inputs), ``None`` for the
    same as the rest; 8 is the usual choice (APoT, HAWQ). ``skip``: patterns of weight names to leave in float.
    """

    weights: int = 8
    activations: int = 8
    first: int | None = 8
    last: int | None = 8
    scheme: Literal["dorefa", "uniform"] | None = None
    granularity: Literal["tensor", "channel"] = "channel"
    skip: tuple[str, ...] = ()

    info: ClassVar[PassInfo] = PassInfo(
        "quantize",
        Kind.STATIC,
        Granularity.SUB_NEURON,
        needs=frozenset({"calibration"}),
        establishes=frozenset({"bit-widths"}),
    )

    def __post_init__(self) -> None:
        for option in ("weights", "activations", "first", "last"):
            value = getattr(self, option)
            allowed = value in (*range(1, 9), FLOAT) or (value is None and option in ("first", "last"))
            self._check(allowed and not isinstance(value, bool), option, "1..8 bits, or 32 for float")
        self._check(self.scheme in (None, *ops.SCHEMES), "scheme", f"None or one of {', '.join(ops.SCHEMES)}")
        self._check(self.granularity in ("tensor", "channel"), "granularity", "'channel' or 'tensor'")

    @property
    def needs(self) -> frozenset[str]:
        """Calibration data, unless every activation stays in float."""
        widths = {self.activations, self.first or FLOAT, self.last or FLOAT}
        return frozenset() if widths == {FLOAT} else self.info.needs

    def apply(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Insert the quantizers, with clips from the calibration batches."""
        layers = list(edit.layers_of(graph_module))
        paths = {node: str(edit.origin(node.args[1]).target) for node in layers}  # type: ignore[union-attr]
        for pattern in self.skip:
            if not any(fnmatch(path, pattern) for path in paths.values()):
                raise PassError(
                    f"quantize: skip={pattern!r} matches no weight; names look like {min(paths.values())!r}."
                )
        skipped = [
            Skipped(node.name, f"its weight {paths[node]} matches skip")
            for node in layers
            if any(fnmatch(paths[node], pattern) for pattern in self.skip)
        ]
        left = {item.node for item in skipped}
        first, last = edit.ends_of(graph_module)
        scheme = self.scheme or ("dorefa" if context.tunes else "uniform")
        widths = {
            node: self._widths(self.first if node in first else self.last if node in last else None, scheme)
            for node in layers
            if node.name not in left
        }
        if not widths:
            raise PassError("quantize: the network has no convolution or linear layer to quantize; remove the pass.")
        inserted = insert_quantizers(graph_module, widths, context.calibration)
        skipped += [
            Skipped(node.name, "a product of two activations stays in float")
            for node in graph_module.graph.nodes
            if edit.is_product(node)
        ]
        tune = TuneRequest() if context.tunes and inserted else None
        return PassResult(graph_module, modified=inserted, tune=tune, skipped=tuple(skipped))

    def _widths(self, at_end: int | None, scheme: str) -> LayerWidths:
        weights, activations = (self.weights, self.activations) if at_end is None else (at_end, at_end)
        return LayerWidths(weights, activations, scheme, self.granularity == "channel")


def widths_in(layers: Iterable[Node]) -> LayerWidths | None:
    """The widths most of the layers are quantized with; ``None`` if none is."""
    found: Counter[LayerWidths] = Counter()
    for node in layers:
        weight, source = beneath_mask(node), node.args[0]
        if isinstance(weight, Node) and weight.target is ops.quantize_weight:
            bits, scheme, axis = weight.args[1:]
            quantized = isinstance(source, Node) and source.target is ops.quantize_activation
            activations = source.args[2] if isinstance(source, Node) and quantized else FLOAT
            found[LayerWidths(bits, activations, scheme, axis is not None)] += 1  # type: ignore[arg-type]
    return found.most_common(1)[0][0] if found else None


def insert_quantizers(
    graph_module: GraphModule, widths: Mapping[Node, LayerWidths], calibration: Iterable[tuple[Tensor, ...]] | None
) -> bool:
    """Put quantizers before the layers of ``widths``, replacing those already there; returns whether any was put.

    Layers that read the same activation at the same width share one quantizer. Raises :class:`PassError` when an
    activation is to be quantized and ``calibration`` is ``None`` or empty, or when a weight is not finite.
    """
    for node in widths:
        _remove_quantizers(node)
    wanted: dict[tuple[Node, int], list[Node]] = {}
    for node, width in widths.items():
        _quantize_weight(graph_module, node, width)
        if width.activations != FLOAT:
            wanted.setdefault((node.args[0], width.activations), []).append(node)  # type: ignore[arg-type]
    ranges = _observe(graph_module, {source for source, _ in wanted}, calibration) if wanted else {}
    for (source, bits), users in wanted.items():
        _quantize_activation(graph_module, source, bits, users, ranges[source])
    edit.tidy(graph_module)
    return any(width.weights != FLOAT or width.activations != FLOAT for width in widths.values())


def _remove_quantizers(node: Node) -> None:
    source, weight = node.args[0], beneath_mask(node)
    if isinstance(source, Node) and source.target is ops.quantize_activation:
        node.update_arg(0, source.args[0])
    if isinstance(weight, Node) and weight.target is ops.quantize_weight:
        _put_weight(node, weight.args[0])


def _put_weight(node: Node, weight: Argument) -> None:
    """Let a layer read another weight through its mask, which stays on top: not every code book has a zero."""
    mask = mask_of(node)
    if mask is not None:
        with node.graph.inserting_before(node):
            weight = node.graph.call_function(ops.mask_weight, (weight, *mask.args[1:]))
    node.update_arg(1, weight)


def _quantize_weight(graph_module: GraphModule, node: Node, width: LayerWidths) -> None:
    weight = edit.origin(node.args[1])
    if weight is None or width.weights == FLOAT:
        return
    if not torch.isfinite(edit.get_tensor(graph_module, str(weight.target))).all():
        raise PassError(f"quantize: weight {weight.target!r} has values that are not finite; mend the network first.")
    axis = (1 if node.target in edit.TRANSPOSED else 0) if width.per_channel else None
    with graph_module.graph.inserting_before(node):
        arguments = (beneath_mask(node), width.weights, width.scheme, axis)
        quantized = graph_module.graph.call_function(ops.quantize_weight, arguments)
    _put_weight(node, quantized)


def _quantize_activation(graph_module: GraphModule, source: Node, bits: int, users: list[Node], values: Tensor) -> None:
    signed = bool((values < 0).any())
    holder = edit.fresh_path(graph_module, f"quantize_{source.name}")
    edit.set_tensor(graph_module, f"{holder}.clip", _best_clip(values, bits, signed), parameter=True)
    with graph_module.graph.inserting_before(min(users)):
        clip = graph_module.graph.get_attr(f"{holder}.clip")
        quantized = graph_module.graph.call_function(ops.quantize_activation, (source, clip, bits, signed))
    for node in users:
        node.update_arg(0, quantized)


def _best_clip(values: Tensor, bits: int, signed: bool) -> Tensor:
    """The clip (shape ()) among fractions of max|x| with the least squared quantization error on ``values`` (n,)."""
    largest = values.abs().amax().clamp_min(1e-6)
    clips = largest * torch.linspace(1 / _CANDIDATES, 1, _CANDIDATES, dtype=values.dtype)
    errors = [(ops.quantize_activation(values, clip, bits, signed) - values).square().mean() for clip in clips]
    return clips[int(torch.stack(errors).argmin())].clone()


class _Observer(Interpreter):
    """Runs a graph and keeps a sample of the values of some nodes."""

    def __init__(self, graph_module: GraphModule, watched: set[Node]) -> None:
        super().__init__(graph_module)
        self.seen: dict[Node, list[Tensor]] = {node: [] for node in watched}

    def run_node(self, n: Node) -> object:
        """Run one node as usual and sample its value if it is watched."""
        value = super().run_node(n)
        if n in self.seen:
            self.seen[n].append(value.detach().flatten())
        return value


def _observe(
    graph_module: GraphModule, watched: set[Node], calibration: Iterable[tuple[Tensor, ...]] | None
) -> dict[Node, Tensor]:
    """For each watched node, up to 65,536 of its values over the calibration batches, evenly spaced: shape (n,)."""
    graph_module.graph.lint()
    graph_module.recompile()
    observer = _Observer(graph_module, watched)
    with edit.evaluating(graph_module), torch.no_grad():
        for inputs in calibration or ():
            try:
                observer.run(*inputs)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs)
                raise PassError(
                    f"quantize: the network does not accept a calibration batch of shape {shapes}: "
                    f"{str(error).splitlines()[0]}; give batches as the example inputs."
                ) from error
    if any(not values for values in observer.seen.values()):
        raise PassError(
            "quantize: activations need calibration data and there is none; give calibration=[batches of inputs], "
            "a trainer, or activations=32."
        )
    return {node: _thin(torch.cat(values)) for node, values in observer.seen.items()}


def _thin(values: Tensor) -> Tensor:
    return values[:: max(1, len(values) // _SAMPLES)]
