"""A predicted order as text: each pair with its confidence, what rival rules say, and how far it can be trusted."""

from chainfx.report.text_tables import plain_table, text_of
from chainfx.study import RULES, Prediction

__all__ = ["prediction_text"]

_WIDTH = 140


def prediction_text(prediction: Prediction) -> str:
    """The order, a table of pairs, what it was learnt from and how it did there, and which pairs to measure."""
    table = plain_table("predicted, from each pass alone", ["first", "then", "confidence", "factor", *RULES], texts=2)
    table.show_edge = False
    for each in prediction.predictions:
        rules = [each.rules[name] or "-" for name in RULES]
        table.add_row(each.before, each.after, f"{each.confidence:.2f}", f"{each.factor:.2f}", *rules)
    return "\n".join(
        [
            f"order: {' -> '.join(prediction.order)}",
            text_of(table, width=_WIDTH).rstrip(),
            _experience(prediction),
            _advice(prediction),
        ]
    )


def _experience(prediction: Prediction) -> str:
    learnt = f"learnt from {prediction.pairs} measured pairs of {prediction.networks} networks"
    if not prediction.scores:
        return f"{learnt}, too few to leave one out: nothing says how good the prediction is"
    said = ", ".join(f"{name} {right} of {count}" for name, (right, count) in prediction.scores.items())
    return f"{learnt}; of a network left out, right: {said}"


def _advice(prediction: Prediction) -> str:
    pairs = [f"{each.before} and {each.after}" for each in prediction.predictions if each.worth_measuring]
    if not pairs:
        return "a study would hardly change this: every pair is sure, and all rules agree"
    return f"a study is worth it for {len(pairs)} of {len(prediction.predictions)} pairs: {'; '.join(pairs)}"
