"""From train form to deploy form: real integer codes instead of fake-quantized weights, exits as separate segments."""

from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from chainfx.ir.graph import check_answers, edit, exits_of, ops, output_node, segments, torchao_weight, value_of

__all__ = ["fold_codes", "read_by", "sharing_copy", "split_segments", "to_codes"]

# in the order a graph has them, each reads stored tensors once those before it are folded
_FOLDED = (ops.dequantize_weight, ops.look_up, ops.mask_weight, torchao_weight)


def to_codes(graph_module: GraphModule, *, shared: bool = False) -> GraphModule:
    """The network in eval mode with integer codes (uint8) and scales for fake-quantized weights; equal bit for bit.

    Tensors are shared with ``graph_module``; a float weight that nothing else reads is not part of the result. A
    quantized weight that is looked up in a codebook stays that, since its places and the codebook are less to store;
    ``shared=True`` gives it codes too, and takes away the marks of coded weights, as engines run it.
    """
    lowered = sharing_copy(graph_module)
    if shared:
        _take_marks_away(lowered)
    made: dict[tuple[object, ...], tuple[str, str]] = {}
    for node in lowered.graph.find_nodes(op="call_function", target=ops.quantize_weight):
        weight = edit.input_of(node)
        bits, scheme, axis = node.args[1:]
        if weight.op != "get_attr" and not shared:
            continue
        key = (*read_by(weight), bits, scheme, axis)
        if key not in made:
            with torch.no_grad():
                codes, scale = ops.encode_weight(value_of(lowered, weight), bits, scheme, axis)
            stored = edit.origin(weight)
            holder = _holder(lowered, "" if stored is None else str(stored.target))
            made[key] = (f"{holder}.codes", f"{holder}.scale")
            edit.set_tensor(lowered, made[key][0], codes.to(torch.uint8), parameter=False)
            edit.set_tensor(lowered, made[key][1], scale, parameter=False)
        with lowered.graph.inserting_before(node):
            read = [lowered.graph.get_attr(path) for path in made[key]]
            decoded = lowered.graph.call_function(ops.dequantize_weight, (*read, bits, scheme))
        _replace(node, decoded)
    edit.tidy(lowered)
    return lowered


def _take_marks_away(graph_module: GraphModule) -> None:
    for node in graph_module.graph.find_nodes(op="call_function", target=ops.coded_weight):
        node.replace_all_uses_with(edit.input_of(node))
        graph_module.graph.erase_node(node)


def read_by(node: Node) -> tuple[object, ...]:
    """What the value of a node is made of: the paths of stored tensors and the ops on them."""
    if node.op == "get_attr":
        return (node.target,)
    return node.target, *(part for each in node.all_input_nodes for part in read_by(each))


def fold_codes(graph_module: GraphModule) -> GraphModule:
    """The deploy form in float: weights are decoded and masked once, as float buffers; the rest is shared.

    What quantizes an activation is rounded without the arithmetic that a gradient would need; equal bit for bit.
    """
    folded = sharing_copy(graph_module)
    for node in folded.graph.find_nodes(op="call_function", target=ops.quantize_activation):
        node.target = ops.round_activation
    made: dict[tuple[object, ...], str] = {}
    for node in folded.graph.nodes:
        if node.target not in _FOLDED:
            continue
        key = node.target, *map_arg(node.args, lambda each: str(each.target))
        if key not in made:
            stored = map_arg(node.args, lambda each: edit.get_tensor(folded, str(each.target)))
            made[key] = f"{edit.fresh_path(folded, f'decoded_{node.name}')}.weight"
            with torch.no_grad():
                edit.set_tensor(folded, made[key], node.target(*stored), parameter=False)
        with folded.graph.inserting_before(node):
            _replace(node, folded.graph.get_attr(made[key]))
    edit.tidy(folded)
    return folded


def split_segments(graph_module: GraphModule) -> list[GraphModule]:
    """Cut a network with exits into segments, graphs that share its tensors, one for each exit and one for the rest.

    Segment i returns ``(logits, confidence, *carried)``. Segment 0 takes the network's inputs; segment i+1 takes what
    segment i carried (tensors, batch first), and the last returns its logits alone. Values that are not tensors, such
    as sizes, are computed again where they are used, since the batch shrinks between segments. Shapes must be in
    ``node.meta["val"]``. Without exits there is one segment, the network. Raises
    :class:`~chainfx.errors.GraphError` for exits whose answers do not fit together.
    """
    check_answers(graph_module)
    parts = segments(graph_module)
    inputs = list(graph_module.graph.find_nodes(op="placeholder"))
    home = {node: index for index, part in enumerate(parts) for node in part} | dict.fromkeys(inputs, 0)
    marks = exits_of(graph_module)
    returned: Any = output_node(graph_module).args[0]
    outputs = returned if marks else [returned]
    needed = [_needed(part, home) for part in parts]
    entries, found = inputs, []
    for index, output in enumerate(outputs):
        later = {node for wanted in needed[index + 1 :] for node in wanted if home[node] <= index}
        carried = sorted(node for node in later if _is_carried(node))
        graph, made = _copied(needed[index], entries)
        if index < len(marks):
            sure = graph.call_function(ops.confidence, (made[output], marks[index].criterion))
            graph.output((made[output], sure, *(made[node] for node in carried)))
        else:
            graph.output(map_arg(output, made.__getitem__))
        found.append(GraphModule(graph_module, graph).eval())
        entries = carried
    return found


def _holder(lowered: GraphModule, weight: str) -> str:
    """The module that codes of a weight go into: that of the weight, or a new one where others would see the change."""
    module = weight.rpartition(".")[0]
    shared = any(f"{module}.".startswith(f"{leaf.target}.") for leaf in lowered.graph.find_nodes(op="call_module"))
    if not module or shared or any(hasattr(lowered.get_submodule(module), name) for name in ("codes", "scale")):
        return edit.fresh_path(lowered, f"codes_{weight.replace('.', '_')}")
    return module


def sharing_copy(graph_module: GraphModule) -> GraphModule:
    """The same graph over the same tensors and leaf modules, in eval mode, free to be edited."""
    graph = Graph()
    graph.output(graph.graph_copy(graph_module.graph, {}))
    return GraphModule(graph_module, graph).eval()


def _replace(node: Node, other: Node) -> None:
    other.meta = dict(node.meta)
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)


def _is_carried(node: Node) -> bool:
    """Whether a value is handed over between segments: a tensor that is computed, not an attribute or a size."""
    return node.op != "get_attr" and isinstance(node.meta.get("val"), torch.Tensor)


def _needed(part: tuple[Node, ...], home: dict[Node, int]) -> list[Node]:
    """What a segment computes or reads: its own nodes, values handed over, and what must be computed again."""
    own, found, waiting = set(part), set[Node](), list(part)
    while waiting:
        node = waiting.pop()
        if node not in found and node in home:
            found.add(node)
            if node in own or not _is_carried(node):
                waiting.extend(node.all_input_nodes)
    return sorted(found)


def _copied(needed: list[Node], entries: list[Node]) -> tuple[Graph, dict[Node, Node]]:
    """A new graph that takes ``entries`` and computes ``needed``, and the new node of each old one."""
    graph = Graph()
    made = {node: graph.placeholder(node.name) for node in entries}
    for node in needed:
        if node not in made:
            made[node] = graph.node_copy(node, made.__getitem__)
    return graph, made
