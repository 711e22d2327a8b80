"""The cost report of a network: frozen values, one row a node, exact totals, and the convention they are under."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from chainfx.bitops.as_json import report_fields, report_to_dict
from chainfx.bitops.diff import CostDiff, diff_of
from chainfx.bitops.energy import HOROWITZ_2014, EnergyTable
from chainfx.bitops.rates import Rates
from chainfx.bitops.reprice import repriced
from chainfx.bitops.rows import CostRow, Uncounted
from chainfx.rendering import rendered

__all__ = ["CostReport", "ExitCost"]


@dataclass(frozen=True, slots=True)
class ExitCost:
    """What one sample costs that leaves the network at an exit, whose head is included.

    ``exit`` is the name of the exit, ``None`` for a sample that runs to the end.
    """

    exit: str | None
    macs: int
    bitops: int | float


@dataclass(frozen=True, slots=True)
class CostReport:
    """What a network costs for one sample, under a named convention.

    ``rows``: the nodes that do work, in graph order. ``uncounted``: the nodes that nobody could count; no total
    contains them. ``storage``: bits under each encoding that was asked for, see :mod:`chainfx.bitops.storage`.
    ``parameters``: number of parameters, buffers excluded. ``exits``: names of the exits; ``exit_rates``: the share of
    all samples that leaves at each, ``None`` if nobody measured them. ``conditions``: names of the ``torch.cond``
    nodes; ``true_rates``: the share of all samples that takes the true branch of each, ``None`` likewise. ``inputs``:
    the shapes it was counted for, batch included, and ``dtypes`` what of, such as ``"float32"``.
    ``peak_activation_bits``: the most that the activations of one sample take at a time, ``None`` where the widths were
    changed without the graph.
    """

    convention: str
    rows: tuple[CostRow, ...]
    uncounted: tuple[Uncounted, ...]
    storage: Mapping[str, int] = field(hash=False)
    parameters: int
    exits: tuple[str, ...] = ()
    exit_rates: tuple[float, ...] | None = None
    conditions: tuple[str, ...] = ()
    true_rates: tuple[float, ...] | None = None
    inputs: tuple[tuple[int, ...], ...] = ()
    dtypes: tuple[str, ...] = ()
    peak_activation_bits: int | None = None

    @property
    def storage_bits(self) -> int:
        """The bits of what a saved network holds: the ``coded`` encoding where there is one, else the ``dense`` one."""
        return self.storage.get("coded", self.storage["dense"])

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample in the worst case: it runs through everything, exit heads included.

        Of the two branches of a ``torch.cond``, the one with more of them counts.
        """
        return int(_worst(self.rows, lambda row: row.macs, self.conditions))

    @property
    def bitops(self) -> int | float:
        """Bit operations of one sample in the worst case; of a ``torch.cond`` the dearer branch counts."""
        return _number(_worst(self.rows, lambda row: row.bitops, self.conditions))

    @property
    def elementwise(self) -> int:
        """Element-wise operations of one sample in the worst case; no convention gives them a price."""
        return int(_worst(self.rows, lambda row: row.elementwise, self.conditions))

    @property
    def nonzero_macs(self) -> int | float:
        """The MACs of one sample, in the worst case, whose weight is not masked to zero.

        The other MACs are multiplications by zero; few conventions count them as cheaper.
        """
        return _number(_worst(self.rows, lambda row: row.nonzero_macs, self.conditions))

    @property
    def peak_bits(self) -> int | None:
        """The memory that one sample needs at its peak, in bits: all that is stored, and the activations alive then."""
        return None if self.peak_activation_bits is None else self.storage_bits + self.peak_activation_bits

    @property
    def moved_bits(self) -> int | float:
        """The bits that one sample moves in the worst case, see :attr:`CostRow.moved_bits`: weights and activations."""
        return _number(_worst(self.rows, lambda row: row.moved_bits, self.conditions))

    @property
    def expected_moved_bits(self) -> int | float:
        """The bits that the average sample moves, as :attr:`expected_macs`."""
        return self._expected(lambda row: row.moved_bits)

    def energy(self, table: EnergyTable = HOROWITZ_2014) -> float:
        """An estimate of the energy of the average sample in microjoules, by a table of picojoules.

        Each MAC costs what the table says for its widths, each byte that is moved what it says for memory. That ranks
        networks; it is no measurement of a device. Raises :class:`CostError` without measured exit rates.

        >>> import torch, chainfx
        >>> round(chainfx.count(torch.nn.Linear(1000, 1000), torch.zeros(1, 1000)).energy(), 1)
        655.9
        """
        return float(self._expected(lambda row: Fraction(table.of(row)))) / 1e6

    @property
    def cumulative(self) -> tuple[ExitCost, ...]:
        """The cost of a sample that leaves at each of the exits, and, last, of one that runs to the end."""
        costs = []
        for segment, name in enumerate((*self.exits, None)):
            rows = [row for row in self.rows if row.segment <= segment]
            macs = _worst(rows, lambda row: row.macs, self.conditions)
            bitops = _worst(rows, lambda row: row.bitops, self.conditions)
            costs.append(ExitCost(name, int(macs), _number(bitops)))
        return tuple(costs)

    @property
    def expected_macs(self) -> int | float:
        """MACs of the average sample, sum_i r_i (B_i + H_i); raises :class:`CostError` without measured exit rates.

        r_i is the share of samples that reach segment i, B_i its body and H_i the head of its exit. Likewise every
        branch of a ``torch.cond`` counts with the share of samples that takes it.
        """
        return self._expected(lambda row: row.macs)

    @property
    def expected_bitops(self) -> int | float:
        """Bit operations of the average sample, as :attr:`expected_macs`; equal to :attr:`bitops` without exits."""
        return self._expected(lambda row: row.bitops)

    def _expected(self, cost: Callable[[CostRow], int | Fraction]) -> int | float:
        rates, total = self.rates, Fraction(0)
        places = dict.fromkeys((row.segment, row.branch) for row in self.rows)
        share = {place: rates.share(*place) for place in places}
        for row in self.rows:
            total += share[row.segment, row.branch] * cost(row)
        return _number(total)

    @property
    def rates(self) -> Rates:
        """The shares of samples that leave at exits and take branches, of which the expected cost is made."""
        return Rates(self.exits, self.exit_rates, self.conditions, self.true_rates)

    def reprice(
        self,
        convention: str | None = None,
        widths: Mapping[str, tuple[int, int]] | None = None,
        exit_rates: Mapping[str, float] | None = None,
    ) -> "CostReport":
        """The report of the same network under another convention, with other bit widths or other exit rates.

        ``widths``: (weight, activation) bits by :mod:`fnmatch` pattern over the module path or the node name of
        convolution and linear layers, 32 for float; the last pattern that matches a layer decides. Products of two
        activations keep their formats, as in the ``quantize`` pass. Takes about a millisecond: searches call it instead
        of editing graphs. Bit operations are exactly those of a fresh count of the graph quantized that way. Dense
        storage has the weights at their new widths, and the scales and clips that this graph has: new quantizers would
        add theirs. Encodings that depend on values are left out after a change of widths.

        Raises :class:`~chainfx.errors.CostError` on an unknown convention, a pattern that matches no layer, widths
        other than 1..8 or 32, and on exit rates as :func:`chainfx.bitops.count` does.

        >>> import torch, chainfx
        >>> report = chainfx.count(torch.nn.Linear(8, 4), torch.randn(1, 8))
        >>> report.reprice("strict", {"*": (4, 8)}).bitops
        1024
        """
        return repriced(self, convention, widths, exit_rates)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values; :meth:`from_dict` rebuilds it exactly.

        ``totals``, ``cumulative``, and the MACs and widths of a row are there for readers, :meth:`from_dict` derives
        them from the rest. Expected costs are ``None`` where nobody measured the rates.
        """
        return report_to_dict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "CostReport":
        """The report that :meth:`to_dict` wrote."""
        return cls(**report_fields(data))

    def __str__(self) -> str:
        return rendered(self, "text")

    def _repr_html_(self) -> str:
        return rendered(self, "html")

    def to_csv(self) -> str:
        """The rows as comma-separated values, one line a node, headings first."""
        return rendered(self, "csv")

    def diff(self, other: "CostReport") -> CostDiff:
        """What changed from this report to ``other``, node by node; see :class:`chainfx.bitops.diff.CostDiff`.

        Raises :class:`~chainfx.errors.CostError` if the two are under different conventions or for different inputs.
        """
        return diff_of(self, other)


def _worst(
    rows: Iterable[CostRow], cost: Callable[[CostRow], int | Fraction], conditions: tuple[str, ...]
) -> int | Fraction:
    """The cost of what always runs plus that of the dearest branch of every ``torch.cond``."""
    sums: dict[str, int | Fraction] = {"": 0}
    for row in rows:
        sums[row.branch] = sums.get(row.branch, 0) + cost(row)
    for name in sorted(conditions, key=lambda name: -name.count(".")):  # what is inside a branch before the branch
        around = name.rpartition(".")[0]
        dearest = max(sums.get(f"{name}.{side}", 0) for side in ("true", "false"))
        sums[around] = sums.get(around, 0) + dearest
    return sums[""]


def _number(value: int | Fraction) -> int | float:
    """An exact integer where the value is one, else the nearest float."""
    return value.numerator if value.denominator == 1 else float(value)
