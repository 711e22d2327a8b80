"""What is measured of the network of a stage: its costs, its metric and its exit rates, in one walk over the data."""

from collections.abc import Callable
from dataclasses import dataclass

from torch.fx import GraphModule

from chainfx.bitops import CostReport, count
from chainfx.ir.graph import Answer, exit_rates, exits_of, first_sure, shares_of
from chainfx.passes import Answers, Measurement, PassContext, Trainer

__all__ = ["Measured", "measure", "measured"]


@dataclass(frozen=True)
class Measured:
    """A network as it was measured: the cost report with the exit rates, and whether the expected cost is known."""

    measurement: Measurement
    report: CostReport

    @property
    def costs_known(self) -> bool:
        """Whether exit rates were measured, or there are no exits."""
        return not self.report.exits or bool(self.measurement.exit_rates)


def measured(
    graph_module: GraphModule, context: PassContext, trainer: Trainer | None, answers: Answers | None = None
) -> Measured:
    """The metric, exit rates and costs of a network; by the answers that are known already, where they are given."""
    measurement = measure(graph_module, context, trainer, answers)
    report = count(graph_module, context.example_inputs, exit_rates=measurement.exit_rates or None)
    return Measured(measurement, report)


def measure(
    graph_module: GraphModule, context: PassContext, trainer: Trainer | None, answers: Answers | None = None
) -> Measurement:
    """The metric and the exit rates: one walk over the validation data, none with ``answers``.

    A trainer that has no ``measure`` of its own evaluates as it does, and walks for itself.
    """
    walk: Callable[[GraphModule], Measurement] | None = getattr(trainer, "measure", None)
    if walk is not None and answers is None:
        return walk(graph_module)
    exits = exits_of(graph_module)
    chosen = None if answers is None else first_sure(answers.confidences, [mark.threshold for mark in exits])
    if walk is not None and answers is not None and chosen is not None:
        return Measurement(context.task.score(answers.sums(chosen)), shares_of(chosen, exits))
    metric = None if trainer is None else trainer.evaluate(Answer(graph_module))
    if chosen is not None:
        return Measurement(metric, shares_of(chosen, exits))
    rates = {} if context.validation is None else exit_rates(graph_module, context.validation)
    return Measurement(metric, rates)
