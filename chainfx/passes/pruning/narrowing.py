"""Make a network narrower as a whole: every group of coupled channels loses the same share of its units."""

import torch
from torch.fx import GraphModule

from chainfx.errors import PassError
from chainfx.ir.channels import analyse_channels, prune
from chainfx.ir.graph import Skipped
from chainfx.passes.base import PassContext
from chainfx.passes.pruning.compensation import removed_inputs
from chainfx.passes.pruning.constants import constants_of, fold_removed
from chainfx.passes.pruning.criteria import l1
from chainfx.passes.pruning.importance import get_importance, score_groups
from chainfx.passes.pruning.measurements import Evidence
from chainfx.passes.pruning.selection import Candidate, Ladder, Limits, wanted_units
from chainfx.passes.pruning.weights import Weights

__all__ = ["narrow"]


def narrow(graph_module: GraphModule, context: PassContext, ratio: float, name: str) -> tuple[Skipped, ...]:
    """Remove the share ``ratio``, in [0, 1), of the units of every group: those whose weights have the least l1 norm.

    What removed channels gave, if it was constant, is added to the biases of the layers that read them. Returns the
    layers that were left as they are, each with the reason. Raises :class:`PassError`, which begins with the name of
    the pass, ``name``, if a group would lose all its units.
    """
    analysis = analyse_channels(graph_module, context.example_inputs)
    criterion = get_importance(l1.__name__)
    if criterion is None:
        raise PassError(f"{name}: the importance {l1.__name__!r} is not registered any more.")
    emptied = next((group for group in analysis.groups if wanted_units(group.size, ratio) == 0), None)
    if emptied is not None:
        raise PassError(f"{name}: a share of {ratio} leaves none of the {emptied.size} units of {emptied.name!r}.")
    weights = Weights(graph_module)
    scores = score_groups(criterion, weights, analysis.groups, Evidence(), torch.Generator(device="cpu"), name)
    candidates = [Candidate(group, score, group.size) for group, score in zip(analysis.groups, scores, strict=True)]
    keep = Ladder(candidates, Limits()).at_share(ratio) or {}
    folded: tuple[Skipped, ...] = ()
    if known := constants_of(weights):
        _, folded = fold_removed(graph_module, removed_inputs(graph_module, analysis, keep), known, None)
    prune(graph_module, analysis, keep)
    frozen = [Skipped(each.node, f"{each.channels} channels stay: {each.reason}") for each in analysis.frozen]
    return (*frozen, *folded)
