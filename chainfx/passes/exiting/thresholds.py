"""What each threshold of the exits would give: accuracy and expected cost on held-out data."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from chainfx.bitops import count
from chainfx.ir.graph import called, choose, edit, exits_of, ops

__all__ = ["NEVER", "accuracy_of", "logits_of", "sweep_thresholds"]

NEVER = 1.01  # no confidence is above 1
_GRID = 200


def logits_of(
    graph_module: GraphModule, batches: Iterable[tuple[tuple[Tensor, ...], Tensor]]
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The logits (N, classes) of every exit and of the final output over all batches, and the targets (N,)."""
    with edit.evaluating(graph_module), torch.no_grad():
        found = [(called(graph_module, *inputs), targets) for inputs, targets in batches]
    outputs = zip(*(logits for logits, _ in found), strict=True)
    return tuple(torch.cat(parts).cpu() for parts in outputs), torch.cat([targets for _, targets in found]).cpu()


def accuracy_of(logits: Tensor, targets: Tensor) -> float:
    """The share of samples whose largest logit is that of their class."""
    return float((logits.argmax(dim=1) == targets).float().mean())


def sweep_thresholds(
    graph_module: GraphModule, logits: tuple[Tensor, ...], targets: Tensor, inputs: Sequence[Tensor]
) -> list[dict[str, Any]]:
    """What thresholds from 0 to :data:`NEVER` would give, each the same for all exits, from small to large.

    Of each: ``threshold``, ``rates`` (the share of all samples that leaves, by exit), ``accuracy``, and ``cost``, the
    expected bit operations over those of the whole network with all its heads. Between the two ends the thresholds are
    quantiles of the confidences that occur, rounded down to four digits.
    """
    marks, report = exits_of(graph_module), count(graph_module, inputs)
    points = []
    for threshold in _grid(torch.cat([ops.confidence(part, marks[0].criterion) for part in logits[:-1]])):
        index = choose(logits, tuple(replace(mark, threshold=threshold) for mark in marks))
        answers = torch.stack(logits)[index, torch.arange(len(index), device=index.device)]
        shares = (torch.bincount(index, minlength=len(logits)).double() / len(index)).tolist()
        rates = dict(zip([mark.name for mark in marks], shares, strict=False))
        points.append(
            {
                "threshold": threshold,
                "accuracy": accuracy_of(answers, targets),
                "cost": report.reprice(exit_rates=rates).expected_bitops / report.bitops,
                "rates": rates,
            }
        )
    return points


def _grid(confidences: Tensor) -> tuple[float, ...]:
    """The thresholds to try; a confidence that is no number is none that a sample could leave with."""
    numbers = confidences.double()[~confidences.isnan()]
    if not len(numbers):
        return 0.0, NEVER
    quantiles = torch.quantile(
        numbers, torch.linspace(0, 1, _GRID, dtype=torch.float64, device=numbers.device)
    ).tolist()
    return 0.0, *sorted({math.floor(value * 1e4) / 1e4 for value in quantiles}), NEVER
