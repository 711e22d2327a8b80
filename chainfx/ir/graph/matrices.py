"""Matrices: the parameters of two or more dimensions, where nearly all of a network lies, and what reads them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
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
    modules = edit.modules_by_path(graph_module)
    tensors = edit.tensors_of(modules)
    paths: dict[int, list[str]] = {}
    for path, tensor in tensors.items():
        if isinstance(tensor, nn.Parameter) and tensor.dim() > 1:
            paths.setdefault(id(tensor), []).append(path)
    kinds = _readers(graph_module, modules, tensors)
    return tuple(
        Matrix(tuple(each), tuple(tensors[each[0]].shape), *(tuple(kind.get(key, ())) for kind in kinds))
        for key, each in paths.items()
    )


_Readers = dict[int, dict[Node, None]]


def _readers(
    graph_module: GraphModule, modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]
) -> tuple[_Readers, _Readers, _Readers]:
    """For each tensor of the network, by its id, the layers, the modules and the other nodes that read it."""
    in_layers: _Readers = {}
    in_modules: _Readers = {}
    in_others: _Readers = {}
    fixed: dict[Node, dict[int, None]] = {}  # nodes that depend on no input, each with the tensors it is computed from
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            fixed[node] = {id(tensors.get(str(node.target))): None}
            continue
        if node.op == "call_module":
            held = edit.tensors_of(edit.modules_by_path(modules[str(node.target)]))
            _enter(in_modules, node, map(id, held.values()))
        sources = node.all_input_nodes
        constant = [each for each in sources if each in fixed]
        is_layer = node.op == "call_function" and node.target in edit.LAYERS
        if node.op.startswith("call_") and not is_layer and len(constant) == len(sources):
            fixed[node] = _together(fixed, constant)
        elif constant:
            weights = [each for each in constant if is_layer and each is node.args[1]]
            _enter(in_layers, node, _together(fixed, weights))
            _enter(in_others, node, _together(fixed, [each for each in constant if each not in weights]))
    return in_layers, in_modules, in_others


def _together(fixed: Mapping[Node, dict[int, None]], nodes: Iterable[Node]) -> dict[int, None]:
    return {key: None for node in nodes for key in fixed[node]}


def _enter(readers: _Readers, node: Node, read: Iterable[int]) -> None:
    for key in read:
        readers.setdefault(key, {})[node] = None
