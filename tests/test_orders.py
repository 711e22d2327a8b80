"""Any order of the four passes runs when it is asked for, and the result survives saving."""

from itertools import permutations

import pytest
import torch

import chainfx
from chainfx.ir.graph.exits import Answer
from chainfx.passes import Distill, EarlyExit, PruneChannels, Quantize
from tests.budget import mostly_slow
from tests.nets import images, small_resnet
from tests.trainers import FakeTrainer

PASSES = {
    "D": Distill(depth=0.5),
    "P": PruneChannels(0.4),
    "Q": Quantize(3, 4),
    "E": EarlyExit(exits=1, max_drop=0.2, keep=True),
}


QUICK = ("DPQE", "PDEQ", "QEPD", "EQDP")  # each pass in each place, and both ways round with each other


@pytest.mark.parametrize("order", mostly_slow(["".join(order) for order in permutations("DPQE")], QUICK))
def test_every_order_of_the_four_passes_runs(order, tmp_path):
    x, stages = images(16), []
    small = chainfx.compile(
        small_resnet((2, 2)),
        [PASSES[letter] for letter in order],
        example_inputs=x,
        trainer=FakeTrainer(x),
        order="given",
        on_stage=stages.append,
    )
    costs = [record.after for record in small.report.records]
    for letter, before, after in zip(order, costs, costs[1:], strict=False):
        assert (after.bitops < before.bitops) == (letter != "E"), letter
        assert after.expected_bitops <= after.bitops
    reference = Answer(stages[-1].graph_module.eval())
    torch.testing.assert_close(small(x), reference(x), atol=1e-5, rtol=1e-5)
    small.save(tmp_path)
    assert torch.equal(chainfx.load(tmp_path)(x), small(x))
