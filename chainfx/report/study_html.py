"""A study as one self-contained HTML page: verdicts, laws, and a plot of each comparison, without any library."""

import math
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from chainfx.report.study import ALONE, EQUALLY_LONG, alone_rows, endpoint_text, law_text, outcome_text
from chainfx.report.study_axes import HEIGHT, WIDTH, Axes
from chainfx.report.study_charts import charts_html
from chainfx.report.study_dag import dag_svg
from chainfx.report.study_sensitivity import sensitivity_html
from chainfx.report.text_tables import times
from chainfx.study import Arm, ArmPoint, Claim, Comparison, StudyResult, Training, Verdict, claims_on, front_of

__all__ = ["result_html"]

_STYLE = """\
body {font: 16px/1.4 system-ui, sans-serif; margin: 1rem; color: #222; background: #fff}
pre {white-space: pre-wrap; overflow-wrap: anywhere}
table {border-collapse: collapse}
td, th {padding: .2rem .6rem; text-align: left; border-bottom: 1px solid #ddd; white-space: nowrap}
.wide {overflow-x: auto} .maps {display: flex; flex-wrap: wrap; gap: 1rem; margin: 1rem 0}
.map {align-self: start} .map caption {text-align: left; padding: .2rem 0; white-space: nowrap}
.plots {display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1rem}
figure {margin: 0} svg {width: 100%; height: auto} svg text {font-size: 11px; fill: #444}
.first {fill: #0072b2; stroke: #0072b2; color: #0072b2} .second {fill: #d55e00; stroke: #d55e00; color: #d55e00}
.dag rect {fill: #fff; stroke: #444} .dag path {fill: none; stroke-width: 2}
.measured {stroke: #222; fill: #222} .cited {stroke: #999; fill: #999; stroke-dasharray: 5 4}
.alone {fill: #999; stroke: #999} line {stroke: #ddd}
polyline[class] {fill: none; stroke-width: 2; pointer-events: none}
circle[class] {fill-opacity: .35; stroke: none; cursor: pointer} circle[class]:hover {fill-opacity: 1}
#recipe {position: sticky; bottom: 0; background: #f4f4f4; padding: .5rem; margin: 0}
"""
_SCRIPT = """\
document.addEventListener("click", event => {
  const shown = event.target.closest("circle")?.querySelector("title");
  if (shown) document.getElementById("recipe").textContent = shown.textContent;
});
"""


def result_html(result: StudyResult) -> str:
    """The page. A point says its passes, seed and threshold when the pointer rests on it, and below after a click."""
    parts = [f"<h1>Order study {escape(repr(result.design.orders))}</h1>", f"<pre>{escape(str(result.design))}</pre>"]
    for training in result.design.trainings:
        verdicts = [each for each in result.verdicts if each.training == training]
        parts.append(f"<h2>training: {training}</h2>")
        if not verdicts:
            parts += [_rows(ALONE, alone_rows(result, training)), _trained(result, training)]
            continue
        plots = "".join(_figure(result, *each) for each in _compared(result, verdicts))
        parts += [
            _table(verdicts, result.design.tiers),
            _equally_long(result, training) if result.design.budget == "both" else "",
            f'<div class="wide">{dag_svg(result.law(training))}</div>',
            f"<pre>{escape(law_text(result.law(training)))}</pre>",
            f'<div class="plots">{charts_html(result, training)}{plots}</div>',
            sensitivity_html(result, training),
            _trained(result, training),
        ]
    claims = claims_on([result])
    parts += [
        f"<h2>claims, training: {training}</h2><pre>{escape(_claims(claims, training))}</pre>"
        for training in result.design.trainings
    ]
    origins = [f"{each.machine}, chainfx {each.chainfx}, torch {each.torch}" for each in result.origins]
    around = "\n".join([str(result.status), *dict.fromkeys(origins)])
    parts += [f"<h2>the study</h2><pre>{escape(around)}</pre>", '<pre id="recipe">click a point</pre>']
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>Order study</title><style>{_STYLE}</style></head><body>"
        f"{''.join(parts)}<script>{_SCRIPT}</script></body></html>"
    )


def _equally_long(result: StudyResult, training: Training) -> str:
    """The verdicts where every arm trains as long as the longest."""
    verdicts = [each for each in result.under("total").verdicts if each.training == training]
    return f"<h3>{EQUALLY_LONG}</h3>{_table(verdicts, result.design.tiers)}"


def _trained(result: StudyResult, training: Training) -> str:
    """What was trained, and by which last stages of chains; empty if no record says it."""
    found: dict[str, dict[str, None]] = {}
    for records in result.records.values():
        for record in records.values():
            if record.trained and record.training == training:
                chain = "".join(step.partition(":")[0] for step in record.steps)
                found.setdefault(record.trained, {})[chain] = None
    rows = [_row(["trained", "by the last pass of"], "th")]
    rows += [
        _row([words, ", ".join(sorted(chains, key=lambda chain: (len(chain), chain)))], "td")
        for words, chains in found.items()
    ]
    return f'<h3>what each stage trained</h3><div class="wide"><table>{"".join(rows)}</table></div>' if found else ""


def _claims(claims: Iterable[Claim], training: str) -> str:
    return "\n".join(str(each) for each in claims if each.training == training)


def _compared(result: StudyResult, verdicts: Sequence[Verdict]) -> Iterable[tuple[Comparison, Verdict]]:
    """The comparisons that have a verdict, with it."""
    by_name = {(each.first, each.second): each for each in verdicts}
    for comparison in result.design.comparisons:
        verdict = by_name.get((str(comparison.first), str(comparison.second)))
        if verdict is not None:
            yield comparison, verdict


def _table(verdicts: Sequence[Verdict], tiers: Sequence[float]) -> str:
    heads = ["comparison", "verdict", "confidence", "factor", "95 %", "seeds", *(f"at {tier:.1%}" for tier in tiers)]
    rows = []
    for each in verdicts:
        best = [f"{times(first)} / {times(second)}" for first, second in each.tiers.values()]
        low, high = each.interval
        cells = [f"{each.first} / {each.second}", outcome_text(each), f"{each.decision.confidence:.3f}"]
        rows.append([*cells, f"{each.factor:.2f}", f"{low:.2f}..{high:.2f}", str(len(each.seeds)), *best])
    return _rows(heads, rows)


def _rows(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [_row(heads, "th"), *(_row(row, "td") for row in rows)]
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _row(cells: Iterable[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _figure(result: StudyResult, comparison: Comparison, verdict: Verdict) -> str:
    """One comparison: the points of both orders, of its passes alone, and the front over all seeds of each."""
    alone = [Arm((letter,)) for letter in dict.fromkeys(comparison.first.letters)]
    arms = [("alone", alone), ("first", [comparison.first]), ("second", [comparison.second])]
    shown = {name: [point for arm in each for point in result.points(arm, verdict.training)] for name, each in arms}
    axes = Axes(
        [point for points in shown.values() for point in points], result.design.reference, endpoint_text(result.design)
    )
    marks = "".join(_marks(name, points, axes) for name, points in shown.items())
    names = f'<span class="first">{escape(verdict.first)}</span>, <span class="second">{escape(verdict.second)}</span>'
    text = f"{names}: {escape(outcome_text(verdict))}; grey: each pass alone"
    view = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(str(comparison))}"'
    return f"<figure><svg {view}>{axes.drawn}{marks}</svg><figcaption>{text}</figcaption></figure>"


def _marks(name: str, points: Sequence[ArmPoint], axes: Axes) -> str:
    """The points as circles, and their front as a line."""
    circles = "".join(
        f'<circle class="{name}" cx="{axes.x(point.ratio):.1f}" cy="{axes.y(point.loss):.1f}" r="4">'
        f"<title>{escape(_recipe(point))}</title></circle>"
        for point in points
    )
    if not points:
        return circles
    front = front_of(np.array([[math.log10(point.ratio), point.loss] for point in points]))
    line = " ".join(f"{axes.x(points[index].ratio):.1f},{axes.y(points[index].loss):.1f}" for index in front)
    return f'{circles}<polyline class="{name}" points="{line}"/>'


def _recipe(point: ArmPoint) -> str:
    exits = "" if point.threshold is None else f", exits at {point.threshold:g}"
    return (
        f"{' > '.join(point.passes)}{exits}: {times(point.ratio)}, accuracy {0 - point.loss:+.2%} (seed {point.seed})"
    )
