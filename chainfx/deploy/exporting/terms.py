"""The layers whose results are added to something before they are quantized, as those before skip connections.

Integer kernels of chainfx add inside of the layer, without rounding in between. Runtimes that read a graph with
quantizers add two numbers that are quantized each by itself, else they run the layer in float: for them the result of
such a layer is rounded to 8 bits, over the range that it has on given data.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from chainfx.deploy.exporting.forms import Form
from chainfx.deploy.integers.activations import is_quantizer
from chainfx.deploy.integers.chains import chain_of
from chainfx.ir.graph import Layer, edit, layers_of

__all__ = ["Ranges", "ranges_of_terms", "round_terms"]

Ranges = Mapping[Node, tuple[float, float]]
"""The least and the greatest value of the result, by the node of the layer."""

_GREATEST = 255  # of uint8


def ranges_of_terms(graph_module: GraphModule, batches: Iterable[Sequence[Tensor]]) -> Ranges:
    """What the results of layers that are added before they are quantized range over, on batches as the graph takes."""
    terms = {term: layer.node for layer in layers_of(graph_module) if (term := _term(layer)) is not None}
    watch = _Watch(graph_module, terms)
    with torch.no_grad():
        for batch in batches:
            watch.run(*batch)
    return watch.ranges


def round_terms(graph_module: GraphModule, form: Form, ranges: Ranges) -> None:
    """Round the results of these layers to 8 bits, in place and before they are added."""
    for layer in list(layers_of(graph_module)):
        term = _term(layer)
        if term is None or layer.node not in ranges:
            continue
        low, high = (min(ranges[layer.node][0], 0.0), max(ranges[layer.node][1], 0.0))
        scale = max((high - low) / _GREATEST, torch.finfo(torch.float32).tiny)
        like = layer.tensor
        numbers = (
            torch.tensor(scale, device=like.device),
            torch.tensor(round(-low / scale), dtype=torch.uint8, device=like.device),
        )
        paths = [edit.fresh_path(graph_module, f"{name}_{term.name}") for name in ("scale", "zero")]
        for path, number in zip(paths, numbers, strict=True):
            edit.set_tensor(graph_module, path, number, parameter=False)
        users = list(term.users)
        with term.graph.inserting_after(term):
            made = term.graph.call_function(form.round, (term, None, None, _GREATEST, False))
        with made.graph.inserting_before(made):
            made.args = (term, *map(made.graph.get_attr, paths), _GREATEST, False)
        made.meta = dict(term.meta)
        for user in users:
            user.replace_input_with(term, made)


def _term(layer: Layer) -> Node | None:
    """The last node of a layer and its BatchNorm, if only an addition reads it whose sum is then quantized."""
    chain = chain_of(layer, set())
    if chain.added is None or (chain.quantizer is None and not all(map(is_quantizer, chain.end.users))):
        return None
    last = next(place for place, node in enumerate(chain.nodes) if chain.added in node.all_input_nodes)
    return chain.nodes[last - 1]


class _Watch(Interpreter):
    """Runs a graph, and notes the range of these nodes for the layer of each."""

    def __init__(self, graph_module: GraphModule, terms: Mapping[Node, Node]) -> None:
        super().__init__(graph_module)
        self.terms = terms
        self.ranges: dict[Node, tuple[float, float]] = {}

    def run_node(self, n: Node) -> Any:
        """Run a node as torch does, and look at what it gives."""
        value = super().run_node(n)
        if n in self.terms:
            least, greatest = (float(each) for each in value.aminmax())
            before = self.ranges.get(self.terms[n], (least, greatest))
            self.ranges[self.terms[n]] = min(before[0], least), max(before[1], greatest)
        return value
