"""Layers that compute in another type of floating point numbers than the network around them."""

import torch
from torch.fx import GraphModule, Node

from chainfx.ir.graph import edit
from chainfx.ir.graph.layer import Layer, layers_of

__all__ = ["cast_layer", "casts_follow_weights"]


def cast_layer(layer: Layer, dtype: torch.dtype, made: dict[Node, Node]) -> None:
    """Let a layer read its input in a type, and hand its result on in the type that it had.

    ``made``: casts of the same type by what they read; one that is there is used again, a new one is put in.
    """
    graph, source, given = layer.node.graph, layer.source, layer.node.meta["val"]
    if source not in made:
        with graph.inserting_before(layer.node):
            made[source] = graph.call_method("to", (source, dtype))
    layer.read_input(made[source])
    with graph.inserting_after(layer.node):
        widened = graph.call_method("to", (layer.node, given.dtype))
    layer.node.replace_all_uses_with(widened, delete_user_cb=lambda user: user is not widened)
    widened.meta["val"] = given


def casts_follow_weights(graph_module: GraphModule) -> None:
    """Let the casts around layers name the type that weights have now, after all of them got the same one."""
    for layer in layers_of(graph_module):
        for cast in (layer.source, *layer.node.users):
            if cast.op == "call_method" and cast.target == "to" and isinstance(cast.args[1], torch.dtype):
                cast.update_arg(1, layer.tensor.dtype)
    edit.tidy(graph_module)
