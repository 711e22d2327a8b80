"""The account of a chain: the plan's reasons and one row for each stage."""

from dataclasses import dataclass
from typing import Any, Self

from rich.table import Table

from chainfx.rendering import rendered
from chainfx.scheduler.findings import Finding
from chainfx.scheduler.records import Costs, StageRecord

__all__ = ["ChainReport"]


@dataclass(frozen=True)
class ChainReport:
    """What a chain did: the plan as text and the record of every stage, the original first. ``print`` shows it.

    ``findings``: what :func:`chainfx.lint` found before it ran.
    """

    plan: str
    records: tuple[StageRecord, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def bitops_ratio(self) -> float:
        """Bit operations of the original over those expected of the result (worst case if no rates were measured)."""
        return self.records[0].after.bitops / _expected(self.records[-1].after)

    @property
    def storage_ratio(self) -> float:
        """Storage bits of the original over those of the result."""
        return self.records[0].after.storage_bits / self.records[-1].after.storage_bits

    def table(self) -> Table:
        """One row a stage; accuracy on validation data, ratios against the original, cost of one sample."""
        return rendered(self, "table")

    def __str__(self) -> str:
        return rendered(self, "text")

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON."""
        found = [finding.to_dict() for finding in self.findings]
        return {"plan": self.plan, "records": [record.to_dict() for record in self.records], "findings": found}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Self:
        """The report that :meth:`to_dict` wrote."""
        findings = tuple(Finding.from_dict(item) for item in plain.get("findings", ()))  # chainfx 0.2 wrote none
        return cls(plain["plan"], tuple(StageRecord.from_dict(item) for item in plain["records"]), findings)


def _expected(costs: Costs) -> float:
    return costs.bitops if costs.expected_bitops is None else costs.expected_bitops
