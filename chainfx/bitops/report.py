"""The account of what a network costs: frozen, exact, and printed with its convention."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from chainfx.errors import CostError

__all__ = ["CostReport", "CostRow", "Uncounted"]


@dataclass(frozen=True, slots=True)
class CostRow:
    """The work of one node for one sample.

    ``module``: path of the module it comes from, empty if unknown. ``shape``: of the output, batch included.
    ``elementwise``: elements of the largest tensor read or written by an operator without MACs. ``weight_bits``,
    ``activation_bits``: widths of the two factors, ``None`` without MACs. ``bitops``: under the report's convention.
    ``segment``: i for what exit i needs beyond the exits before it, the number of exits for the rest.
    """

    node: str
    operator: str
    module: str
    shape: tuple[int, ...]
    macs: int
    elementwise: int
    weight_bits: int | None
    activation_bits: int | None
    bitops: int | Fraction
    segment: int


@dataclass(frozen=True, slots=True)
class Uncounted:
    """A node that does arithmetic of which nobody knows how much, and why."""

    node: str
    operator: str
    module: str
    reason: str


@dataclass(frozen=True, slots=True)
class CostReport:
    """What a network costs for one sample, under a named convention.

    ``rows``: the nodes that do work, in graph order. ``uncounted``: the nodes that nobody could count; no total
    contains them. ``storage_bits``: every parameter and buffer the graph refers to, once. ``parameters``: number of
    parameters, buffers excluded. ``exits``: names of the exits; ``exit_rates``: the share of all samples that leaves at
    each, ``None`` if nobody measured them.
    """

    convention: str
    rows: tuple[CostRow, ...]
    uncounted: tuple[Uncounted, ...]
    storage_bits: int
    parameters: int
    exits: tuple[str, ...] = ()
    exit_rates: tuple[float, ...] | None = None

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample that runs through everything, exit heads included (the worst case)."""
        return sum(row.macs for row in self.rows)

    @property
    def bitops(self) -> int | float:
        """Bit operations of one sample that runs through everything, exit heads included (the worst case)."""
        return _number(sum((row.bitops for row in self.rows), start=Fraction(0)))

    @property
    def elementwise(self) -> int:
        """Element-wise operations of one sample that runs through everything; no convention prices them."""
        return sum(row.elementwise for row in self.rows)

    @property
    def expected_macs(self) -> int | float:
        """MACs of the average sample, sum_i r_i (B_i + H_i); raises :class:`CostError` without measured exit rates.

        r_i is the share of samples that reach segment i, B_i its body and H_i the head of its exit.
        """
        return self._expected(lambda row: row.macs)

    @property
    def expected_bitops(self) -> int | float:
        """Bit operations of the average sample, as :attr:`expected_macs`; equal to :attr:`bitops` without exits."""
        return self._expected(lambda row: row.bitops)

    def _expected(self, cost: Callable[[CostRow], int | Fraction]) -> int | float:
        reached = self._reached()
        return _number(sum((reached[row.segment] * cost(row) for row in self.rows), start=Fraction(0)))

    def _reached(self) -> tuple[Fraction, ...]:
        """The share of samples that reaches each segment."""
        if self.exits and self.exit_rates is None:
            raise CostError(
                f"the expected cost needs the exit rate of {self.exits[0]!r}, which nobody measured; "
                "give exit_rates with the share of all samples that leaves there, or ask for the worst case."
            )
        reached = [Fraction(1)]
        for rate in self.exit_rates or ():
            reached.append(max(reached[-1] - Fraction(rate), Fraction(0)))
        return tuple(reached)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values; :meth:`from_dict` rebuilds it exactly."""
        rows = [{**asdict(row), "shape": list(row.shape), "bitops": _plain(row.bitops)} for row in self.rows]
        return {
            "convention": self.convention,
            "rows": rows,
            "uncounted": [asdict(item) for item in self.uncounted],
            "storage_bits": self.storage_bits,
            "parameters": self.parameters,
            "exits": list(self.exits),
            "exit_rates": None if self.exit_rates is None else list(self.exit_rates),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "CostReport":
        """The report that :meth:`to_dict` wrote."""
        rows = [
            CostRow(**{**row, "shape": tuple(row["shape"]), "bitops": _exact(row["bitops"])}) for row in data["rows"]
        ]
        return cls(
            data["convention"],
            tuple(rows),
            tuple(Uncounted(**item) for item in data["uncounted"]),
            data["storage_bits"],
            data["parameters"],
            tuple(data["exits"]),
            None if data["exit_rates"] is None else tuple(data["exit_rates"]),
        )

    def __str__(self) -> str:
        from chainfx.bitops.table import render

        return render(self)


def _number(value: int | Fraction) -> int | float:
    """An exact integer where the value is one, else the nearest float."""
    return value.numerator if value.denominator == 1 else float(value)


def _plain(value: int | Fraction) -> int | str:
    return value.numerator if value.denominator == 1 else str(value)


def _exact(value: int | str) -> int | Fraction:
    return Fraction(value) if isinstance(value, str) else value
