"""A whole network quantized: what passes that quantize do with the layers that they choose."""

from collections.abc import Callable, Sequence

from torch.fx import GraphModule

from chainfx.errors import PassError
from chainfx.ir.graph import Layer, Skipped, edit, select
from chainfx.passes.base import PassContext
from chainfx.passes.quantizing.quantizers import FLOAT, ClipRule, LayerWidths, insert_quantizers
from chainfx.passes.quantizing.residuals import quantize_residuals

__all__ = ["quantize_network"]


def quantize_network(
    graph_module: GraphModule,
    context: PassContext,
    name: str,
    widths_of: Callable[[Layer], LayerWidths],
    *,
    skip: Sequence[str] = (),
    residuals: bool = True,
    clips: ClipRule = "least-squares",
) -> tuple[bool, tuple[Skipped, ...]]:
    """Quantize every layer but those that a pattern of ``skip`` names; whether that changed any, and what is left.

    ``name``: that of the pass. ``residuals``: whether additions of skip connections read quantized values too. Raises
    :class:`~chainfx.errors.PassError` for a network without layers, and as :func:`insert_quantizers` does.
    """
    layers, skipped = select(graph_module, name, skip=skip, weight_names=True)
    widths = {layer: widths_of(layer) for layer in layers}
    if not widths:
        raise PassError(f"{name}: the network has no convolution or linear layer to quantize; remove the pass.")
    skipped += [
        Skipped(layer.name, "its weight stays in float, at 32 bits")
        for layer, width in widths.items()
        if width.weights == FLOAT
    ]
    inserted = insert_quantizers(graph_module, widths, context, name, clips)
    if residuals:
        quantize_residuals(graph_module)
        edit.tidy(graph_module)
    products = [node for node in graph_module.graph.nodes if edit.is_product(node)]
    skipped += [Skipped(node.name, "a product of two activations stays in float") for node in products]
    return inserted, tuple(skipped)
