"""Which layers a pass on weights works on, and what it says about the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch.fx import GraphModule, Node
from torch.fx.node import Argument

from chainfx.errors import PassError
from chainfx.ir.graph import edit, ops

__all__ = ["Skipped", "beneath_mask", "layer_path", "mask_of", "select_layers"]


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something a pass left alone: the node (or module path) and the reason."""

    node: str
    reason: str


def layer_path(weight_path: str) -> str:
    """The path of the layer that a weight belongs to: ``conv1`` for ``conv1.weight``, ``w`` for a bare ``w``."""
    return weight_path.rpartition(".")[0] or weight_path


def mask_of(layer: Node) -> Node | None:
    """The ``mask_weight`` node that a layer reads its weight from; ``None`` if it is not masked."""
    weight = layer.args[1]
    return weight if isinstance(weight, Node) and weight.target is ops.mask_weight else None


def beneath_mask(layer: Node) -> Argument:
    """The weight that a layer reads, or what its mask reads."""
    mask = mask_of(layer)
    return layer.args[1] if mask is None else mask.args[0]


def select_layers(graph_module: GraphModule, name: str, skip: Sequence[str]) -> tuple[list[Node], list[Skipped]]:
    """The layers that no pattern (``fnmatchcase`` on layer paths) names, in graph order, and what is left alone.

    Left alone with a reason: layers that a pattern names, layers whose weight is computed by other ops than those of
    :mod:`~chainfx.ir.graph.ops`, and modules with matrices inside. Raises :class:`PassError`, in the name of the pass,
    for a pattern that matches no layer.
    """
    paths = {node: layer_path(str(edit.origin(node.args[1]).target)) for node in edit.layers_of(graph_module)}  # type: ignore[union-attr]
    for pattern in skip:
        if not any(fnmatchcase(path, pattern) for path in paths.values()):
            raise PassError(
                f"{name}: the pattern {pattern!r} in skip matches no layer; "
                f"layers are {', '.join(dict.fromkeys(paths.values()))}."
            )
    named = {node for node, path in paths.items() if any(fnmatchcase(path, pattern) for pattern in skip)}
    skipped = [Skipped(node.name, "a pattern of skip matches it") for node in paths if node in named]
    return [node for node in paths if node not in named], skipped + _hidden(graph_module)


def _hidden(graph_module: GraphModule) -> list[Skipped]:
    """Layers and modules with weights that are no parameters of layers."""
    found = []
    for node in graph_module.graph.nodes:
        if node.op == "call_function" and node.target in edit.LAYERS and edit.origin(node.args[1]) is None:
            found.append(Skipped(node.name, "its weight is computed"))
        elif node.op == "call_module":
            module = graph_module.get_submodule(str(node.target))
            if any(parameter.dim() > 1 for parameter in module.parameters()):
                found.append(Skipped(node.name, f"the inside of module {type(module).__name__} is not visible"))
    return found
