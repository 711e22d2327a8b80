"""Write a cost report as plain JSON values, and read it back."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, cast

from chainfx.bitops.conventions import LayerFacts, nominal_formats
from chainfx.bitops.rows import CostRow, Uncounted
from chainfx.errors import CostError
from chainfx.ir.graph import FLOAT32, Format

if TYPE_CHECKING:
    from chainfx.bitops.costs import CostReport

__all__ = ["report_fields", "report_to_dict"]

_SHARES = ("fan_in", "kept_outputs", "kept_inputs", "nonzero")


def report_to_dict(report: "CostReport") -> dict[str, Any]:
    """Write a report as plain JSON values; see :meth:`CostReport.to_dict`."""
    return {
        "convention": report.convention,
        "totals": _totals(report),
        "cumulative": [asdict(item) for item in report.cumulative],
        "rows": [_row_to_dict(row) for row in report.rows],
        "uncounted": [asdict(item) for item in report.uncounted],
        "storage_bits": report.storage_bits,
        "storage": dict(report.storage),
        "parameters": report.parameters,
        "exits": list(report.exits),
        "exit_rates": None if report.exit_rates is None else list(report.exit_rates),
        "conditions": list(report.conditions),
        "true_rates": None if report.true_rates is None else list(report.true_rates),
        "inputs": [list(shape) for shape in report.inputs],
        "dtypes": list(report.dtypes),
        "peak_activation_bits": report.peak_activation_bits,
    }


def report_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    """Read what :func:`report_to_dict` wrote: the fields of the report, by name."""
    rows = [_row_from_dict(row) for row in data["rows"]]
    layers = [row.facts for row in rows if row.facts]
    nominal = nominal_formats((facts.macs, facts.weight, facts.activation) for facts in layers)
    return {
        "convention": data["convention"],
        "rows": tuple(replace(row, facts=replace(row.facts, nominal=nominal)) if row.facts else row for row in rows),
        "uncounted": tuple(Uncounted(**item) for item in data["uncounted"]),
        "storage": dict(data["storage"]),
        "parameters": data["parameters"],
        "exits": tuple(data["exits"]),
        "exit_rates": None if data["exit_rates"] is None else tuple(data["exit_rates"]),
        "conditions": tuple(data["conditions"]),
        "true_rates": None if data["true_rates"] is None else tuple(data["true_rates"]),
        "inputs": tuple(tuple(shape) for shape in data["inputs"]),
        "dtypes": tuple(data["dtypes"]),
        "peak_activation_bits": data.get("peak_activation_bits"),
    }


def _totals(report: "CostReport") -> dict[str, int | float | None]:
    def known(total: Callable[[], int | float]) -> int | float | None:
        try:
            return total()
        except CostError:  # nobody measured the rates
            return None

    return {
        "macs": report.macs,
        "bitops": report.bitops,
        "elementwise": report.elementwise,
        "nonzero_macs": report.nonzero_macs,
        "expected_macs": known(lambda: report.expected_macs),
        "expected_bitops": known(lambda: report.expected_bitops),
        "moved_bits": report.moved_bits,
        "expected_moved_bits": known(lambda: report.expected_moved_bits),
        "energy_uj": known(report.energy),
    }


def _row_to_dict(row: CostRow) -> dict[str, Any]:
    return {
        "node": row.node,
        "operator": row.operator,
        "module": row.module,
        "shape": list(row.shape),
        "macs": row.macs,
        "elementwise": row.elementwise,
        "weight_bits": row.weight_bits,
        "activation_bits": row.activation_bits,
        "bitops": _plain(row.bitops),
        "segment": row.segment,
        "branch": row.branch,
        "pattern": row.pattern,
        "weight": row.weight,
        "weight_elements": row.weight_elements,
        "read_elements": list(row.read_elements),
        "facts": None if row.facts is None else _facts_to_dict(row.facts),
    }


def _row_from_dict(data: Mapping[str, Any]) -> CostRow:
    fields = {name: value for name, value in data.items() if name not in ("macs", "weight_bits", "activation_bits")}
    facts = None if data["facts"] is None else _facts_from_dict(data["facts"])
    fields |= {name: tuple(fields[name]) for name in ("shape", "read_elements") if name in fields}
    return CostRow(**{**fields, "bitops": _exact(data["bitops"]), "facts": facts})


def _facts_to_dict(facts: LayerFacts) -> dict[str, Any]:
    """All but the nominal formats, which follow from the rows."""
    return {
        "macs": facts.macs,
        "weight": str(facts.weight),
        "activation": str(facts.activation),
        **{name: _plain(getattr(facts, name)) for name in _SHARES},
        "first": facts.first,
        "last": facts.last,
    }


def _facts_from_dict(data: Mapping[str, Any]) -> LayerFacts:
    """The facts, with nominal formats yet to be filled in."""
    fields: dict[str, Any] = {name: data[name] for name in ("macs", "first", "last")}
    fields |= {name: _format(data[name]) for name in ("weight", "activation")}
    fields |= {name: Fraction(data[name]) for name in _SHARES}
    return LayerFacts(**fields, nominal=(FLOAT32, FLOAT32))


def _format(text: str) -> Format:
    kind = text.rstrip("0123456789")
    return Format(int(text.removeprefix(kind)), cast(Literal["float", "int", "shift"], kind))


def _plain(value: int | Fraction) -> int | str:
    return value.numerator if value.denominator == 1 else str(value)


def _exact(value: int | str) -> int | Fraction:
    return Fraction(value) if isinstance(value, str) else value
