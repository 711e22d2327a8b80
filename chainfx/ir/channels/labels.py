"""Label tensors: which channel every element of an activation belongs to.

A *label tensor* (int64) has the shape of an activation and holds a number for each of its elements. A number above 0 is
an *atom*: one output channel of one layer, or one element of a parameter that is used as it is, such as a learnt scale.
0 stands for what belongs to no channel and must stay. The output (N, 4, H, W) of the first convolution of a network has
the labels 1, 2, 3, 4 along dimension 1, and the same labels for all samples and places.

Along every dimension where the labels do not differ a label tensor has stride 0. So it takes the memory of its
different labels only, and views of it cost nothing.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Labels",
    "all_of",
    "any_of",
    "blank",
    "blanks",
    "compact",
    "fitted",
    "identity",
    "repeated",
    "select_first",
    "spread",
    "tensors_in",
    "varying",
]

Labels = Tensor


def blank(shape: torch.Size | tuple[int, ...]) -> Labels:
    """A label tensor of that shape in which everything must stay."""
    return torch.zeros((), dtype=torch.int64, device="cpu").expand(shape)


def blanks(value: Any) -> Any:
    """A blank label tensor for a tensor, or for each one in tuples, lists and mappings; ``None`` for anything else."""
    if isinstance(value, Tensor):
        return blank(value.shape)
    if isinstance(value, Mapping):
        return {key: blanks(each) for key, each in value.items()}
    return tuple(map(blanks, value)) if isinstance(value, list | tuple) else None


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a structure of tuples, lists and mappings, activations or their labels, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(each)


def varying(labels: Labels) -> tuple[int, ...]:
    """The dimensions along which the labels differ, in ascending order."""
    return _varying(labels.shape, labels.stride())


@lru_cache(maxsize=4096)
def _varying(shape: torch.Size, steps: tuple[int, ...]) -> tuple[int, ...]:
    return tuple([d for d, step in enumerate(steps) if step and shape[d] > 1])


def repeated(vector: Labels, dim: int, shape: torch.Size) -> Labels:
    """A label tensor of that shape that holds ``vector``, shape (shape[dim],), along ``dim`` at every other index."""
    steps = [0] * len(shape)
    steps[dim] = vector.stride(0)
    return vector.as_strided(shape, steps)


def compact(labels: Labels, beside: tuple[int, ...] = ()) -> Labels:
    """The labels without repetition: size 1 in every dimension along which they do not differ, but for ``beside``."""
    shape, steps = labels.shape, labels.stride()
    if 0 not in steps:
        return labels
    sizes = [size if step or d in beside else 1 for d, (size, step) in enumerate(zip(shape, steps, strict=True))]
    return labels.as_strided(sizes, steps)


def identity(labels: Labels) -> tuple[int, ...]:
    """A key that is equal for two views of the same labels in memory."""
    return (labels.data_ptr(), *labels.shape, *labels.stride())


def spread(labels: Labels) -> Labels:
    """The same labels with stride 0 along every dimension where they turn out not to differ."""
    small = compact(labels)
    steps = small.stride()
    for dim in varying(small):
        corner = small.as_strided((2,), (steps[dim],)).tolist()
        if corner[0] == corner[1]:
            first = small.narrow(dim, 0, 1)
            small = first if bool((small == first).all()) else small
    return small.expand(labels.shape)


def select_first(labels: Labels, dims: tuple[int, ...]) -> Labels:
    """The labels at index 0 of each of ``dims``, which keep size 1."""
    if not dims:
        return labels
    return labels.as_strided([1 if d in dims else size for d, size in enumerate(labels.shape)], labels.stride())


def fitted(labels: Labels, shape: torch.Size) -> Labels | None:
    """The labels that a tensor of that shape meets, element by element, when it is broadcast to ``labels``.

    ``None`` if one of its elements meets several labels.
    """
    if len(shape) > labels.dim():
        return None
    moving, missing = varying(labels), labels.dim() - len(shape)
    sizes = (*[1] * missing, *shape)
    if any(d in moving if size == 1 else size != labels.size(d) for d, size in enumerate(sizes)):
        return None
    return select_first(labels, tuple(d for d, size in enumerate(sizes) if size == 1))[(0,) * missing]


def any_of(labels: Labels) -> bool:
    """Whether any element belongs to a channel."""
    return int(np.count_nonzero(compact(labels).numpy())) > 0


def all_of(labels: Labels) -> bool:
    """Whether every element belongs to a channel."""
    small = compact(labels).numpy()
    return int(np.count_nonzero(small)) == small.size
