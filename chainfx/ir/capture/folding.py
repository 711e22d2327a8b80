"""Weights that are computed from tensors of the model alone, made once and stored.

A weight norm, a standardized weight, a transposed one: such a layer has no weight that a pass could prune or quantize,
only nodes that compute it, the same for every input. Here the nodes run once, and the layer reads what they give::

    linear(x, _weight_norm(v, g))      ->   linear(x, weight)
    conv2d(x, weight_orig * mask)      ->   conv2d(x, mask_weight(weight, mask, "unstructured"))

The second line is what ``torch.nn.utils.prune`` leaves in a model: its mask becomes a mask that all passes know.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from chainfx.ir.graph import (
    LAYERS,
    call_operator,
    changes_in_place,
    edit,
    operator_of,
    ops,
    origin,
    seeded,
)

__all__ = ["FoldedWeight", "fold_weights"]

_WEIGHT, _BIAS = 1, 2
_NAMES = {_WEIGHT: "weight", _BIAS: "bias"}


@dataclass(frozen=True, slots=True)
class FoldedWeight:
    """A weight or bias that capture computed: its path in the graph, and those in the model that it comes from."""

    path: str
    sources: tuple[str, ...]


def fold_weights(graph_module: GraphModule, model: nn.Module) -> tuple[FoldedWeight, ...]:
    """Store every weight and bias of a layer that is computed from tensors of ``model`` which nothing else reads.

    ``graph_module`` is the graph of ``model``, and is changed in place. What depends on the mode or on chance stays
    computed. So does a weight whose parameters something else reads, as they would be stored twice, and one that none
    of them is as large as, such as the product of two thin matrices. A mask that ``torch.nn.utils.prune`` left becomes
    a node, beneath which the weight is the one that the model has.
    """
    folded = [_fold(graph_module, model, each) for each in _computed(graph_module)]
    done = tuple(each for each in folded if each is not None)
    if done:
        edit.tidy(graph_module)
    return done


@dataclass(frozen=True)
class _Computed:
    """One weight (or bias: ``position``), all layers that read it, and all nodes that compute it, sources included."""

    position: int
    layers: tuple[Node, ...]
    nodes: tuple[Node, ...]

    @property
    def value(self) -> Node:
        return edit.input_of(self.layers[0], self.position)

    @property
    def sources(self) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if node.op == "get_attr")


def _computed(graph_module: GraphModule) -> list[_Computed]:
    """The weights and biases that are computed from tensors of the network alone; one for all calls of a layer."""
    found: dict[tuple[int, str], list[tuple[Node, list[Node]]]] = {}
    for layer in graph_module.graph.nodes:
        for position in (_WEIGHT, _BIAS) if layer.op == "call_function" and layer.target in LAYERS else ():
            value = layer.args[position]
            if isinstance(value, Node) and origin(value) is None:
                nodes = _ancestors(value)
                if nodes is not None and all(_is_fixed(node, graph_module) for node in nodes):
                    found.setdefault((position, _text(value)), []).append((layer, nodes))
    every = [
        _Computed(position, tuple(layer for layer, _ in calls), tuple({n: None for _, nodes in calls for n in nodes}))
        for (position, _), calls in found.items()
    ]
    return [each for each in every if _is_read_here_alone(graph_module, each)]


def _ancestors(value: Node) -> list[Node] | None:
    """A node and all that it is computed from; ``None`` if it reads an input or calls a module."""
    seen, waiting = {value: None}, [value]
    while waiting:
        for node in waiting.pop().all_input_nodes:
            if node not in seen:
                seen[node] = None
                waiting.append(node)
    return None if any(node.op in ("placeholder", "call_module") for node in seen) else sorted(seen)


def _is_fixed(node: Node, graph_module: GraphModule) -> bool:
    return node.op == "get_attr" or (bool(node.all_input_nodes) and not changes_in_place(node, graph_module))


def _text(value: Any) -> str:
    """What computes a value, written out; equal for two nodes that compute the same."""
    if isinstance(value, Node):
        return f"{value.target}" if value.op == "get_attr" else f"{value.target}({_text([value.args, value.kwargs])})"
    if isinstance(value, tuple | list):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}={_text(item)}" for key, item in value.items())
    return repr(value)


def _is_read_here_alone(graph_module: GraphModule, computed: _Computed) -> bool:
    """Whether it is computed from parameters that nothing but these layers reads, under any of their names."""
    parameters = set(map(id, _parameters(graph_module, computed)))
    read = [node for node in computed.nodes if node.op != "get_attr"]
    for node in graph_module.graph.find_nodes(op="get_attr"):
        if id(getattr(*edit.parent_of(graph_module, str(node.target)), None)) in parameters:
            read.append(node)
    inside = {*computed.nodes, *computed.layers}
    return bool(parameters) and all(inside.issuperset(node.users) for node in read)


def _parameters(graph_module: GraphModule, computed: _Computed) -> list[nn.Parameter]:
    tensors = [edit.get_tensor(graph_module, str(node.target)) for node in computed.sources]
    return [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]


def _fold(graph_module: GraphModule, model: nn.Module, computed: _Computed) -> FoldedWeight | None:
    masked = _masked(graph_module, computed)
    if masked is not None:
        return _put_mask(graph_module, model, computed, *masked)
    value = _evaluated(graph_module, computed)
    if value is None or all(each.numel() != value.numel() for each in _parameters(graph_module, computed)):
        return None
    sources = tuple(str(node.target) for node in computed.sources)
    trains = any(edit.get_tensor(graph_module, source).requires_grad for source in sources)
    path = _path_of(computed, model)
    edit.place_tensor(graph_module, path, nn.Parameter(value.detach().clone(), requires_grad=trains))
    _read_instead(graph_module.graph, computed, path)
    return FoldedWeight(path, sources)


def _evaluated(graph_module: GraphModule, computed: _Computed) -> Tensor | None:
    """The value of a weight; ``None`` if it is another one each time."""
    values = []
    devices = {edit.get_tensor(graph_module, str(source.target)).device for source in computed.sources}
    for seed in (0, 1):
        with torch.no_grad(), seeded(seed, devices):
            known: dict[Node, Any] = {}
            for node in computed.nodes:
                args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
                is_tensor = node.op == "get_attr"
                known[node] = (
                    edit.get_tensor(graph_module, str(node.target)) if is_tensor else call_operator(node, args, kwargs)
                )
            values.append(known[computed.value])
    one, other = values
    return one if one.is_meta or torch.equal(one, other) else None


def _masked(graph_module: GraphModule, computed: _Computed) -> tuple[Node, str, Tensor] | None:
    """The parameter, and the path and the values of the mask, of a weight that is the product of both."""
    factors = computed.value.all_input_nodes
    if computed.position != _WEIGHT or operator_of(computed.value).name != "mul" or len(factors) != 2:
        return None
    for weight, mask in (factors, reversed(factors)):
        source = _moved(mask)
        if weight.op == "get_attr" and source is not None:
            values = edit.get_tensor(graph_module, str(source.target))
            stored = edit.get_tensor(graph_module, str(weight.target))
            plain = isinstance(stored, nn.Parameter) and not isinstance(values, nn.Parameter)
            if plain and values.shape == stored.shape and not values.is_meta and bool((values == values.bool()).all()):
                return weight, str(source.target), values.bool()
    return None


def _moved(value: Node) -> Node | None:
    """The ``get_attr`` node that another dtype or device of which a node gives."""
    while value.op != "get_attr":
        if operator_of(value).name != "to":
            return None
        value = edit.input_of(value)
    return value


def _put_mask(
    graph_module: GraphModule, model: nn.Module, computed: _Computed, weight: Node, mask: str, values: Tensor
) -> FoldedWeight:
    source = str(weight.target)
    path = _path_of(computed, model)
    edit.place_tensor(graph_module, path, edit.get_tensor(graph_module, source))
    edit.place_tensor(graph_module, mask, values)
    stored = _read_instead(graph_module.graph, computed, path)
    graph = graph_module.graph
    with graph.inserting_after(stored):
        pattern = graph.get_attr(mask)
    with graph.inserting_after(pattern):
        masked = graph.call_function(ops.mask_weight, (stored, pattern, "unstructured"))
    stored.replace_all_uses_with(masked, lambda user: user is not masked)
    return FoldedWeight(path, (source, mask))


def _path_of(computed: _Computed, model: nn.Module) -> str:
    """Where to store a weight: under the name that it has without what computes it, if the model has no such tensor."""
    known = edit.tensors_of(edit.modules_by_path(model))
    largest = max((str(node.target) for node in computed.sources), key=lambda path: known[path].dim())
    prefix, normed, _ = largest.partition(".parametrizations.")
    name = _NAMES[computed.position]
    if not normed:
        prefix, _, last = largest.rpartition(".")
        name = name if last.startswith(name) else last
    paths = [f"{prefix}.{each}".lstrip(".") for each in (name, f"folded_{name}")]
    return paths[paths[0] in known]


def _read_instead(graph: Graph, computed: _Computed, path: str) -> Node:
    """Let the layers read what is stored at ``path``; returns the node that reads it."""
    first = computed.layers[0]
    with graph.inserting_before(first):
        stored = graph.get_attr(path)
    stored.meta.update({key: each for key, each in first.meta.items() if key == "nn_module_stack"})
    for layer in computed.layers:
        layer.update_arg(computed.position, stored)
    return stored
