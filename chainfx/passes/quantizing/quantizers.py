"""Quantizers in a graph: put before layers, taken away, and read back."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from chainfx.errors import PassError
from chainfx.ir.graph import Layer, Weighted, edit, ops
from chainfx.passes.base import PassContext
from chainfx.passes.quantizing.observing import Observed, observe
from chainfx.passes.quantizing.residuals import release_residuals

__all__ = [
    "CLIP_RULES",
    "FLOAT",
    "ClipRule",
    "LayerWidths",
    "insert_quantizers",
    "quantize_weight",
    "scheme_of",
    "widths_in",
]

ClipRule = Literal["least-squares", "min-max"]
CLIP_RULES = get_args(ClipRule)
FLOAT = 32
_CANDIDATES = 64
# how many values, of all clips that are tried, are looked at in one call
_AT_ONCE = 1 << 17


@dataclass(frozen=True, slots=True)
class LayerWidths:
    """How one layer is quantized: bits of weight and input (32 is float), scheme and axis of the weight's scale."""

    weights: int
    activations: int
    scheme: str
    per_channel: bool


def scheme_of(asked: str | None, bits: int, *, tuned: bool) -> str:
    """How :class:`~chainfx.passes.Quantize` rounds weights to ``bits`` bits where it is asked for a scheme or ``None``.

    ``tuned``: whether the network is tuned behind it. The 256 values of dorefa at 8 bits fit into no int8.

    >>> scheme_of(None, 4, tuned=True), scheme_of(None, 8, tuned=True), scheme_of(None, 4, tuned=False)
    ('dorefa', 'tanh', 'uniform')
    """
    scheme = asked or ("dorefa" if tuned else "uniform")
    return "tanh" if scheme == "dorefa" and bits == 8 else scheme


def widths_in(layers: Iterable[Layer]) -> LayerWidths | None:
    """The widths most of the layers are quantized with; ``None`` if none is."""
    found: Counter[LayerWidths] = Counter()
    for layer in layers:
        if layer.weight_quantizer is not None:
            literals: tuple[Any, ...] = layer.weight_quantizer.args[1:]
            bits, scheme, axis = literals
            read: tuple[Any, ...] = (None, None, FLOAT) if layer.input_quantizer is None else layer.input_quantizer.args
            found[LayerWidths(bits, read[2], scheme, axis is not None)] += 1
    return found.most_common(1)[0][0] if found else None


def insert_quantizers(
    graph_module: GraphModule,
    widths: Mapping[Layer, LayerWidths],
    context: PassContext,
    name: str = "quantize",
    clips: ClipRule = "least-squares",
) -> bool:
    """Put quantizers before the layers of ``widths``, replacing those already there; returns whether that changed any.

    Layers that read the same activation at the same width share one quantizer. ``name``: that of the pass; ``clips``:
    where activations are clipped. Raises :class:`PassError` when an
    activation is to be quantized and the context has no calibration batch, or when a weight or an activation is not
    finite.
    """
    removed = [_remove_quantizers(layer) for layer in widths]
    release_residuals(graph_module)
    wanted: dict[tuple[Node, int], list[Layer]] = {}
    for layer, width in widths.items():
        quantize_weight(layer, width, layer.out_axis, name)
        if width.activations != FLOAT:
            wanted.setdefault((layer.source, width.activations), []).append(layer)
    sources = {source for source, _ in wanted}
    seen = observe(graph_module, sources, context.calibration, context.rng("calibration"), name) if wanted else {}
    for (source, bits), readers in wanted.items():
        _quantize_activation(graph_module, source, bits, readers, seen[source], clips)
    edit.tidy(graph_module)
    return any(removed) or any(width.weights != FLOAT or width.activations != FLOAT for width in widths.values())


def _remove_quantizers(layer: Layer) -> bool:
    """Take away what quantizes the input and the weight of a layer; whether there was any."""
    of_input, of_weight = layer.input_quantizer, layer.weight_quantizer
    if of_input is not None:
        layer.read_input(layer.source)
    if of_weight is not None:
        layer.read_weight(edit.input_of(of_weight))
    return of_input is not None or of_weight is not None


def quantize_weight(layer: Weighted, width: LayerWidths, axis: int, name: str) -> None:
    """Put a quantizer between the weight of a layer, or the table of an embedding, and its mask or its call.

    ``axis``: that of its channels. Raises :class:`PassError`, in the name of the pass, if a value is not finite.
    """
    if width.weights == FLOAT:
        return
    if not torch.isfinite(layer.tensor).all():
        raise PassError(f"{name}: weight {layer.weight_path!r} has values that are not finite; mend the network first.")
    with layer.node.graph.inserting_before(layer.node):
        arguments = (layer.weight_beneath_mask, width.weights, width.scheme, axis if width.per_channel else None)
        quantized = layer.node.graph.call_function(ops.quantize_weight, arguments)
    layer.read_weight(quantized)


def _quantize_activation(
    graph_module: GraphModule, source: Node, bits: int, readers: list[Layer], seen: Observed, clips: ClipRule
) -> None:
    signed = bool(seen.least < 0)
    holder = edit.fresh_path(graph_module, f"quantize_{source.name}")
    clip = _largest(seen).to(seen.sample.dtype) if clips == "min-max" else _best_clip(seen, bits, signed)
    edit.set_tensor(graph_module, f"{holder}.clip", clip, parameter=True)
    with graph_module.graph.inserting_before(min(layer.node for layer in readers)):
        read = graph_module.graph.get_attr(f"{holder}.clip")
        quantized = graph_module.graph.call_function(ops.quantize_activation, (source, read, bits, signed))
    for layer in readers:
        layer.read_input(quantized)


def _largest(seen: Observed) -> Tensor:
    """The largest absolute value (shape ()) that was seen, at least a little above zero."""
    values = ops.at_least_float32(seen.sample)
    return torch.maximum(seen.least.abs(), seen.greatest.abs()).to(values.dtype).clamp_min(1e-6)


def _best_clip(seen: Observed, bits: int, signed: bool) -> Tensor:
    """The clip (shape ()) among fractions of max|x| over all values with the least squared error on the sample."""
    values = ops.at_least_float32(seen.sample)
    clips = _largest(seen) * torch.linspace(1 / _CANDIDATES, 1, _CANDIDATES, dtype=values.dtype, device=values.device)
    rows = clips.unsqueeze(1).split(max(1, _AT_ONCE // len(values)))
    with torch.no_grad():
        errors = [(ops.round_activation(values, row, bits, signed) - values).square().mean(1) for row in rows]
    return clips[int(torch.cat(errors).argmin())].to(seen.sample.dtype, copy=True)
