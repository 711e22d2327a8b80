"""The parameters of a ``forward``: those that are inputs of the graph, and those that keep a default."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

__all__ = ["LITERALS", "Given", "Input", "Omitted", "dimension", "parameter_from_dict", "parameter_to_dict", "word"]

Given = Literal["position", "either", "name"]

LITERALS = (bool, int, float, str, type(None))
_DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
_MOST_DIMENSIONS = 64  # of a tensor of torch


@dataclass(frozen=True, slots=True)
class Input:
    """A parameter of ``forward`` that is an input of the graph.

    ``given``: whether callers give it by ``"position"``, by ``"name"``, or ``"either"`` way. ``shape`` and ``dtype``:
    of the example input. ``fixed``: the dimensions in which every call must have the size of the example. ``limits``:
    (dimension, least size, largest size or ``None``) of dimensions whose size the code branches on. ``tied``:
    (dimension, group) of those that have to be of one size in each group. ``batch``: the dimension that is moved to the
    front for the graph.
    """

    name: str
    given: Given
    shape: tuple[int, ...]
    dtype: torch.dtype
    fixed: tuple[int, ...] = ()
    limits: tuple[tuple[int, int, int | None], ...] = ()
    tied: tuple[tuple[int, int], ...] = ()
    batch: int = 0


@dataclass(frozen=True, slots=True)
class Omitted:
    """A parameter of ``forward`` that had no example input: the graph has its default written down.

    ``default``: the default as Python writes it; ``"..."`` if it is not a number, a text, a truth value or ``None``.
    """

    name: str
    given: Given
    default: str

    def is_default(self, value: Any) -> bool:
        """Whether a value is the default that the graph has written down."""
        return isinstance(value, LITERALS) and repr(value) == self.default


def parameter_to_dict(parameter: Input | Omitted) -> dict[str, Any]:
    """Plain JSON, for :func:`parameter_from_dict`; bounds and the batch only where there are any."""
    named = {"name": parameter.name, "given": parameter.given}
    if isinstance(parameter, Omitted):
        return {**named, "default": parameter.default}
    named_bounds = {"limits": parameter.limits, "tied": parameter.tied}
    bounds = {name: [list(each) for each in found] for name, found in named_bounds.items() if found}
    batch = {"batch": parameter.batch} if parameter.batch else {}
    fixed = list(parameter.fixed)
    return {**named, "shape": list(parameter.shape), "dtype": str(parameter.dtype), "fixed": fixed, **bounds, **batch}


def parameter_from_dict(data: Mapping[str, Any]) -> Input | Omitted:
    """What :func:`parameter_to_dict` wrote; raises ``KeyError``, ``TypeError`` or ``ValueError`` for anything else."""
    name, given = word(data["name"]), data["given"]
    if given not in get_args(Given):
        raise ValueError(f"an input is not given by {given!r}")
    if "default" in data:
        return Omitted(name, given, word(data["default"]))
    shape, fixed = tuple(data["shape"]), tuple(data["fixed"])
    if not set(fixed) <= set(range(len(shape))):
        raise ValueError(f"shape {shape} has not the dimensions {fixed}")
    limits = tuple((dim, least, most) for dim, least, most in data.get("limits", ()))
    tied = tuple((dim, group) for dim, group in data.get("tied", ()))
    numbers = [x for dim, least, most in limits for x in (dim, least, 0 if most is None else most)]
    dims = {bound[0] for bound in (*limits, *tied)}
    if not all(type(x) is int for x in (*numbers, *(x for bound in tied for x in bound))) or not dims <= {
        *range(len(shape))
    }:
        raise ValueError(f"sizes of {shape} have not the bounds {limits} and {tied}")
    batch = dimension(data.get("batch", 0))
    if batch and batch >= len(shape):
        raise ValueError(f"shape {shape} has not the dimension {batch}")
    return Input(name, given, shape, _DTYPES[data["dtype"]], fixed, limits, tied, batch)


def dimension(value: Any) -> int:
    """A dimension of a tensor; raises ``ValueError`` for what is none."""
    if type(value) is not int or not 0 <= value < _MOST_DIMENSIONS:
        raise ValueError(f"{value!r} is no dimension")
    return value


def word(value: Any) -> str:
    """A text; raises ``TypeError`` for anything else."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
