"""Whether what another compiler made of a network answers as the network does."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

__all__ = ["difference_of", "disagreement", "random_inputs"]

_CLOSE = 0.05  # of the largest value: what codes that lie on a tie may make it differ by


def disagreement(expected: Any, other: Callable[..., Any], values: Sequence[Tensor]) -> str:
    """What is wrong with ``other``, which should give the expected answer for some inputs, in words; empty if nothing.

    It may differ by rounding alone (:func:`difference_of`), and has to leave the inputs as they are.

    >>> disagreement(torch.tensor([3.0]), lambda x: x.add_(1.0), [torch.tensor([2.0])])
    'it writes over its inputs'
    """
    kept = [each.clone() for each in values]
    difference = difference_of(expected, other(*values))
    if difference or all(map(torch.equal, kept, values)):
        return difference
    return "it writes over its inputs"


def difference_of(expected: Any, given: Any) -> str:
    """How an answer (a tensor or a structure of them) differs from the expected one, in words; empty where it does not.

    Values may be 5 % of the largest one apart: a code that lies on a tie may fall to either side.

    >>> difference_of(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]))
    '0.5 away from values up to 2'
    """
    pairs = zip(_listed(expected), _listed(given), strict=True)
    for one, other in ((one.detach().double(), other.detach().double()) for one, other in pairs if one.numel()):
        difference, largest = float((one - other).abs().max()), float(one.abs().max())
        if not difference <= _CLOSE * max(largest, 1e-6):
            return f"{difference:.3g} away from values up to {largest:.3g}"
    return ""


def random_inputs(like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Random numbers in the place of inputs, with a batch of one sample more; zeros for whole numbers."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    made = []
    for each in like:
        grown = each.dim() > 0 and each.shape[:1] == like[0].shape[:1]
        shape = (each.shape[0] + 1, *each.shape[1:]) if grown else tuple(each.shape)
        values = torch.randn(shape, generator=generator, device="cpu")
        made.append(
            values.to(each.dtype) if each.is_floating_point() else torch.zeros(shape, dtype=each.dtype, device="cpu")
        )
    return tuple(made)


def _listed(answer: Any) -> list[Tensor]:
    """The tensors in an answer of any structure."""
    return [each for each in tree_leaves(answer) if isinstance(each, Tensor)]
