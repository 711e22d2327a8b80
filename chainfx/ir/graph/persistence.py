"""Buffers that are not part of the state stay so when a graph module is made, copied or pickled.

torch 2.9 forgets it: ``torch.fx.graph_module._copy_attr``, by which each of these puts tensors into the new module,
makes every buffer part of the state. Constants of a trace, and buffers that a model registered with
``persistent=False``, would stand in the ``state_dict`` of each copy.
"""

from collections.abc import Callable

from torch import nn
from torch.fx import graph_module

__all__ = ["keeping_persistence", "mend_copies"]

Copier = Callable[[nn.Module, nn.Module, str], None]


def mend_copies() -> None:
    """Let torch keep what it knows of a buffer, if it is a torch that does not look at it."""
    if "_non_persistent_buffers_set" not in graph_module._copy_attr.__code__.co_names:
        copier = keeping_persistence(graph_module._copy_attr)
        graph_module._copy_attr = copier  # type: ignore[assignment]  # takes the same


def keeping_persistence(copy_attr: Copier) -> Copier:
    """The same copier of an attribute from one module to another, after which a buffer is as persistent as it was."""

    def copy(from_module: nn.Module, to_module: nn.Module, target: str) -> None:
        copy_attr(from_module, to_module, target)
        path, _, name = target.rpartition(".")
        source, made = (module.get_submodule(path) for module in (from_module, to_module))
        if name in source._non_persistent_buffers_set:
            made._non_persistent_buffers_set.add(name)

    return copy
