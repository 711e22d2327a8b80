"""An edge of a plan: which pass goes before which, and why."""

from dataclasses import dataclass, field
from typing import Literal

from chainfx.rendering import rendered
from chainfx.scheduler.ground import Ground

__all__ = ["STRENGTH", "Edge", "EdgeKind"]

EdgeKind = Literal["property", "cited", "measured", "fact"]

# from weak to strong: an edge gives way to stronger ones that contradict it
STRENGTH: tuple[EdgeKind, ...] = ("property", "cited", "measured", "fact")


@dataclass(frozen=True, slots=True)
class Edge:
    """Pass ``before`` goes before pass ``after``, and why.

    ``kind``: ``"property"`` (the law), ``"cited"`` or ``"measured"`` (evidence), ``"fact"`` (one establishes what the
    other requires). ``overrides``: the weaker edges, from ``after`` to ``before``, that gave way to this one.
    ``rated_poor``: the evidence rates the other order as poor. ``origin``: the file and line of the evidence.
    ``ground``: on what it was measured, and ``elsewhere``: in which of network, data and device that differs from where
    the plan is to be used.
    """

    before: str
    after: str
    reason: str
    source: str
    kind: EdgeKind
    overrides: tuple["Edge", ...] = ()
    rated_poor: bool = False
    origin: str = ""
    ground: Ground = field(default_factory=Ground)
    elsewhere: tuple[str, ...] = ()

    def __str__(self) -> str:
        return rendered(self, "text")
