"""What each node of a graph gives, on tensors without data: shapes and Python numbers, at the cost of a dispatch."""

import copy
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["MetaEvaluator", "evaluate_graph", "needs_data"]

# what gives the shape and dtype that it is given: torch takes up to 10 ms to find that out, and so for a linear layer
_SAME_MODULES = (_BatchNorm.forward, nn.LayerNorm.forward, nn.Dropout.forward)
_SAME_FUNCTIONS = (F.batch_norm, F.layer_norm, F.dropout, F.gelu, F.relu, F.hardswish, F.silu)


class MetaEvaluator:
    """Runs single nodes of a graph over ``root`` on meta tensors; the tensors of ``root`` are not touched."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self._tensors: dict[int, Any] = {}
        self._modules: dict[str, nn.Module] = {}

    def tensor(self, tensor: Tensor) -> Tensor:
        """The same tensor without its data."""
        if id(tensor) not in self._tensors:
            self._tensors[id(tensor)] = tensor.detach().to("meta")
        return self._tensors[id(tensor)]  # type: ignore[no-any-return]

    def value(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a node for the values ``args`` and ``kwargs`` of its arguments."""
        with torch.no_grad(), torch.device("meta"):
            if node.op == "get_attr":
                return self.tensor(attrgetter(str(node.target))(self.root))
            args, kwargs = _on_meta(args), _on_meta(kwargs)
            if node.op == "call_module":
                module = self._module(str(node.target))
                return args[0] if type(module).forward in _SAME_MODULES else module(*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            if node.target in _SAME_FUNCTIONS and args:
                return args[0]
            if node.target is F.linear and args[0].shape[-1] == args[1].shape[-1]:
                return args[0].new_empty((*args[0].shape[:-1], args[1].shape[0]))
            function: Callable[..., Any] = node.target  # type: ignore[assignment]
            return function(*args, **kwargs)

    def _module(self, path: str) -> nn.Module:
        if path not in self._modules:
            module = self.root.get_submodule(path)
            tensors = (*module.parameters(), *module.buffers())
            memo: dict[int, Any] = {id(tensor): self.tensor(tensor) for tensor in tensors}
            self._modules[path] = copy.deepcopy(module, memo)
        return self._modules[path]


def _on_meta(value: Any) -> Any:
    """Arguments with every device replaced by meta."""
    if isinstance(value, dict):
        return {key: "meta" if key == "device" else _on_meta(item) for key, item in value.items()}
    if isinstance(value, torch.device):
        return torch.device("meta")
    return tuple(_on_meta(item) for item in value) if type(value) is tuple else value


def needs_data(error: BaseException) -> bool:
    """Whether an error says that an operation cannot be done without data."""
    return isinstance(error, RuntimeError) and "meta tensor" in str(error).lower()


def evaluate_graph(graph_module: GraphModule, examples: tuple[Tensor, ...]) -> None:
    """Run a graph on shapes alone; raises what its operations raise on inputs of the wrong shape."""
    evaluator = MetaEvaluator(graph_module)
    inputs = iter(examples)
    values: dict[Node, Any] = {}
    for node in graph_module.graph.nodes:
        if node.op == "placeholder":
            values[node] = evaluator.tensor(next(inputs))
        elif node.op != "output":
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = evaluator.value(node, args, kwargs)
