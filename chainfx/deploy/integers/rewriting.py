"""A network with layers in integers: each with what follows it in one call, and codes handed from call to call."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from chainfx.deploy.integers.activations import is_quantizer
from chainfx.deploy.integers.chains import Chain, chain_of
from chainfx.deploy.integers.choice import geometry_of, obstacle, weight_codes, width_of
from chainfx.deploy.integers.grids import Decode, Encode, decode_weights, grid_of, weight_unit
from chainfx.deploy.integers.kernels import LayerCall
from chainfx.deploy.integers.layers import IntegerLayer, IntegerMaxPool
from chainfx.deploy.integers.lowering import Lowered, Lowering
from chainfx.deploy.integers.machine import Machine
from chainfx.deploy.integers.moving import grid_at, holds_codes, keeps_codes, move_quantizers, operands, window_of
from chainfx.ir.graph import (
    Layer,
    affine_of,
    changes_in_place,
    edit,
    ends_of,
    input_of,
    layers_of,
    operator_of,
    torchao_weight_of,
    value_of,
)

__all__ = ["lower_to_integers", "mark_overwrites", "of_torchao", "why_in_float"]

_MAKE_NEW = (IntegerLayer, Encode, Decode, IntegerMaxPool)  # what answers with a tensor of its own, never with a view


def why_in_float(graph_module: GraphModule, machine: Machine) -> dict[Layer, str]:
    """For each layer of a graph with codes of weights why it runs in float; the empty string if it need not."""
    ends = frozenset[Layer]().union(*ends_of(graph_module))
    return {layer: obstacle(layer, machine, at_end=layer in ends) for layer in layers_of(graph_module)}


def lower_to_integers(graph_module: GraphModule, machine: Machine) -> Lowering:
    """Put integer layers in place wherever a machine can run them, and say what runs how.

    Expects a graph with codes of weights (``dequantize_weight``), in eval mode and with shapes in
    ``node.meta["val"]``, and changes it, but none of the modules that it calls. What stays in float reads decoded
    values.
    """
    reasons = {layer.name: reason for layer, reason in why_in_float(graph_module, machine).items()}
    move_quantizers(graph_module)
    work = _Rewriting(graph_module)
    for layer in layers_of(graph_module):
        if not reasons[layer.name]:
            chain = chain_of(layer, work.claimed)
            work.claimed.update(chain.nodes)
            work.chains[chain.end] = chain
    layers = {layer.node: layer for layer in layers_of(graph_module)}
    for node in list(graph_module.graph.nodes):
        _rewrite(work, node)
    rows = [
        Lowered(layers[node].path, operator_of(node).spelling, "float", reasons[node.name])
        if node in layers and row.engine == "float"
        else row
        for node, row in work.rows
    ]
    edit.drop_unused_nodes(graph_module)
    _reshape_in_any_layout(graph_module)
    return Lowering(machine.instructions, tuple(rows))


def of_torchao(node: Node) -> str:
    """What runs a linear call whose weight is a tensor of torchao; empty for any other node."""
    weight = torchao_weight_of(node)
    return "" if weight is None else f"torchao runs it, with {str(weight.args[1]).partition('(')[0]}"


def _reshape_in_any_layout(graph_module: GraphModule) -> None:
    """Let ``view`` copy where it must: what the kernels give lies in memory channels-last, which it refuses."""
    for node in graph_module.graph.find_nodes(op="call_method", target="view"):
        to_dtype = any(isinstance(value, torch.dtype) for value in (*node.args, *node.kwargs.values()))
        if not to_dtype and not any(changes_in_place(user, graph_module) for user in node.users):
            node.target = "reshape"
    for node in graph_module.graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
        node.target = torch.ops.aten.reshape.default


def mark_overwrites(graph_module: GraphModule) -> None:
    """Let what adds to its second input, or encodes its only one, write over that where nothing reads it afterwards."""
    for node in graph_module.graph.find_nodes(op="call_module"):
        module = edit.module_of(graph_module, node, IntegerLayer, Encode)
        if isinstance(module, Encode):
            module.overwrites = _is_done_with(graph_module, input_of(node), node)
        elif isinstance(module, IntegerLayer) and len(node.args) == 2:
            module.overwrites = _is_done_with(graph_module, input_of(node, 1), node)


def _is_done_with(graph_module: GraphModule, source: Node, reader: Node) -> bool:
    """Whether a node makes a new tensor, and a later one is the last to read it, none of them as a view."""
    modules = [edit.module_of(graph_module, node, *_MAKE_NEW) for node in (source, *source.users)]
    return all(module is not None for module in modules) and max(source.users) is reader


@dataclass
class _Rewriting:
    """A graph at work.

    ``chains``: by their last nodes. ``codes`` and ``values``: for nodes of the old graph the new ones that give their
    codes, and their float values where these are made anew.
    """

    graph_module: GraphModule
    chains: dict[Node, Chain] = field(default_factory=dict)
    claimed: set[Node] = field(default_factory=set)
    codes: dict[Node, Node] = field(default_factory=dict)
    values: dict[Node, Node] = field(default_factory=dict)
    rows: list[tuple[Node, Lowered]] = field(default_factory=list)

    def call(self, name: str, module: torch.nn.Module, arguments: tuple[Node, ...], like: Node) -> Node:
        """A new node before ``like`` that calls a new module."""
        path = edit.fresh_path(self.graph_module, name)
        edit.place_module(self.graph_module, path, module)
        with self.graph_module.graph.inserting_before(like):
            node = self.graph_module.graph.call_module(path, arguments)
        node.meta = dict(like.meta)
        return node

    def value(self, node: Node, before: Node) -> Node:
        """The float value of a node that exists as codes, decoded once."""
        if node not in self.values:
            decode = Decode(grid_at(self.graph_module, node))
            self.values[node] = self.call(f"decode_{node.name}", decode, (self.codes[node],), before)
            self.values[node].meta = dict(node.meta)
        return self.values[node]


def _rewrite(work: _Rewriting, node: Node) -> None:
    """Replace one node of the old graph, in the order of the graph."""
    if node in work.chains:
        _place_layer(work, work.chains[node])
    elif node in work.claimed or node.op in ("placeholder", "get_attr"):
        return
    elif is_quantizer(node) and _is_wanted(work, node):
        encode = Encode(grid_of(work.graph_module, node))
        work.codes[node] = work.call(f"encode_{input_of(node).name}", encode, (input_of(node),), node)
    elif keeps_codes(work.graph_module, node) and holds_codes(work.graph_module, node) and _have_codes(work, node):
        _move_codes(work, node)
    else:
        for source in node.all_input_nodes:
            if source in work.codes:
                node.replace_input_with(source, work.value(source, node))
        if node.op != "output" and isinstance(node.meta.get("val"), Tensor) and not edit.is_dialect(node):
            spelling = operator_of(node, work.graph_module.get_submodule).spelling
            reason = of_torchao(node) or "it has no integer form"
            work.rows.append((node, Lowered(node.name, spelling, "float", reason)))


def _is_wanted(work: _Rewriting, node: Node) -> bool:
    """Whether a layer in integers reads codes of a node, itself or as they are moved on."""
    for user in node.users:
        readers = [chain for chain in work.chains.values() if user in chain.nodes]
        if any(user is chain.layer.node or (chain.added is node and chain.quantizer) for chain in readers):
            return True
        if not readers and keeps_codes(work.graph_module, user) and _is_wanted(work, user):
            return True
    return False


def _have_codes(work: _Rewriting, node: Node) -> bool:
    return all(source in work.codes for source in operands(node))


def _move_codes(work: _Rewriting, node: Node) -> None:
    """Do with codes what a node does with values."""
    window = window_of(work.graph_module, node)
    if window is not None:
        made = work.call(f"integer_{node.name}", IntegerMaxPool(*window), (work.codes[input_of(node)],), node)
    else:
        with node.graph.inserting_before(node):
            made = node.graph.node_copy(node, lambda each: work.codes.get(each, each))
    work.codes[node] = made
    spelling = operator_of(node, work.graph_module.get_submodule).spelling
    work.rows.append((node, Lowered(node.name, spelling, "int8", "")))


def _place_layer(work: _Rewriting, chain: Chain) -> None:
    """Put the call of an integer layer in the place of the last node of its chain."""
    layer, graph_module = chain.layer, work.graph_module
    added = _added(work, chain)
    integer_layer = _integer_layer(chain, added is not None and added in work.codes.values())
    arguments = (work.codes[input_of(layer.node)],) + (() if added is None else (added,))
    made = work.call(f"integer_{layer.name}", integer_layer, arguments, chain.end)
    if chain.quantizer is None:
        chain.end.replace_all_uses_with(made)
        work.values[chain.end] = made
    else:
        work.codes[chain.end] = made
    joined = [operator_of(node, graph_module.get_submodule).spelling for node in chain.nodes[1:]]
    reason = f"with {', '.join(joined)}" if joined else ""
    work.rows.append((chain.end, Lowered(layer.path, operator_of(layer.node).spelling, "int8", reason)))


def _added(work: _Rewriting, chain: Chain) -> Node | None:
    """The second input of a layer: codes if codes are written, else values."""
    if chain.added is None:
        return None
    if chain.added not in work.codes:
        return work.values.get(chain.added, chain.added)
    return work.codes[chain.added] if chain.quantizer is not None else work.value(chain.added, chain.end)


def _integer_layer(chain: Chain, adds_codes: bool) -> IntegerLayer:
    layer, graph_module = chain.layer, chain.layer.graph_module
    weight, scale, bits, scheme = _weight(layer)
    bias = None if layer.bias is None else edit.get_tensor(graph_module, str(layer.bias.target)).detach().double()
    if chain.norm is not None:
        factor, mean, beta = affine_of(chain.norm)
        scale, bias = scale * factor, factor * ((0.0 if bias is None else bias) - mean) + beta
    activation, numbers = chain.activation
    call = LayerCall(
        read=grid_at(graph_module, input_of(layer.node)),
        bits=bits,
        scheme=scheme,
        geometry=geometry_of(layer),
        written=None if chain.quantizer is None else grid_of(graph_module, chain.quantizer),
        added=grid_at(graph_module, chain.added) if chain.added is not None and adds_codes else None,
        activation=activation,
        numbers=numbers,
    )
    return IntegerLayer(call, weight, scale.float(), None if bias is None else bias.float())


def _weight(layer: Layer) -> tuple[Tensor, Tensor, int, str]:
    """The weight of a layer, stored codes or (if a mask is on them) integers; what each output channel multiplies."""
    coded = weight_codes(layer)
    assert coded is not None  # else the layer is not chosen
    bits, scheme = width_of(coded)
    codes, stored = (edit.get_tensor(layer.graph_module, str(input_of(coded, at).target)) for at in (0, 1))
    scale = weight_unit(stored, bits, scheme).reshape(-1).expand(len(codes)).clone()
    if layer.mask is None:
        return codes, scale, bits, scheme
    integers = decode_weights(codes, bits, scheme)
    return integers * value_of(layer.graph_module, input_of(layer.mask, 1)), scale, bits, scheme
