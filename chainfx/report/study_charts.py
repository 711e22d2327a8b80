"""Charts of a whole study: the fronts of all orders in one plot, and what each stage of the chain adds."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np

from chainfx.report.study import endpoint_text
from chainfx.report.study_axes import HEIGHT, WIDTH, Axes
from chainfx.study import Arm, ArmPoint, StudyResult, Training, front_of

__all__ = ["COLOURS", "charts_html", "fronts_together", "stages_of"]

COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999"),
    *("#8c564b", "#6a3d9a"),
)
"""A colour for each arm in turn; the first eight are those of Okabe and Ito, which the colour-blind tell apart."""

_TOGETHER = ("chain", "permutations", "repetition", "ablation")
_NEAR = 0.01  # how much more than the most accurate point of a seed the one that stands for it may lose
_LEFT, _RIGHT, _TOP, _GAP, _BOTTOM = 48, 10, 14, 30, 40

Shown = Mapping[str, Sequence[ArmPoint]]


def charts_html(result: StudyResult, training: Training) -> str:
    """Both charts as figures; empty for designs that they do not suit."""
    fronts, stages = fronts_together(result, training), stages_of(result, training)
    return (_fronts(result, fronts) if fronts else "") + (_stages(result, stages) if stages else "")


def fronts_together(result: StudyResult, training: Training) -> Shown:
    """The points of every arm that is compared, by its name, where few arms belong in one plot.

    These are the whole chain beside its pairs (figure 13 of the paper), permutations, repetitions (figure 14) and
    the chain cut behind each pass.
    """
    if result.design.orders not in _TOGETHER:
        return {}
    arms = dict.fromkeys(arm for each in result.design.comparisons for arm in (each.first, each.second))
    points = {str(arm): result.points(arm, training) for arm in arms}
    return {name: found for name, found in points.items() if found}


def stages_of(result: StudyResult, training: Training) -> Shown:
    """One point a seed behind each stage of the whole chain as written, by what has been run so far (figure 15).

    The point is that which compresses furthest of those that lose at most 0.01 of accuracy more than the most accurate
    one. Empty if the design has no whole chain.
    """
    chain = Arm(tuple(result.design.passes))
    if chain not in result.design.arms:
        return {}
    cut = [Arm(chain.steps[: number + 1]) for number in range(len(chain.steps))]
    points = {str(arm): _one_a_seed(result.points(arm, training)) for arm in cut}
    return {name: found for name, found in points.items() if found}


def _one_a_seed(points: Sequence[ArmPoint]) -> list[ArmPoint]:
    seeds: dict[int, list[ArmPoint]] = {}
    for point in points:
        seeds.setdefault(point.seed, []).append(point)
    return [max(_nearly_best(each), key=lambda point: point.ratio) for each in seeds.values()]


def _nearly_best(points: Sequence[ArmPoint]) -> list[ArmPoint]:
    least = min(point.loss for point in points)
    return [point for point in points if point.loss <= least + _NEAR + 1e-9]


def _fronts(result: StudyResult, shown: Shown) -> str:
    """A line for each arm: its front over all seeds."""
    every = [point for points in shown.values() for point in points]
    axes = Axes(every, result.design.reference, endpoint_text(result.design))
    colours = _coloured(shown)
    lines = "".join(_line(points, axes, colours[name]) for name, points in shown.items())
    names = ", ".join(f'<span style="color: {colours[name]}">{escape(name)}</span>' for name in shown)
    return _figure("all orders", axes.drawn + lines, f"the fronts of all orders, over all seeds: {names}")


def _coloured(shown: Shown) -> dict[str, str]:
    return {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(shown)}


def _line(points: Sequence[ArmPoint], axes: Axes, colour: str) -> str:
    front = front_of(np.array([[math.log10(point.ratio), point.loss] for point in points]))
    places = " ".join(f"{axes.x(points[index].ratio):.1f},{axes.y(points[index].loss):.1f}" for index in front)
    dots = "".join(
        f'<circle cx="{axes.x(points[index].ratio):.1f}" cy="{axes.y(points[index].loss):.1f}" r="2.5"/>'
        for index in front
    )
    return f'<g style="fill: {colour}; stroke: {colour}"><polyline fill="none" points="{places}"/>{dots}</g>'


def _stages(result: StudyResult, shown: Shown) -> str:
    """Above how many times less is left behind each stage, below what accuracy changed; dots are seeds, bars means."""
    panel = (HEIGHT - _TOP - _GAP - _BOTTOM) / 2
    ratios = {name: [math.log10(point.ratio) for point in points] for name, points in shown.items()}
    losses = {name: [0 - point.loss for point in points] for name, points in shown.items()}
    places = {name: _LEFT + (WIDTH - _LEFT - _RIGHT) * (n + 0.5) / len(shown) for n, name in enumerate(shown)}
    drawn = _panel(ratios, places, _TOP, panel, lambda value: f"{10**value:.3g}x")
    drawn += _panel(losses, places, _TOP + panel + _GAP, panel, lambda value: f"{value:+.1%}")
    drawn += "".join(
        f'<text x="{x:.1f}" y="{HEIGHT - 20}" text-anchor="middle">{escape(name)}</text>' for name, x in places.items()
    )
    text = f"what each stage adds: {endpoint_text(result.design)}, times less than the original; below accuracy"
    return _figure("what each stage adds", drawn, text)


def _panel(
    values: Mapping[str, Sequence[float]],
    places: Mapping[str, float],
    top: float,
    height: float,
    words: Callable[[float], str],
) -> str:
    """Dots and means of one number at the places of the stages, from its least to its largest value, 0 included."""
    every = [0.0, *(value for each in values.values() for value in each)]
    low, high = min(every), max(every)
    span = (high - low) or 1.0

    def y(value: float) -> float:
        return top + height * (high - value) / span

    parts = []
    for edge in dict.fromkeys((low, 0.0, high)):
        parts.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(edge):.1f}" y2="{y(edge):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 4}" y="{y(edge) + 4:.1f}" text-anchor="end">{words(edge)}</text>')
    for name, each in values.items():
        x, mean = places[name], sum(each) / len(each)
        parts += [f'<circle class="alone" cx="{x:.1f}" cy="{y(value):.1f}" r="3"/>' for value in each]
        parts.append(
            f'<rect class="first" x="{x - 16:.1f}" y="{y(mean) - 1.5:.1f}" width="32" height="3">'
            f"<title>{escape(name)}: mean {words(mean)}</title></rect>"
        )
    return "".join(parts)


def _figure(name: str, drawn: str, caption: str) -> str:
    view = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}"'
    return f"<figure><svg {view}>{drawn}</svg><figcaption>{caption}</figcaption></figure>"
