"""Put the branches of every ``torch.cond`` into the graph around it, so that their nodes count like all others."""

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from chainfx.errors import CostError

__all__ = ["either", "inline_branches"]


def either(true: Any, false: Any, predicate: Any) -> Any:
    """One of two results of the same shape; it stands where a ``torch.cond`` was and costs nothing itself."""
    return true


def inline_branches(graph_module: GraphModule) -> tuple[GraphModule, dict[Node, str], tuple[str, ...]]:
    """Put both branches of every ``torch.cond`` of a graph in line; a graph without one is returned as it is.

    The new graph reads the same tensors. It is for reading shapes and costs, not for running. Two more things are
    returned. The first says of every node that is in a branch which one that is, such as ``cond.true``, or
    ``cond.true.cond.false`` for a ``torch.cond`` inside of that. The second has the names of the conditions, outer ones
    before inner ones: a condition has the name of its node, behind the branch that it is in.

    Raises :class:`CostError` if the graph does not hold the branches.
    """
    if not graph_module.graph.find_nodes(op="call_function", target=torch.ops.higher_order.cond):
        return graph_module, {}, ()
    inliner = _Inliner()
    inliner.graph.output(inliner.copy(graph_module, "", "", None))
    return GraphModule(graph_module, inliner.graph), inliner.branch_of, tuple(inliner.conditions)


def _is_condition(node: Node) -> bool:
    return node.op == "call_function" and node.target is torch.ops.higher_order.cond


class _Inliner:
    """Copies a graph node by node, and in place of a condition both its branches."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.branch_of: dict[Node, str] = {}
        self.conditions: list[str] = []

    def copy(self, source: GraphModule, path: str, branch: str, inputs: Iterator[Any] | None) -> Any:
        """Copy what ``source``, at an attribute path of the root, computes from ``inputs``; returns what it returns."""
        known: dict[Node, Any] = {}
        for node in source.graph.nodes:
            if node.op == "output":
                return map_arg(node.args[0], known.__getitem__)
            if node.op == "placeholder" and inputs is not None:
                known[node] = next(inputs)
            elif _is_condition(node):
                known[node] = self._condition(source, path, branch, node, known)
            elif node.target is operator.getitem and isinstance(known.get(node.args[0]), tuple | list):
                known[node] = known[node.args[0]][node.args[1]]
            elif node.op != "get_attr" or not isinstance(_attribute(source, str(node.target)), GraphModule):
                known[node] = self._node(node, path, branch, known)
        return None

    def _node(self, node: Node, path: str, branch: str, known: dict[Node, Any]) -> Node:
        args: Any = map_arg(node.args, known.__getitem__)
        kwargs: Any = map_arg(node.kwargs, known.__getitem__)
        refers = node.op in ("get_attr", "call_module")
        target = f"{path}{node.target}" if refers else node.target
        name = f"{branch}.{node.name}".replace(".", "_") if branch else node.name
        made = self.graph.create_node(node.op, target, args, kwargs, name)
        made.meta = dict(node.meta)
        if branch:
            self.branch_of[made] = branch
        return made

    def _condition(self, source: GraphModule, path: str, branch: str, node: Node, known: dict[Node, Any]) -> Any:
        """Both branches in line; the node, or nodes, that stand for what the condition gives."""
        name = f"{branch}.{node.name}" if branch else node.name
        self.conditions.append(name)
        predicate, true, false, operands = node.args if len(node.args) > 3 else (*node.args, ())
        results = []
        for side, attribute in (("true", true), ("false", false)):
            stored = str(attribute.target) if isinstance(attribute, Node) and attribute.op == "get_attr" else ""
            inner = _attribute(source, stored) if stored else None
            if not isinstance(inner, GraphModule):
                raise CostError(
                    f"node {node.name!r} has a branch that is no graph of the network, {attribute}; "
                    "count a graph made by torch.export."
                )
            inputs: Any = map_arg(operands, known.__getitem__)
            results.append(self.copy(inner, f"{path}{stored}.", f"{name}.{side}", iter(inputs)))
        chosen = map_arg(predicate, known.__getitem__)
        if isinstance(results[0], Node):
            return self.graph.call_function(either, (*results, chosen))
        return [self.graph.call_function(either, (*pair, chosen)) for pair in zip(*results, strict=True)]


def _attribute(module: GraphModule, path: str) -> Any:
    prefix, _, name = path.rpartition(".")
    return getattr(module.get_submodule(prefix), name)
