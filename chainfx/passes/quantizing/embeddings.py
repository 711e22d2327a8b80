"""Embeddings quantized: codes of their tables, each row with a scale of its own; what comes out of them is float."""

from collections.abc import Mapping

from torch.fx import GraphModule, Node

from chainfx.ir.graph import Layer, Skipped, Table, edit, open_embedding
from chainfx.passes.quantizing.quantizers import FLOAT, LayerWidths, quantize_weight

__all__ = ["quantize_embeddings"]


_ROWS = "its table alone is quantized: the rows that it gives are in float"


def quantize_embeddings(
    graph_module: GraphModule,
    tables: Mapping[Table, LayerWidths],
    layers: Mapping[Layer, LayerWidths],
    name: str,
) -> tuple[bool, list[Skipped]]:
    """Put a quantizer between each table and the embeddings that read it; whether that changed any, and what is left.

    ``tables``: how each is to be quantized (its rows are its channels); one that a layer of ``layers`` reads too, as
    the last layer of many language models does, is quantized as that layer, so that the codes are stored once.
    ``name``: that of the pass.
    """
    changed, skipped = False, []
    of_layers = {layer.node: width for layer, width in layers.items()}
    for table, wanted in tables.items():
        shared = {of_layers.get(node) for node in table.matrix.layers}
        width = next(iter(shared), wanted)
        obstacle = table.obstacle
        if len(shared) > 1 or width is None:
            obstacle = f"it shares its table with {table.matrix.layers[0].name!r}, which is quantized otherwise or not"
        if obstacle or width is None:
            skipped += [Skipped(call.name, obstacle) for call in table.calls]
            continue
        reason = "its table stays in float, at 32 bits" if width.weights == FLOAT else _ROWS
        skipped += [Skipped(call.name, reason) for call in table.calls]
        for call in table.calls:
            changed |= _quantize(graph_module, call, width, name)
    return changed, skipped


def _quantize(graph_module: GraphModule, call: Node, width: LayerWidths, name: str) -> bool:
    """Give one embedding a quantizer, in the place of one that it has; whether that changed it."""
    is_module = call.op == "call_module"
    if is_module and width.weights == FLOAT:
        return False
    embedding = open_embedding(graph_module, call)
    old = embedding.weight_quantizer
    if old is not None:
        embedding.read_weight(edit.input_of(old))
    quantize_weight(embedding, width, 0, name)
    return old is not None or width.weights != FLOAT
