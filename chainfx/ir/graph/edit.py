"""Functions that read and change graphs in train form, and the modules and tensors that such graphs refer to.

A *layer* (:mod:`chainfx.ir.graph.layer`) is a call of ``F.linear``, ``F.conv1d/2d/3d`` or ``F.conv_transpose1d/2d/3d``
whose arguments are all positional: ``linear(input, weight, bias)``,
``conv*(input, weight, bias, stride, padding, dilation, groups)``,
``depthwise_conv*(input, weight, bias, stride, padding, dilation)`` (:mod:`chainfx.ir.graph.depthwise`),
``conv_transpose*(input, weight, bias, stride, padding, output_padding, groups, dilation)``. Its weight and bias are
``get_attr`` nodes, possibly with dialect ops (quantizers, masks) between them and the call.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from chainfx.errors import GraphError
from chainfx.ir.graph.depthwise import DEPTHWISE
from chainfx.ir.graph.mutation import changes_what_is_used
from chainfx.ir.graph.operators import Trait, names_with, operator_of

__all__ = [
    "CONVOLUTIONS",
    "LAYERS",
    "TRANSPOSED",
    "device_of",
    "drop_unused_nodes",
    "evaluating",
    "fresh_path",
    "function_of",
    "get_tensor",
    "groups_of",
    "input_of",
    "is_product",
    "module_of",
    "modules_by_path",
    "origin",
    "parent_of",
    "place_module",
    "place_tensor",
    "set_tensor",
    "tensors_of",
    "tidy",
]

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d, *DEPTHWISE.values())
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
"""The layers whose weight has its output channels in dimension 1."""

LAYERS = (F.linear, *CONVOLUTIONS, *TRANSPOSED)
"""The functions that are layers in train form: they take an input, a weight and a bias, in this order."""

_M = TypeVar("_M", bound=nn.Module)


def origin(value: Any) -> Node | None:
    """Find the ``get_attr`` node that the weight argument of a layer comes from.

    Between the two may lie calls of chainfx's own ops, such as quantizers and masks. The result is ``None`` if anything
    else lies between, so that the weight is computed in another way.
    """
    while isinstance(value, Node) and value.op == "call_function" and is_dialect(value):
        value = value.args[0]
    return value if isinstance(value, Node) and value.op == "get_attr" else None


def is_dialect(node: Node) -> bool:
    """Whether a node calls one of the ops of :mod:`chainfx.ir.graph.ops`."""
    return node.op == "call_function" and getattr(node.target, "__module__", None) == "chainfx.ir.graph.ops"


def is_product(node: Node) -> bool:
    """Whether a node is a matrix product of two activations: ``matmul``, ``bmm`` or scaled dot-product attention."""
    return operator_of(node).name in names_with(Trait.PAIRING)


def groups_of(node: Node, shape: Sequence[int]) -> int:
    """The number of groups of a conv call whose weight has this shape; 1 for linear."""
    if node.target is F.linear:
        return 1
    groups: Any = node.args[6] if len(node.args) > 6 else shape[0]
    return int(groups)


def input_of(node: Node, position: int = 0) -> Node:
    """The node that ``node`` has as its positional argument ``position``.

    Raises :class:`GraphError` if there is no such argument, or if it is a constant.
    """
    value = node.args[position] if position < len(node.args) else None
    if not isinstance(value, Node):
        raise GraphError(
            f"node {node.name!r} has {value!r} as argument {position}, where another node is needed; "
            "mend the pass that made it."
        )
    return value


def function_of(node: Node) -> Callable[..., Any]:
    """The function that a ``call_function`` node calls; raises :class:`GraphError` for any other node."""
    if not callable(node.target):
        raise GraphError(f"node {node.name!r} calls {node.target!r}, which is no function; mend the pass that made it.")
    return node.target


@contextmanager
def evaluating(model: nn.Module) -> Iterator[dict[str, nn.Module]]:
    """Put a network into eval mode for the time of a ``with`` block, which gets all of its modules by path.

    Afterwards every module is in the mode that it was in.
    """
    modules = modules_by_path(model)
    in_training = [module for module in modules.values() if module.training]
    for module in in_training:  # not model.eval(), which modules made by torch.export refuse
        module.training = False
    try:
        yield modules
    finally:
        for module in in_training:
            module.training = True


def modules_by_path(model: nn.Module) -> dict[str, nn.Module]:
    """All modules of a model by their dotted paths; the path of the model itself is ``""``.

    A module that the model holds at several places is there under each of its paths.
    """
    found: dict[str, nn.Module] = {}

    def find(module: nn.Module, path: str) -> None:
        found[path] = module
        for name, child in module._modules.items():
            if child is not None:
                find(child, f"{path}.{name}" if path else name)

    # as ``named_modules(remove_duplicate=False)``, without a generator for each level that every module passes through
    find(model, "")
    return found


def tensors_of(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """All parameters and buffers of the given modules, by dotted path; ``modules`` has the modules by path.

    A tensor that is held at several places is there under each of its paths.
    """
    tensors: dict[str, Tensor] = {}
    for path, module in modules.items():
        prefix = f"{path}." if path else ""
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    tensors[prefix + name] = tensor
    return tensors


def parent_of(graph_module: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds what is at a dotted path, and the last part of the path.

    For ``"layer1.conv.weight"`` that is the module at ``layer1.conv``, and ``"weight"``.
    """
    prefix, _, name = path.rpartition(".")
    module = graph_module
    for part in prefix.split(".") if prefix else ():
        module = module._modules.get(part) or getattr(module, part)
    return module, name


def get_tensor(graph_module: nn.Module, path: str) -> Tensor:
    """The parameter or buffer at a dotted path."""
    parent, name = parent_of(graph_module, path)
    tensor = getattr(parent, name)
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{path} is a {type(tensor).__name__}, not a tensor")
    return tensor


def device_of(model: nn.Module) -> torch.device:
    """Where a network is: the device of its first parameter or buffer; the CPU for one that has neither."""
    tensor = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def set_tensor(graph_module: nn.Module, path: str, value: Tensor, *, parameter: bool | None = None) -> None:
    """Put the values of a tensor at a dotted path; modules of the path that do not exist are made.

    The tensor becomes a parameter or a buffer, as the one that was there before, and a parameter keeps its
    ``requires_grad``. ``parameter=True`` or ``False`` decides it in another way; where nothing was before, the tensor
    becomes a buffer unless ``parameter=True`` is given.
    """
    prefix, _, name = path.rpartition(".")
    old = getattr(_holder(graph_module, prefix), name, None)
    if isinstance(old, nn.Parameter) if parameter is None else parameter:
        trains = old.requires_grad if isinstance(old, nn.Parameter) else value.is_floating_point()
        place_tensor(graph_module, path, nn.Parameter(value.detach(), requires_grad=trains))
    else:
        place_tensor(graph_module, path, value.detach())


def place_tensor(graph_module: nn.Module, path: str, value: Tensor) -> None:
    """Put the tensor itself, not a copy, at a dotted path: as a parameter if it is one, else as a buffer."""
    prefix, _, name = path.rpartition(".")
    holder = _holder(graph_module, prefix)
    if hasattr(holder, name):
        delattr(holder, name)
    if isinstance(value, nn.Parameter):
        holder.register_parameter(name, value)
    else:
        holder.register_buffer(name, value)


def place_module(graph_module: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a dotted path; modules of the path that do not exist are made."""
    prefix, _, name = path.rpartition(".")
    _holder(graph_module, prefix).add_module(name, module)


def _holder(root: nn.Module, prefix: str) -> nn.Module:
    for part in prefix.split(".") if prefix else ():
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    return root


def module_of(graph_module: GraphModule, node: Any, *types: type[_M]) -> _M | None:
    """The module that ``node`` calls; ``None`` if ``node`` calls no module, or one of another class than ``types``."""
    if not isinstance(node, Node) or node.op != "call_module":
        return None
    module = graph_module.get_submodule(str(node.target))
    return module if isinstance(module, types) else None


def fresh_path(graph_module: nn.Module, prefix: str) -> str:
    """A name for a new attribute of the graph module that it does not have yet: ``prefix``, ``prefix_1``, ..."""
    name, count = prefix, 0
    while hasattr(graph_module, name):
        count += 1
        name = f"{prefix}_{count}"
    return name


def drop_unused_nodes(graph_module: GraphModule) -> None:
    """Take nodes whose result nobody uses out of the graph; modules and tensors that they refer to stay."""

    def is_needed(node: Node) -> bool:
        return node.op in ("placeholder", "output") or changes_what_is_used(node, graph_module)

    graph_module.graph.eliminate_dead_code(is_impure_node=is_needed)


def tidy(graph_module: GraphModule) -> None:
    """Clean up after a change of the graph: call it at the end of a pass that moved or removed nodes.

    Nodes whose result nobody uses go, then the modules and tensors that no node refers to. The graph is checked
    (``graph.lint``) and compiled anew.
    """
    drop_unused_nodes(graph_module)
    used = {str(node.target) for node in graph_module.graph.nodes if node.op in ("get_attr", "call_module")}
    for name, module in list(graph_module.named_modules()):
        if any(name == path or name.startswith(f"{path}.") for path in used):
            continue
        for key in [*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False))]:
            if (f"{name}.{key}" if name else key) not in used:
                delattr(module, key)
    _drop_empty(graph_module, used, "")
    graph_module.graph.lint()
    graph_module.recompile()


def _drop_empty(module: nn.Module, used: set[str], prefix: str) -> bool:
    """Delete submodules that hold nothing any more; returns whether ``module`` itself holds nothing."""
    for name, child in list(module.named_children()):
        path = f"{prefix}{name}"
        if path not in used and _drop_empty(child, used, f"{path}."):
            delattr(module, name)
    holds = any(True for _ in module.parameters()) or any(True for _ in module.buffers())
    return not holds and not any(path.startswith(prefix) for path in used if prefix)
