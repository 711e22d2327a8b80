"""A whole network quantized: what passes that quantize do with the layers that they choose."""

from collections.abc import Callable, Sequence

from torch.fx import GraphModule

from chainfx.errors import PassError
from chainfx.ir.graph import Layer, Skipped, Table, edit, left_alone, select, tables_of
from chainfx.passes.base import PassContext
from chainfx.passes.quantizing.embeddings import quantize_embeddings
from chainfx.passes.quantizing.quantizers import FLOAT, ClipRule, LayerWidths, insert_quantizers
from chainfx.passes.quantizing.residuals import quantize_residuals

__all__ = ["quantize_network"]


def quantize_network(
    graph_module: GraphModule,
    context: PassContext,
    name: str,
    widths_of: Callable[[Layer], LayerWidths],
    of_tables: LayerWidths,
    *,
    skip: Sequence[str] = (),
    residuals: bool = True,
    clips: ClipRule = "least-squares",
) -> tuple[bool, tuple[Skipped, ...]]:
    """Quantize every layer and embedding but those that a pattern of ``skip`` names; whether that changed any, and what
    is left.

    ``of_tables``: how tables of embeddings are quantized. ``name``: that of the pass. ``residuals``: whether additions
    of skip connections read quantized values too. Raises :class:`~chainfx.errors.PassError` for a network without
    layers and embeddings, and as :func:`insert_quantizers` does.
    """
    layers, rest = select(graph_module, name)
    tables = list(tables_of(graph_module))
    things: dict[Layer | Table, tuple[str, ...]] = {layer: (layer.path, layer.weight_path) for layer in layers}
    things |= {table: (table.path, table.matrix.path) for table in tables}
    if not things:
        raise PassError(
            f"{name}: the network has no convolution, linear layer or embedding to quantize; remove the pass."
        )
    reasons = left_alone(things, name, [paths[0] for paths in things.values()], skip=skip)
    widths = {layer: widths_of(layer) for layer in layers if layer not in reasons}
    chosen = {table: of_tables for table in tables if table not in reasons}
    seen = {each for table in tables for each in (table.matrix.path, *(call.name for call in table.calls))}
    skipped = [Skipped(each, reason) for thing, reason in reasons.items() for each in _names(thing)]
    skipped += [each for each in rest if each.node not in seen]
    skipped += [
        Skipped(layer.name, "its weight stays in float, at 32 bits")
        for layer, width in widths.items()
        if width.weights == FLOAT
    ]
    looked_up, left = quantize_embeddings(graph_module, chosen, widths, name)
    inserted = insert_quantizers(graph_module, widths, context, name, clips)
    if residuals:
        quantize_residuals(graph_module)
        edit.tidy(graph_module)
    products = [node for node in graph_module.graph.nodes if edit.is_product(node)]
    skipped += [*left, *(Skipped(node.name, "a product of two activations stays in float") for node in products)]
    return looked_up or inserted, tuple(skipped)


def _names(thing: Layer | Table) -> list[str]:
    """The calls of a layer or of a table."""
    return [thing.name] if isinstance(thing, Layer) else [call.name for call in thing.calls]
