"""Label tensors: which channel every element of an activation belongs to.

A *label tensor* (int64) has the shape of an activation and says of every element which *atom* it belongs to: atom
``a > 0`` is one channel of one source (an output channel of a layer, an element of a plain parameter), 0 is something
that must stay. A dimension along which the labels are constant has stride 0, so label tensors are small and
torch's own view functions move them for free.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Labels",
    "all_of",
    "any_of",
    "blank",
    "compact",
    "fitted",
    "identity",
    "repeated",
    "select_first",
    "spread",
    "varying",
]

Labels = Tensor


def blank(shape: torch.Size | tuple[int, ...]) -> Labels:
    """A label tensor of that shape in which everything must stay."""
    return torch.zeros((), dtype=torch.int64, device="cpu").expand(shape)


def varying(labels: Labels) -> tuple[int, ...]:
    """The dimensions along which the labels differ."""
    return _varying(labels.shape, labels.stride())


@lru_cache(maxsize=4096)
def _varying(shape: torch.Size, steps: tuple[int, ...]) -> tuple[int, ...]:
    return tuple([d for d, step in enumerate(steps) if step and shape[d] > 1])


def repeated(vector: Labels, dim: int, shape: torch.Size) -> Labels:
    """Labels of that shape which are ``vector``, shape (shape[dim],), along ``dim``, and differ nowhere else."""
    steps = [0] * len(shape)
    steps[dim] = vector.stride(0)
    return vector.as_strided(shape, steps)


def compact(labels: Labels, beside: tuple[int, ...] = ()) -> Labels:
    """The labels cut to size 1 in every dimension along which they do not differ, except the dimensions ``beside``."""
    shape, steps = labels.shape, labels.stride()
    if 0 not in steps:
        return labels
    sizes = [size if step or d in beside else 1 for d, (size, step) in enumerate(zip(shape, steps, strict=True))]
    return labels.as_strided(sizes, steps)


def identity(labels: Labels) -> tuple[int, ...]:
    """What two views of the same labels have in common."""
    return (labels.data_ptr(), *labels.shape, *labels.stride())


def spread(labels: Labels) -> Labels:
    """The same labels with stride 0 wherever they do not differ."""
    small = compact(labels)
    steps = small.stride()
    for dim in varying(small):
        corner = small.as_strided((2,), (steps[dim],)).tolist()
        if corner[0] == corner[1]:
            first = small.narrow(dim, 0, 1)
            small = first if bool((small == first).all()) else small
    return small.expand(labels.shape)


def select_first(labels: Labels, dims: tuple[int, ...]) -> Labels:
    """The labels at index 0 of ``dims`` (kept as size 1)."""
    if not dims:
        return labels
    return labels.as_strided([1 if d in dims else size for d, size in enumerate(labels.shape)], labels.stride())


def fitted(labels: Labels, shape: torch.Size) -> Labels | None:
    """The labels at the elements of a tensor that is broadcast to them; ``None`` if one of these meets several."""
    if len(shape) > labels.dim():
        return None
    moving, missing = varying(labels), labels.dim() - len(shape)
    sizes = (*[1] * missing, *shape)
    if any(d in moving if size == 1 else size != labels.size(d) for d, size in enumerate(sizes)):
        return None
    return select_first(labels, tuple(d for d, size in enumerate(sizes) if size == 1))[(0,) * missing]


def any_of(labels: Labels) -> bool:
    """Whether any label is not 0."""
    return int(np.count_nonzero(compact(labels).numpy())) > 0


def all_of(labels: Labels) -> bool:
    """Whether no label is 0."""
    small = compact(labels).numpy()
    return int(np.count_nonzero(small)) == small.size
