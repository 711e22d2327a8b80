"""Embeddings: the tables that words, or other integers, are looked up in, and the calls that read them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node

from chainfx.ir.graph import edit
from chainfx.ir.graph.layer import Weighted, layer_path
from chainfx.ir.graph.matrices import Matrix, matrices_of

__all__ = ["Table", "embeddings_of", "open_embedding", "tables_of"]

_DEFAULTS = {"padding_idx": None, "max_norm": None, "norm_type": 2.0, "scale_grad_by_freq": False, "sparse": False}
_ARGUMENTS = ("input", "weight", *_DEFAULTS)


@dataclass(frozen=True, slots=True)
class Table:
    """A parameter (rows, columns) that embeddings read: the parameter, the calls of the embeddings, and what forbids
    to put a quantizer between (the empty text if nothing does).
    """

    matrix: Matrix
    calls: tuple[Node, ...]
    obstacle: str

    @property
    def path(self) -> str:
        """The path of the embedding as a module of the network: ``bert.words``."""
        return layer_path(self.matrix.path)


def tables_of(graph_module: GraphModule) -> Iterator[Table]:
    """The tables of a graph in train form, in the order of its parameters.

    >>> import torch
    >>> from chainfx.ir.capture import capture
    >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2))
    >>> for table in tables_of(capture(model, (torch.zeros(1, 3, dtype=torch.int64),))):
    ...     print(table.path, table.matrix.shape, table.calls, repr(table.obstacle))
    0 (9, 4) (_0,) ''
    """
    for matrix in matrices_of(graph_module):
        calls = {node: given for node in (*matrix.modules, *matrix.others) if (given := _given(graph_module, node))}
        if calls:
            others = [node.name for node in (*matrix.modules, *matrix.others) if node not in calls]
            obstacle = f"{others[0]!r} reads its table too, in float" if others else ""
            if any(given["max_norm"] is not None for given in calls.values()):
                obstacle = "max_norm changes its table at every call"
            yield Table(matrix, tuple(calls), obstacle)


def open_embedding(graph_module: GraphModule, node: Node) -> Weighted:
    """Make an embedding a call of ``F.embedding`` with all arguments by position, and its table a node, in place.

    Its name stays. Its gradient is dense from then on, because what may come to lie before it passes no other on.
    """
    given = {**(_given(graph_module, node) or {}), "sparse": False}
    if not isinstance(given["weight"], Node):
        with node.graph.inserting_before(node):
            given["weight"] = node.graph.get_attr(f"{node.target}.weight")
    node.op, node.target = "call_function", F.embedding
    node.args, node.kwargs = tuple(given[name] for name in _ARGUMENTS), {}
    return Weighted(graph_module, node)


def embeddings_of(graph_module: GraphModule) -> Iterator[Weighted]:
    """The embeddings that :func:`open_embedding` made calls whose table is a tensor of the network, in graph order."""
    for node in graph_module.graph.find_nodes(op="call_function", target=F.embedding):
        if len(node.args) == len(_ARGUMENTS) and edit.origin(node.args[1]) is not None:
            yield Weighted(graph_module, node)


def _given(graph_module: GraphModule, node: Node) -> dict[str, Any] | None:
    """The arguments of an embedding by name, the table of a module as ``None``; ``None`` for any other node."""
    module = edit.module_of(graph_module, node, nn.Embedding)
    if module is not None:
        return {"input": node.args[0], "weight": None, **{name: getattr(module, name) for name in _DEFAULTS}}
    if node.op == "call_function" and node.target is F.embedding:
        return {**_DEFAULTS, **dict(zip(_ARGUMENTS, node.args, strict=False)), **node.kwargs}
    return None
