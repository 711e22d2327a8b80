"""Random networks with random channels removed equal the masked ones, and cost what the analysis says.

Ten networks that are always the same, 200 in ``make test-all``; with ``RANDOM_NETWORKS=20000`` in the environment that
many new ones (nightly).
"""

import os
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chainfx.ir.channels.analyse import analyse_channels
from chainfx.ir.channels.ledger import Ledger
from tests.budget import examples, mostly_slow
from tests.ir.channels import prune_checks as checks
from tests.ir.channels.masked import captured
from tests.strategies import BLOCKS, plan_of, plans

NIGHTLY = os.environ.get("RANDOM_NETWORKS")
EXAMPLES = settings(max_examples=int(NIGHTLY), derandomize=False) if NIGHTLY else examples(1)


def any_keep(analysis):
    """A random number of random units of every group."""
    return {g.name: torch.randperm(g.size)[: int(torch.randint(1, g.size + 1, ()))] for g in analysis.groups}


EACH = [(name, fold) for fold in ("width", "heads") for name in (*BLOCKS, "exit", "joined")]
WITH_HEADS = ("attention", "fused_attention", "multi_head")  # elsewhere there is nothing to fold


@pytest.mark.parametrize(
    "case", mostly_slow(EACH, [each for each in EACH if each[1] == "width" or each[0] in WITH_HEADS]), ids="-".join
)
def test_every_block_for_itself(case):
    name, fold = case
    plan = plan_of(name)
    check_pruned(plan, fold, 0)
    check_whole(plan, fold)


@EXAMPLES
@given(plans(), st.sampled_from(("width", "heads")), st.integers(0, 99))
def test_pruned_equals_masked(plan, fold, seed):
    check_pruned(plan, fold, seed)


def check_pruned(plan, fold, seed):
    torch.manual_seed(seed)
    graph_module, inputs = captured(plan.build(), *plan.inputs())
    analysis = analyse_channels(graph_module, inputs, fold=fold)
    torch.manual_seed(seed)
    checks.check_pruned(graph_module, analysis, any_keep(analysis), inputs)


@EXAMPLES
@given(plans(), st.sampled_from(("width", "heads")))
def test_layers_that_go_together_as_a_whole_are_those_that_do_channel_by_channel(plan, fold):
    check_whole(plan, fold)


def check_whole(plan, fold):
    graph_module, inputs = captured(plan.build(), *plan.inputs())
    analysis = analyse_channels(graph_module, inputs, fold=fold)
    with patch.object(Ledger, "unite", lambda *_: False), patch.object(Ledger, "eldest", lambda _, labels: labels):
        slow = analyse_channels(graph_module, inputs, fold=fold)
    assert analysis.to_dict() == slow.to_dict()
    assert analysis.slots.keys() == slow.slots.keys()
    assert all(np.array_equal(units, slow.slots[key]) for key, units in analysis.slots.items())
    for one, other in zip(analysis.literals, slow.literals, strict=True):
        assert one[:3] == other[:3]
        for (axis, dim), (same, at) in zip(one.counts, other.counts, strict=True):
            assert (axis.shape, axis.dim, dim) == (same.shape, same.dim, at)
            assert np.array_equal(axis.units, same.units)
