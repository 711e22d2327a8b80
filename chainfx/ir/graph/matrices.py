"""Matrices: the parameters of two or more dimensions, where nearly all of a network lies, and what reads them."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from chainfx.ir.graph import edit

__all__ = ["Matrix", "matrices_of"]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A parameter of two or more dimensions, and the nodes that read it.

    ``paths``: every path of the parameter, several if it is tied. ``shape``: its sizes. ``layers``: the calls of
    convolution and linear layers whose weight it is, or whose weight is computed from it. ``modules``: the calls of
    modules that hold it. ``others``: all other nodes at which it, or what is computed from tensors of the network
    alone, meets an activation.

    >>> import torch
    >>> from torch import nn
    >>> from chainfx.ir.capture import capture
    >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2))
    >>> for matrix in matrices_of(capture(model, (torch.zeros(1, 3, dtype=torch.int64),))):
    ...     print(matrix.path, matrix.shape, matrix.layers, matrix.modules)
    0.weight (9, 4) () (_0,)
    1.weight (2, 4) (_1,) ()
    """

    paths: tuple[str, ...]
    shape: tuple[int, ...]
    layers: tuple[Node, ...]
    modules: tuple[Node, ...]
    others: tuple[Node, ...]

    @property
    def path(self) -> str:
        """The first path of the parameter."""
        return self.paths[0]

    @property
    def name(self) -> str:
        """How chainfx names it: by the layer whose weight it is or the module that holds it, else by its path."""
        calls = (*self.layers, *self.modules)
        return calls[0].name if calls else self.path

    @property
    def names(self) -> frozenset[str]:
        """Every name by which a pass may say that it left the parameter alone, see :class:`~chainfx.passes.Skipped`."""
        prefixes = (path[:place] for path in self.paths for place, letter in enumerate(path) if letter == ".")
        readers = (node.name for node in (*self.layers, *self.modules, *self.others))
        return frozenset((*self.paths, *prefixes, *readers))


def matrices_of(graph_module: GraphModule) -> tuple[Matrix, ...]:
    """The parameters of two or more dimensions of a graph in train form, each once, in the order of its parameters."""
    paths: dict[int, list[str]] = {}
    shapes: dict[int, tuple[int, ...]] = {}
    for path, parameter in graph_module.named_parameters(remove_duplicate=False):
        if parameter.dim() > 1:
            paths.setdefault(id(parameter), []).append(path)
            shapes[id(parameter)] = tuple(parameter.shape)
    kinds = _readers(graph_module)
    return tuple(Matrix(tuple(paths[key]), shapes[key], *(tuple(kind.get(key, ())) for kind in kinds)) for key in paths)


_Readers = dict[int, dict[Node, None]]


def _readers(graph_module: GraphModule) -> tuple[_Readers, _Readers, _Readers]:
    """For each tensor of the network, by its id, the layers, the modules and the other nodes that read it."""
    layers: _Readers = {}
    modules: _Readers = {}
    others: _Readers = {}
    fixed: dict[Node, dict[int, None]] = {}  # nodes that depend on no input, each with the tensors it is computed from
    for node in graph_module.graph.nodes:
        is_layer = node.op == "call_function" and node.target in edit.LAYERS
        if node.op == "get_attr":
            tensor = getattr(*edit.parent_of(graph_module, str(node.target)), None)
            fixed[node] = {id(tensor): None}
            continue
        if node.op == "call_module":
            _enter(modules, node, map(id, graph_module.get_submodule(str(node.target)).parameters()))
        if node.op.startswith("call_") and not is_layer and fixed.keys() >= {*node.all_input_nodes}:
            fixed[node] = _together(fixed, node.all_input_nodes)
        else:
            weights = [each for each in node.all_input_nodes if is_layer and each is node.args[1]]
            _enter(layers, node, _together(fixed, weights))
            _enter(others, node, _together(fixed, [each for each in node.all_input_nodes if each not in weights]))
    return layers, modules, others


def _together(fixed: dict[Node, dict[int, None]], nodes: Iterable[Node]) -> dict[int, None]:
    return {key: None for node in nodes for key in fixed.get(node, ())}


def _enter(readers: _Readers, node: Node, read: Iterable[int]) -> None:
    for key in read:
        readers.setdefault(key, {})[node] = None
