"""Which units go: a *ladder* of choices, each of which keeps fewer units than the one before.

A ladder is either uniform, so that every group loses the same share, or follows one ranking of the units of all groups.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chainfx.ir.channels import ChannelAnalysis, ChannelGroup

__all__ = ["Candidate", "Keep", "Ladder", "Limits", "Removed", "first_step", "removed_units", "wanted_units"]

Keep = Mapping[str, Tensor]
Removed = NDArray[np.bool_]

_WIDE, _STEP = 32, 8  # what round_to="auto" means: kernels for CPUs and GPUs work on eight channels or more at once
_ROUNDING = 1e-9  # 10 * (1 - 0.9) is 0.9999999999999998 in binary, but one channel in ten


@dataclass(frozen=True, slots=True)
class Limits:
    """What a choice of units must keep to, in every group.

    A group loses at most the share ``max_ratio`` of its units, and keeps a number of them that is a multiple of
    ``round_to``: with ``"auto"`` of 8 if it has 32 units or more, any number otherwise.
    """

    max_ratio: float = 1.0
    round_to: int | Literal["auto"] = 1

    def kept(self, wanted: int, whole: int) -> int:
        """How many of ``whole`` units stay if ``wanted`` are asked for.

        That is ``wanted`` rounded down to a multiple of ``round_to``, but at least one unit, and no fewer than
        ``max_ratio`` allows; all if all are asked for.

        >>> auto = Limits(round_to="auto")
        >>> auto.kept(38, 64), auto.kept(3, 64), auto.kept(60, 60), auto.kept(15, 31)
        (32, 8, 60, 15)
        """
        if wanted >= whole:
            return whole
        step = self.round_to if self.round_to != "auto" else _STEP if whole >= _WIDE else 1
        least = max(1, math.ceil(whole * (1 - self.max_ratio) - _ROUNDING))
        least = math.ceil(least / step) * step
        return min(max(wanted - wanted % step, least), whole)


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A group that may lose units: its scores, of shape (size,), and how many units it had as it entered the pass."""

    group: ChannelGroup
    score: Tensor
    whole: int

    def best(self, kept: int) -> Tensor:
        """The numbers of the ``kept`` units with the highest scores, in order; of equal ones the first are taken."""
        return torch.from_numpy(np.sort(np.argsort(-self.score.numpy(), kind="stable")[:kept]))


class Ladder:
    """Choices of the units to keep: step 0 keeps all, the step ``last`` as few as the limits allow.

    What a step keeps is part of what the step before it keeps. With ``ranks=None`` the ladder is uniform: at every step
    each group has lost the same share of its units. Otherwise ``ranks`` has one tensor of scores for each candidate,
    which can be compared across groups, and the units go one by one, the lowest score first.
    """

    def __init__(self, candidates: Sequence[Candidate], limits: Limits, ranks: Sequence[Tensor] | None = None) -> None:
        self.candidates = tuple(candidates)
        self.limits = limits
        self._order = None if ranks is None else self._ordered(ranks)

    @cached_property
    def _shares(self) -> list[float]:
        """The shares at which a group of the uniform ladder loses one unit more."""
        return sorted({lost / each.whole for each in self.candidates for lost in range(each.whole)} | {0.0})

    @property
    def last(self) -> int:
        """The number of the last step, which keeps the fewest units."""
        return len(self._shares) - 1 if self._order is None else len(self._order)

    def _ordered(self, ranks: Sequence[Tensor]) -> NDArray[np.int64]:
        """The places of the candidates, one for each unit that may go, that of the unit with the lowest rank first."""
        scores = [torch.zeros(0, dtype=torch.float64, device="cpu")]
        places = [torch.zeros(0, dtype=torch.int64, device="cpu")]
        for place, (each, rank) in enumerate(zip(self.candidates, ranks, strict=True)):
            spare = each.group.size - self.limits.kept(0, each.whole)
            scores.append(rank.sort().values[: max(spare, 0)])
            places.append(torch.full_like(scores[-1], place, dtype=torch.int64))
        return torch.cat(places)[torch.cat(scores).argsort(stable=True)].numpy()

    def keep(self, step: int) -> dict[str, Tensor]:
        """The units to keep at a step, by the name of the group, for every group that loses some."""
        return self._chosen(self._uniform(self._shares[step]) if self._order is None else self._ranked(step))

    def at_share(self, share: float) -> dict[str, Tensor] | None:
        """The units to keep when the share ``share`` of all units is gone; ``None`` if the limits keep more.

        Shares are of the units as they entered the pass. The uniform ladder takes the share from every group, where a
        fraction of a unit counts as a whole one that goes, and keeps to the limits of each.
        """
        if self._order is None:
            return self._chosen(self._uniform(share))
        whole = sum(each.whole for each in self.candidates)
        gone = whole - sum(each.group.size for each in self.candidates)
        step = max(math.floor(whole * share + _ROUNDING) - gone, 0)
        return self.keep(step) if step <= self.last else None

    def _uniform(self, share: float) -> list[int]:
        return [wanted_units(each.whole, share) for each in self.candidates]

    def _ranked(self, step: int) -> list[int]:
        lost = np.bincount(self._order[:step], minlength=len(self.candidates)) if self._order is not None else ()
        return [each.group.size - int(gone) for each, gone in zip(self.candidates, lost, strict=True)]

    def _chosen(self, wanted: Sequence[int]) -> dict[str, Tensor]:
        keep: dict[str, Tensor] = {}
        for each, number in zip(self.candidates, wanted, strict=True):
            kept = self.limits.kept(number, each.whole)
            if kept < each.group.size:
                keep[each.group.name] = each.best(kept)
        return keep


def wanted_units(whole: int, share: float) -> int:
    """``int(whole * (1 - share))`` without the rounding of floating point: a share of 0.9 leaves 1 of 10, not 0."""
    return math.floor(whole * (1 - share) + _ROUNDING)


def removed_units(analysis: ChannelAnalysis, keep: Keep) -> Removed:
    """The units that go if the named groups keep only those given, numbered through from 1 as in the analysis."""
    masks: list[Removed] = [np.zeros(1, dtype=bool)]
    for group in analysis.groups:
        mask = np.full(group.size, group.name in keep)
        if group.name in keep:
            mask[keep[group.name].numpy()] = False
        masks.append(mask)
    return np.concatenate(masks)


def first_step(last: int, holds: Callable[[int], bool]) -> int | None:
    """The first of the steps 0 to ``last`` at which ``holds`` is true, found by bisection; ``None`` if there is none.

    ``holds`` must be true at every step after one at which it is true.
    """
    if not holds(last):
        return None
    low, high = -1, last
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
