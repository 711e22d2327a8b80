"""What people hand over in place of a plain network: wrappers are taken off, what cannot be read is refused."""

from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn.parameter import is_lazy

from chainfx.errors import InputError
from chainfx.ir.graph import modules_by_path

__all__ = ["check_readable", "unwrapped"]

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(model: Any) -> nn.Module:
    """The network inside of ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``; any other as it is.

    Raises :class:`~chainfx.errors.InputError` for what is no ``torch.nn.Module``.

    >>> net = nn.Linear(2, 3)
    >>> unwrapped(nn.DataParallel(net)) is net
    True
    """
    if not isinstance(model, nn.Module):
        name = type(model).__name__
        seen = f"the class {model.__name__}" if isinstance(model, type) else f"a{'n' * (name[0] in 'AEIOU')} {name}"
        raise InputError(f"model is {seen}, not a torch.nn.Module; give the network itself.")
    if isinstance(model, _PARALLEL):
        return unwrapped(model.module)
    return unwrapped(model._orig_mod) if _is_compiled(model) else model


def check_readable(model: nn.Module) -> None:
    """Raise :class:`~chainfx.errors.InputError` for a model with a module whose code or tensors nobody can read."""
    for path, module in modules_by_path(model).items():
        problem = _problem(module)
        if problem:
            raise InputError(f"{f'module {path!r}' if path else 'model'} is {problem}.")
        lazy = next((name for name, each in module._parameters.items() if each is not None and is_lazy(each)), None)
        if lazy is not None:
            name = f"{path}.{lazy}".lstrip(".")
            raise InputError(f"parameter {name!r} has no shape yet; run the model once before capturing it.")


def _is_compiled(module: nn.Module) -> bool:
    """Whether ``torch.compile`` made a module; torch imports the class of those only where that was called."""
    return type(module).__module__ == "torch._dynamo.eval_frame" and hasattr(module, "_orig_mod")


def _problem(module: nn.Module) -> str:
    name = type(module).__name__
    if getattr(type(module), "in_deploy_form", False):
        return f"a {name}, which is compressed already; give the network that it was made from"
    if isinstance(module, torch.jit.ScriptModule):
        return f"a {name} of torch.jit, whose Python code is gone; give the module that it was made from"
    if isinstance(module, GraphModule) and "train" in vars(module):
        return "a graph of torch.export, which has no train mode; give the module that was exported"
    if name == "FullyShardedDataParallel":
        return f"a {name}, whose parameters lie on several processes; gather them in a plain network and give that"
    if isinstance(module, _PARALLEL):
        return f"a {name}; put the module inside of it, its .module, in its place"
    return ""
