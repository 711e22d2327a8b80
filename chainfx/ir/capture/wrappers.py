"""What people hand over in place of a plain network: wrappers are taken off, what cannot be read is refused."""

from typing import Any

import torch
from torch import nn

from chainfx.errors import InputError

__all__ = ["unwrapped"]

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(model: Any) -> nn.Module:
    """The network inside of ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``; any other as it is.

    Raises :class:`~chainfx.errors.InputError` for what is no module, is scripted (its Python code is gone) or sharded
    (its parameters lie on other processes).

    >>> net = nn.Linear(2, 3)
    >>> unwrapped(nn.DataParallel(net)) is net
    True
    """
    if not isinstance(model, nn.Module):
        seen = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise InputError(f"model is {seen}, not a torch.nn.Module; give the network itself.")
    if isinstance(model, _PARALLEL):
        return unwrapped(model.module)
    if _is_compiled(model):
        return unwrapped(model._orig_mod)
    for path, module in model.named_modules():
        _refuse_unreadable(module, f"module {path!r}" if path else "model")
    return model


def _is_compiled(module: nn.Module) -> bool:
    """Whether a module is what ``torch.compile`` gave; torch imports its class only where that was called."""
    return type(module).__module__ == "torch._dynamo.eval_frame" and type(module).__name__.startswith("OptimizedModule")


def _refuse_unreadable(module: nn.Module, name: str) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError(
            f"{name} is a {type(module).__name__} of torch.jit, whose Python code is gone; give the module that it was "
            f"made from."
        )
    if type(module).__name__ == "FullyShardedDataParallel":
        raise InputError(
            f"{name} is a FullyShardedDataParallel, whose parameters lie on several processes; gather them in a plain "
            f"network and give that."
        )
    if isinstance(module, _PARALLEL):
        raise InputError(
            f"{name} is a {type(module).__name__}; put the module inside of it, its .module, in its place."
        )
