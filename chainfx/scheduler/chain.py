"""The account of a chain: the plan's reasons and one row for each stage."""

import io
from dataclasses import dataclass
from typing import Any, Self

from rich.console import Console
from rich.table import Table

from chainfx.scheduler.records import Costs, StageRecord

__all__ = ["ChainReport"]


@dataclass(frozen=True)
class ChainReport:
    """What a chain did: the plan as text and the record of every stage, the original first. ``print`` shows it."""

    plan: str
    records: tuple[StageRecord, ...]

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
        origin = self.records[0].after
        table = Table(
            title=f"bit operations under {origin.convention!r}, one sample; accuracy on held-out training data"
        )
        for heading in ("stage", "accuracy", "MACs", "BitOps expected", "BitOps worst", "parameters", "storage"):
            table.add_column(heading, justify="left" if heading == "stage" else "right")
        for record in self.records:
            after = record.after
            table.add_row(
                record.label,
                "-" if record.metric is None else f"{record.metric:.2%}",
                f"{after.macs:,}",
                "not measured"
                if after.expected_bitops is None
                else f"{origin.bitops / after.expected_bitops:.1f}x less",
                f"{origin.bitops / after.bitops:.1f}x less",
                f"{after.parameters:,}",
                f"{after.storage_bits / 8192:,.1f} KiB",
            )
        return table

    def __str__(self) -> str:
        buffer = io.StringIO()
        console = Console(file=buffer, width=140)
        console.print(self.table())
        for record in self.records:
            for item in record.skipped:
                console.print(f"{record.name} left {item.node} alone: {item.reason}", highlight=False, markup=False)
        return f"{self.plan}\n\n{buffer.getvalue().rstrip()}"

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON."""
        return {"plan": self.plan, "records": [record.to_dict() for record in self.records]}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Self:
        """The report that :meth:`to_dict` wrote."""
        return cls(plain["plan"], tuple(StageRecord.from_dict(item) for item in plain["records"]))


def _expected(costs: Costs) -> float:
    return costs.bitops if costs.expected_bitops is None else costs.expected_bitops
