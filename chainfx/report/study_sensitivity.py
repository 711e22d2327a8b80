"""Maps of a study: for every pair of passes, which order is better at which strengths of both."""

import math
from collections.abc import Sequence
from html import escape

from chainfx.study import StrengthVerdict, StudyResult, Training, strengths_of

__all__ = ["sensitivity_html"]

_WORDS = {"first": "better", "second": "worse"}
_FIRST, _SECOND = "0, 114, 178", "213, 94, 0"  # the colours of both orders in the plots
_STRONGEST = math.log10(2)  # a factor of two or more has the full colour


def sensitivity_html(result: StudyResult, training: Training) -> str:
    """A table for every pair of passes with several strengths, one row for each of the first, a column for the second.

    A cell says how many times further the first pass before the second compresses than the other order, and the
    verdict; the colour is that of the better order. Empty if no pair has strengths.
    """
    found = strengths_of(result, training)
    pairs: dict[tuple[str, str], list[StrengthVerdict]] = {}
    for each in found:
        pairs.setdefault((_name(each.first), _name(each.second)), []).append(each)
    maps = [_map(*names, cells) for names, cells in pairs.items() if len(cells) > 1]
    return f'<div class="wide maps">{"".join(maps)}</div>' if maps else ""


def _map(first: str, second: str, cells: Sequence[StrengthVerdict]) -> str:
    columns = dict.fromkeys(each.second for each in cells)
    rows = dict.fromkeys(each.first for each in cells)
    known = {(each.first, each.second): each for each in cells}
    heads = "".join(f"<th>{escape(_options(column))}</th>" for column in columns)
    lines = [
        f"<tr><th>{escape(_options(row))}</th>{''.join(_cell(known.get((row, column))) for column in columns)}</tr>"
        for row in rows
    ]
    caption = f"<caption>{escape(first)} (rows) before {escape(second)} (columns)</caption>"
    return f'<table class="map">{caption}<tr><th></th>{heads}</tr>{"".join(lines)}</table>'


def _cell(verdict: StrengthVerdict | None) -> str:
    if verdict is None:
        return "<td></td>"
    outcome = verdict.decision.outcome
    text = f"{verdict.factor:.2f} {_WORDS.get(outcome, outcome)}"
    depth = min(abs(math.log10(verdict.factor)) / _STRONGEST, 1.0) * (0.6 if outcome in _WORDS else 0.2)
    colour = _FIRST if verdict.factor > 1 else _SECOND
    return f'<td style="background: rgba({colour}, {depth:.2f})">{escape(text)}</td>'


def _name(label: str) -> str:
    return label.split("(", maxsplit=1)[0]


def _options(label: str) -> str:
    """The options of a label, as in ``ratio=0.5``."""
    return label.removeprefix(_name(label)).strip("()") or label
