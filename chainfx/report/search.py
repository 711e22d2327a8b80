"""What a search over the options of passes found, as text: the front, what was chosen, and what failed."""

from chainfx.report.text_tables import stage_table, text_of, times
from chainfx.search import SearchResult, Trial

__all__ = ["search_text"]

_WIDTH = 100


def search_text(result: SearchResult) -> str:
    """The Pareto front, one trial a row, the chosen one marked; then what the budget did, and trials that failed."""
    search, metric = result.search, result.measured_by
    cost = "storage" if search.cost == "storage" else f"BitOps ({search.convention})"
    better = "" if metric.higher_is_better else " (lower is better)"
    table = stage_table(
        f"the front of {len(result.trials)} trials; {metric.name}{better} on held-out data, "
        f"{metric.text(result.original)} before",
        ("options", metric.name, f"times less {cost}", ""),
    )
    for trial in result.front:
        table.add_row(_named(trial), metric.text(trial.metric), times(1 / trial.cost), _mark(trial, result))
    failed = [f"failed: {_named(trial)}: {trial.failed}" for trial in result.trials if trial.failed is not None]
    text = text_of(table, *_nothing(result), *failed, width=_WIDTH)
    return "\n".join(line.rstrip() for line in text.rstrip().splitlines())


def _named(trial: Trial) -> str:
    """The options of a trial, as in ``quantize weight_bits=4``."""
    return ", ".join(
        f"{name} {' '.join(f'{option}={value!r}' for option, value in values.items())}"
        for name, values in trial.options.items()
    )


def _mark(trial: Trial, result: SearchResult) -> str:
    return "chosen" if trial == result.chosen else ""


def _nothing(result: SearchResult) -> list[str]:
    """That no trial is within the budget, and which one is nearest to it."""
    if result.chosen is not None:
        return []
    nearest = result.front[0]
    lost = f"{nearest.loss:.4g}"
    return [
        f"no trial is within the budget of {result.search.budget:.4g}: the nearest one ({_named(nearest)}) loses "
        f"{lost}; give milder options, more trials or a larger budget."
    ]
