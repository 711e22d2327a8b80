"""The designs that ship: the paper's experiments on data that every installation has."""

from typing import Any

from chainfx.errors import StudyError
from chainfx.passes import Distill, EarlyExit, Pass, PruneChannels, Quantize
from chainfx.study.design import Design
from chainfx.study.orders import ORDERS
from chainfx.study.tuning import Tuning

__all__ = ["shipped_design"]

_KEPT: dict[str, Any] = {"threshold": 1.01, "keep": True}
"""What keeps exits whatever they cost: a study reads them at thresholds of its own."""

_PASSES: dict[str, tuple[Pass, ...]] = {
    "D": (Distill(width=0.7), Distill(depth=0.5)),
    "P": (PruneChannels(0.25, round_to=1), PruneChannels(0.5, round_to=1)),
    "Q": (Quantize(4, 4), Quantize(2, 4)),
    "E": (EarlyExit(exits=1, **_KEPT),),
}
"""Two strengths of each pass; exits have as many as there are thresholds."""


def shipped_design(orders: str, data: str = "digits", seeds: int = 8) -> Design:
    """The design of that name for that data: ``"digits"``, on a ResNet of 2+2 blocks.

    Two strengths of each pass instead of the paper's twenty cases, and four epochs a stage instead of 200. Raises
    :class:`~chainfx.errors.StudyError` on a name that is not known, and on data for which no design ships.
    """
    if orders not in ORDERS:
        raise StudyError(f"there is no design {orders!r}; use one of {', '.join(ORDERS)}, or a YAML file of your own.")
    if data != "digits":
        raise StudyError(f"no design ships for data {data!r}; use 'digits', or write a YAML file, see docs/study.md.")
    return Design(
        orders=orders,
        passes=_PASSES,
        network={"name": "zoo.resnet", "options": {"blocks": [2, 2], "width": 8, "in_channels": 1}},
        data={"source": "digits", "validation": 0.4},
        seeds=tuple(range(seeds)),
        tuning=Tuning(epochs=4, original_epochs=12, batch_size=64),
        tiers=(0.006, 0.01, 0.02),
    )
