"""What could be done to a network as text: what it is, what can go and what must stay, and a row for each pass."""

from collections.abc import Iterable

from rich.table import Table

from chainfx.linting import Explanation, PassOutlook
from chainfx.report.text_tables import amount, size, stage_table, text_of, wrapped

__all__ = ["explanation_text"]

_WIDTH = 100
_SHOWN = 6
_HEADINGS = ("pass", "MACs", "BitOps", "storage", "left alone")


def explanation_text(explanation: Explanation) -> str:
    """Facts first, then the table of passes, then why a pass cannot be applied or leaves layers alone."""
    costs = explanation.costs
    lines = [
        f"a network of the kind {explanation.kind}: {amount(costs.macs)} MACs, {amount(costs.parameters)} parameters, "
        f"{size(costs.storage_bits)}",
        f"channels: {explanation.groups} groups with {explanation.prunable:.0%} of the parameters can be pruned",
        *_frozen(explanation),
        f"heads: {_listed(f'{number} of {name}' for name, number in explanation.heads.items())}",
        f"places for exits: {_listed(explanation.exit_places)}",
        f"quantizable: {explanation.quantizable:.0%} of the MACs are in convolution and linear layers",
        f"low rank at 90 % of the energy: {_listed(f'{name} {list(r)}' for name, r in explanation.ranks.items())}",
    ]
    notes = [note for outlook in explanation.outlooks for note in _notes(outlook)]
    facts, reasons = ("\n".join(wrapped(text, _WIDTH) for text in texts) for texts in (lines, notes))
    return "\n\n".join([facts, text_of(_table(explanation.outlooks), width=_WIDTH).strip("\n"), reasons])


def _frozen(explanation: Explanation) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for each in explanation.frozen:
        by_reason.setdefault(each.reason, []).append(each.node)
    return [f"frozen, because {reason}: {_listed(nodes)}" for reason, nodes in by_reason.items()]


def _table(outlooks: Iterable[PassOutlook]) -> Table:
    table = stage_table("times less of each, with these options and without training", _HEADINGS)
    for outlook in outlooks:
        ratios = (outlook.macs, outlook.bitops, outlook.storage)
        cells = ["-" if ratio is None else f"{ratio:.2f}x" for ratio in ratios]
        table.add_row(outlook.label, *cells, str(len(outlook.left_alone)))
    return table


def _notes(outlook: PassOutlook) -> list[str]:
    if outlook.obstacle:
        return [f"{outlook.name} cannot be applied: {outlook.obstacle}"]
    by_reason: dict[str, list[str]] = {}
    for item in outlook.left_alone:
        by_reason.setdefault(item.reason, []).append(item.node)
    unchanged = [] if outlook.changed else [f"{outlook.name} changes nothing"]
    return unchanged + [
        f"{outlook.name} leaves {_listed(nodes)} alone: {reason}" for reason, nodes in by_reason.items()
    ]


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    shown = found if len(found) <= _SHOWN else [*found[: _SHOWN - 1], f"{len(found) - _SHOWN + 1} more"]
    return ", ".join(shown) or "none"
