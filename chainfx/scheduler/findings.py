"""What is wrong with a chain, or could be better: a value, and the findings about the order of two passes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from chainfx.passes import Pass
from chainfx.rendering import rendered
from chainfx.scheduler.edges import STRENGTH, Edge
from chainfx.scheduler.evidence import Evidence

__all__ = ["SEVERITIES", "Finding", "Severity", "order_finding", "worst"]

Severity = Literal["error", "warning", "info"]
"""How bad a finding is: the chain should not be run so; it may well be worse than need be; it is worth knowing."""

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
"""The severities, the worst first."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a chain that is wrong or could be better.

    ``rule``: the short name of what found it, such as ``"order"``. ``positions``: the stages it is about, from 1, as
    the chain is written; empty for the chain as a whole. ``reason`` says what is wrong, ``source`` where that can be
    looked up, ``fix`` what to do. ``contested``: what was published to the contrary, if anything. ``edges``: for an
    order, the edges that it breaks.
    """

    rule: str
    severity: Severity
    positions: tuple[int, ...]
    reason: str
    source: str
    fix: str
    contested: str = ""
    edges: tuple[Edge, ...] = ()

    def __str__(self) -> str:
        return rendered(self, "text")

    def to_dict(self) -> dict[str, Any]:
        """The finding as plain JSON; an edge is given by its text."""
        plain = asdict(self)
        return {**plain, "positions": list(self.positions), "edges": [str(edge) for edge in self.edges]}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The finding that :meth:`to_dict` wrote, without its edges, of which it has the text alone."""
        return cls(**{**plain, "positions": tuple(plain["positions"]), "edges": ()})


def worst(findings: Iterable[Finding]) -> Severity | None:
    """The severity of the worst of some findings; ``None`` of none."""
    found = {finding.severity for finding in findings}
    return next((severity for severity in SEVERITIES if severity in found), None)


def order_finding(
    chain: Sequence[Pass], first: int, second: int, broken: Sequence[Edge], evidence: Iterable[Evidence], tunes: bool
) -> Finding:
    """The finding about the passes at two positions (from 0) that stand in the order ``first``, ``second``.

    ``broken``: the edges that say ``second`` goes first. The worst that is known decides the severity: an order that is
    rated poor, that was measured to be worse or that loses a fact is an error, unless what rates it is contested; the
    order of an exact pass is worth knowing, no more; all else is a warning.
    """
    ahead, behind = chain[first], chain[second]
    known = [row for row in evidence if row.applies(ahead, behind, tunes)]
    poor = [row for row in known if row.rating == "poor"]
    contrary = [row for row in known if row.rating == "good" and row.confidence == "contested"]
    strongest = max(broken, key=lambda edge: (edge.rated_poor, STRENGTH.index(edge.kind)))
    names = behind.info.name, ahead.info.name
    more = [f"{row.reason} ({row.source})" for row in poor if row.source != strongest.source]
    return Finding(
        rule="order",
        severity=_severity(broken, ahead, behind),
        positions=(first + 1, second + 1),
        reason="; ".join([f"{names[1]} stands before {names[0]}, but {strongest.reason}", *more]),
        source=strongest.source,
        fix=f"put {names[0]} before {names[1]}",
        contested="; ".join(f"{row.reason} ({row.source})" for row in contrary),
        edges=tuple(broken),
    )


def _severity(broken: Sequence[Edge], ahead: Pass, behind: Pass) -> Severity:
    if any(edge.rated_poor or edge.kind in ("measured", "fact") for edge in broken):
        return "error"
    return "info" if ahead.info.exact or behind.info.exact else "warning"
