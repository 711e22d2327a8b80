"""Where something was measured, and whether that is where it is to be used: network, data and device."""

import dataclasses
import platform
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import nn

from chainfx.ir.graph import content_hash

__all__ = ["Ground", "machine_kind"]


@runtime_checkable
class _Data(Protocol):
    """What a trainer says of its data, as :class:`chainfx.training.Data` does."""

    input_shape: tuple[int, ...]
    test: Any


@dataclass(frozen=True, slots=True)
class Ground:
    """On what something was measured, each as a short text that is equal for equal things; empty where not known.

    ``network``: by its structure, such as ``"19,434 parameters #5f3a9c12"``; weights do not count. ``data``: by its
    test part, such as ``"(1, 8, 8) #0c6d41aa"``; what is held out for choices does not count. ``device``: the kind of
    processor, such as ``"x86_64 AVX512 cpu"``.

    >>> here, there = Ground("a", "b", "cpu"), Ground("a", "c", "")
    >>> here.differs(there)
    ('data',)
    """

    network: str = ""
    data: str = ""
    device: str = ""

    @classmethod
    def of(cls, model: nn.Module, data: object = None) -> Self:
        """That of a network where it lies, and of its data, which are not known unless they are in memory."""
        device = next((each.device.type for each in model.parameters()), "cpu")
        return cls(_network(model), _data(data), machine_kind(device))

    def differs(self, other: "Ground") -> tuple[str, ...]:
        """The names of the fields that are known in both and not equal."""
        pairs = [(f.name, getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self)]
        return tuple(name for name, mine, theirs in pairs if mine and theirs and mine != theirs)


def machine_kind(device: str) -> str:
    """The kind of this machine with a device; results are the same bit for bit on one kind only."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {device}"


def _network(model: nn.Module) -> str:
    shapes = [(name, tuple(each.shape)) for name, each in model.named_parameters()]
    count = sum(each.numel() for each in model.parameters())
    return f"{count:,} parameters #{content_hash(shapes)[:8]}"


def _data(data: object) -> str:
    labels = getattr(data.test, "labels", None) if isinstance(data, _Data) else None
    if not isinstance(data, _Data) or not isinstance(labels, torch.Tensor):
        return ""
    return f"{data.input_shape} #{content_hash(labels)[:8]}"
