"""Quantizers in a graph: put before layers, taken away, and read back."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import Argument

from chainfx.errors import PassError
from chainfx.ir.graph import beneath_mask, edit, mask_of, ops

__all__ = ["FLOAT", "LayerWidths", "insert_quantizers", "widths_in"]

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
    """Put quantizers before the layers of ``widths``, replacing those already there; returns whether that changed any.

    Layers that read the same activation at the same width share one quantizer. Raises :class:`PassError` when an
    activation is to be quantized and ``calibration`` is ``None`` or empty, or when a weight is not finite.
    """
    removed = [_remove_quantizers(node) for node in widths]
    wanted: dict[tuple[Node, int], list[Node]] = {}
    for node, width in widths.items():
        _quantize_weight(graph_module, node, width)
        if width.activations != FLOAT:
            wanted.setdefault((node.args[0], width.activations), []).append(node)  # type: ignore[arg-type]
    ranges = _observe(graph_module, {source for source, _ in wanted}, calibration) if wanted else {}
    for (source, bits), users in wanted.items():
        _quantize_activation(graph_module, source, bits, users, ranges[source])
    edit.tidy(graph_module)
    return any(removed) or any(width.weights != FLOAT or width.activations != FLOAT for width in widths.values())


def _remove_quantizers(node: Node) -> bool:
    """Take away what quantizes the input and the weight of a layer; whether there was any."""
    source, weight = node.args[0], beneath_mask(node)
    of_input = isinstance(source, Node) and source.target is ops.quantize_activation
    of_weight = isinstance(weight, Node) and weight.target is ops.quantize_weight
    if of_input:
        node.update_arg(0, source.args[0])  # type: ignore[union-attr]
    if of_weight:
        _put_weight(node, weight.args[0])  # type: ignore[union-attr]
    return of_input or of_weight


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
