"""Give a cost report other prices, bit widths or exit rates, from the report alone: the graph is not needed again."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from chainfx.bitops.conventions import get_convention, nominal_formats
from chainfx.bitops.rows import CostRow
from chainfx.errors import CostError
from chainfx.ir.graph import FLOAT32, Format, ops

if TYPE_CHECKING:
    from chainfx.bitops.costs import CostReport

__all__ = ["nominal_of", "repriced"]

_Widths = tuple[Format, Format]


def repriced(
    report: "CostReport",
    convention: str | None,
    widths: Mapping[str, tuple[int, int]] | None,
    exit_rates: Mapping[str, float] | None,
) -> "CostReport":
    """The report under another convention, with other widths or exit rates; see :meth:`CostReport.reprice`."""
    rates = report.rates if exit_rates is None else report.rates.given(exit_rates)
    if convention is None and not widths:
        return replace(report, exit_rates=rates.exit_rates, true_rates=rates.true_rates)
    name = report.convention if convention is None else convention
    price = get_convention(name)
    asked = _formats_asked(report.rows, widths or {})
    formats = [asked.get(index, _formats_of(row)) for index, row in enumerate(report.rows)]
    nominal = nominal_formats((row.macs, *pair) for row, pair in zip(report.rows, formats, strict=True) if row.facts)
    rows = []
    for row, (weight, activation) in zip(report.rows, formats, strict=True):
        facts = replace(row.facts, weight=weight, activation=activation, nominal=nominal) if row.facts else None
        rows.append(replace(row, facts=facts, bitops=price(facts)) if facts else row)
    return replace(
        report,
        convention=name,
        rows=tuple(rows),
        storage=_storage(report, rows) if widths else report.storage,
        exit_rates=rates.exit_rates,
        true_rates=rates.true_rates,
        peak_activation_bits=None if widths else report.peak_activation_bits,
    )


def nominal_of(rows: Iterable[CostRow]) -> _Widths:
    """The nominal formats, (weight, activation), of the network that the rows of a report are of."""
    return next((row.facts.nominal for row in rows if row.facts), (FLOAT32, FLOAT32))


def _formats_of(row: CostRow) -> _Widths:
    return (row.facts.weight, row.facts.activation) if row.facts else (FLOAT32, FLOAT32)


def _formats_asked(rows: Sequence[CostRow], widths: Mapping[str, tuple[int, int]]) -> dict[int, _Widths]:
    """The formats of the layers that a pattern matches, by index of the row."""
    named: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        for name in dict.fromkeys((row.node, row.module)) if row.weight else ():
            named.setdefault(name, []).append(index)
    asked: dict[int, _Widths] = {}
    for pattern, pair in widths.items():
        formats = _checked(pattern, pair)
        exact = pattern in named
        found = named[pattern] if exact else [i for name in named if fnmatchcase(name, pattern) for i in named[name]]
        if not found:
            example = f"names look like {min(named)!r}" if named else "the network has none"
            raise CostError(f"widths: {pattern!r} matches no convolution or linear layer; {example}.")
        asked.update(dict.fromkeys(found, formats))
    return asked


def _checked(pattern: str, pair: tuple[int, int]) -> _Widths:
    known = isinstance(pair, tuple | list) and len(pair) == 2
    if not known or any(isinstance(bits, bool) or bits not in (*ops.WIDTHS, 32) for bits in pair):
        raise CostError(f"widths: {pattern!r} is given {pair!r}; give (weight bits, activation bits), each 1..8 or 32.")
    weight, activation = (FLOAT32 if bits == FLOAT32.bits else Format(bits) for bits in pair)
    return weight, activation


def _storage(report: "CostReport", rows: Sequence[CostRow]) -> dict[str, int]:
    """Dense and nominal storage with weights at the widths of ``rows``; of a shared weight the dearest use counts."""
    before, after = (_weight_bits(each) for each in (report.rows, rows))
    elements = report.storage["nominal"] // nominal_of(report.rows)[0].bits
    return {
        "dense": report.storage["dense"] + after - before,
        "nominal": elements * nominal_of(rows)[0].bits,
    }


def _weight_bits(rows: Iterable[CostRow]) -> int:
    bits: dict[str, int] = {}
    for row in rows:
        if row.facts and row.weight:
            bits[row.weight] = max(row.weight_elements * row.facts.weight.bits, bits.get(row.weight, 0))
    return sum(bits.values())
