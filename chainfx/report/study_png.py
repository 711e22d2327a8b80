"""The plots of a study as files: for every comparison the points of both orders, their fronts, and each pass alone."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from chainfx.errors import StudyError
from chainfx.report.study import endpoint_text, outcome_text
from chainfx.report.study_charts import COLOURS, fronts_together, stages_of
from chainfx.study import Arm, ArmPoint, Comparison, StudyResult, Training, Verdict, front_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["write_plots"]

_COLOURS = {"alone": "#999999", "first": "#0072b2", "second": "#d55e00"}


def write_plots(result: StudyResult, folder: Path) -> tuple[Path, ...]:
    """Write a PNG for every comparison that has a verdict, and the charts of the whole study; gives back their paths.

    They are named after training and arms, such as ``paper-PQ-QP.png``, or what they show: ``paper-orders.png`` and
    ``paper-stages.png``. Raises
    :class:`~chainfx.errors.StudyError` if matplotlib is missing or the folder takes no files.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise StudyError("--png draws with matplotlib, which is missing; install chainfx[plots].") from error
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for comparison, verdict in _compared(result):
            figure = Figure(figsize=(6, 4.2), layout="constrained")
            _draw(figure.add_subplot(), result, comparison, verdict)
            path = folder / f"{verdict.training}-{_name(verdict.first)}-{_name(verdict.second)}.png"
            figure.savefig(path, dpi=150)
            written.append(path)
        for training in result.design.trainings:
            for name, draw in (("orders", _draw_orders), ("stages", _draw_stages)):
                figure = Figure(figsize=(6, 4.2), layout="constrained")
                if draw(figure, result, training):
                    path = folder / f"{training}-{name}.png"
                    figure.savefig(path, dpi=150)
                    written.append(path)
    except OSError as error:
        raise StudyError(f"--png {str(folder)!r} takes no files ({error.strerror}).") from error
    return tuple(written)


def _compared(result: StudyResult) -> Iterator[tuple[Comparison, Verdict]]:
    by_name = {(str(each.first), str(each.second)): each for each in result.design.comparisons}
    return ((by_name[verdict.first, verdict.second], verdict) for verdict in result.verdicts)


def _name(arm: str) -> str:
    """The name of an arm as part of a file name: marks in words."""
    marks = {"+": "plus", "-": "mild", "~": "recovery", "*": "untaught", "^": "contrasted", " ": "_", "(": "", ")": ""}
    return "".join(marks.get(letter, letter) for letter in arm)


def _draw(axes: "Axes", result: StudyResult, comparison: Comparison, verdict: Verdict) -> None:
    """Compression to the right on a log scale, change of accuracy upwards, as on the page."""
    alone = [Arm((letter,)) for letter in comparison.first.letters]
    arms = {"alone": alone, "first": [comparison.first], "second": [comparison.second]}
    labels = {"alone": "each pass alone", "first": verdict.first, "second": verdict.second}
    for name, each in arms.items():
        points = [point for arm in each for point in result.points(arm, verdict.training)]
        _scatter(axes, points, _COLOURS[name], labels[name])
    _label(axes, result, f"{verdict.first} / {verdict.second}: {outcome_text(verdict)} ({verdict.training})")


def _label(axes: "Axes", result: StudyResult, title: str) -> None:
    axes.set_xscale("log")
    axes.set_ylim(-result.design.reference, result.design.reference / 20)
    axes.set_xlabel(f"{endpoint_text(result.design)}: times less than the original")
    axes.set_ylabel("accuracy against the original")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _draw_orders(figure: "Figure", result: StudyResult, training: Training) -> bool:
    """The fronts of all orders in one plot, where they belong in one; whether they do."""
    shown = fronts_together(result, training)
    if not shown:
        return False
    axes = figure.add_subplot()
    for index, (name, points) in enumerate(shown.items()):
        front = front_of(np.array([[math.log10(point.ratio), point.loss] for point in points]))
        line = [points[i].ratio for i in front], [-points[i].loss for i in front]
        axes.plot(*line, color=COLOURS[index % len(COLOURS)], label=name, marker="o", markersize=3)
    _label(axes, result, f"all orders ({training})")
    return True


def _draw_stages(figure: "Figure", result: StudyResult, training: Training) -> bool:
    """What each stage of the whole chain adds, where there is one; whether there is."""
    shown = stages_of(result, training)
    if not shown:
        return False
    above, below = figure.subplots(2, sharex=True)
    for place, points in enumerate(shown.values()):
        for axes, values in ((above, [p.ratio for p in points]), (below, [-p.loss for p in points])):
            axes.scatter([place] * len(values), values, 14, "#999999")
            axes.hlines(_mean(values, log=axes is above), place - 0.2, place + 0.2, colors=COLOURS[0])
    above.set_yscale("log")
    above.set_ylabel("times less")
    below.set_ylabel("accuracy")
    below.set_xticks(range(len(shown)), list(shown))
    above.set_title(f"what each stage adds: {endpoint_text(result.design)} ({training})", fontsize=10)
    return True


def _mean(values: Sequence[float], *, log: bool) -> float:
    """The mean, on a log scale that of the logarithms."""
    return float(np.exp(np.mean(np.log(values))) if log else np.mean(values))


def _scatter(axes: "Axes", points: Sequence[ArmPoint], colour: str, label: str) -> None:
    axes.scatter(
        [point.ratio for point in points], [-point.loss for point in points], 14, colour, alpha=0.4, label=label
    )
    if points:
        front = front_of(np.array([[math.log10(point.ratio), point.loss] for point in points]))
        axes.plot([points[i].ratio for i in front], [-points[i].loss for i in front], color=colour, linewidth=1.5)
