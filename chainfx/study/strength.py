"""The same pass stronger or milder: what a pass twice is compared with."""

from dataclasses import replace

from chainfx.errors import StudyError
from chainfx.passes import Distill, Pass, PruneChannels, Quantize

__all__ = ["as_strong_as_two", "milder"]

_MOST_BITS = 8


def as_strong_as_two(one: Pass) -> Pass:
    """One pass that takes away what two of these take: shares that stay are squared.

    >>> as_strong_as_two(PruneChannels(0.5)).ratio
    0.75
    """
    if isinstance(one, PruneChannels) and one.ratio is not None:
        return replace(one, ratio=1 - (1 - one.ratio) ** 2)
    if isinstance(one, Distill) and one.width is not None:
        return replace(one, width=one.width**2)
    if isinstance(one, Distill) and isinstance(one.depth, float):
        return replace(one, depth=one.depth**2)
    raise StudyError(f"{one.label} has no form as strong as two of it; give prune-channels a ratio, distill a width.")


def milder(one: Pass) -> Pass:
    """The quantization at twice the bits, at most 8.

    >>> milder(Quantize(2, 8)).label
    'quantize(4, 8)'
    """
    if not isinstance(one, Quantize):
        raise StudyError(f"{one.label} has no milder form; only quantize has one, at twice the bits.")
    weights, activations = (min(2 * bits, _MOST_BITS) for bits in (one.weights, one.activations))
    return replace(one, weights=weights, activations=activations)
