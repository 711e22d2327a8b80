"""What a stage says for itself: that it does not pay and was taken back, that it lost much, and why that may be."""

import warnings
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn

import chainfx
from chainfx.errors import DropWarning
from chainfx.passes import (
    EarlyExit,
    Granularity,
    Kind,
    LowRank,
    Metric,
    Pass,
    PassInfo,
    PassResult,
    PostTrainingQuantize,
    PruneChannels,
    Quantize,
)
from chainfx.scheduler import remarks
from tests.nets import graph_of, images, small_resnet
from tests.report.values import COMPRESSED, ORIGINAL
from tests.trainers import FakeTrainer

EXITS = EarlyExit(exits=1, threshold=1.5)  # nobody leaves


@pytest.fixture(scope="module")
def x():
    return images(16)


def stages_of(passes, x, trainer=None, net=None, **options):
    found = []
    net = small_resnet((1, 1)) if net is None else net
    chainfx.compile(net, passes, example_inputs=x, trainer=trainer, on_stage=found.append, order="given", **options)
    return found


def test_a_second_quantization_says_that_it_replaces_the_first(x):
    eight, four = PostTrainingQuantize(8, 8), PostTrainingQuantize(4, 6, skip=("stages.1*", "fc", "conv1"))
    _, first, second, third = stages_of([eight, four, four], x, calibration=[x])
    assert first.record.remarks == ()
    assert second.record.remarks == (
        "replaces the quantizers of an earlier stage, of 2 layers: 'stages_0_0_conv1' had 8-bit weights and a "
        "8-bit input, and now has 4 and 6 bits.",
    )
    assert third.record.remarks == ("quantizes anew what an earlier stage quantized, to the same bits.",)


def test_exits_that_nobody_takes_are_taken_back_and_the_report_says_so(x):
    before, after = stages_of([EXITS], x, FakeTrainer(x))
    assert str(after.graph_module.graph) == str(before.graph_module.graph)
    state = before.graph_module.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in after.graph_module.state_dict().items())
    record = after.record
    assert (record.modified, record.tuned, record.exit_rates) == (False, False, {})
    assert (record.after, record.metric) == (before.record.after, before.record.metric)
    (remark,) = record.remarks
    # 64 codewords from 4 channels at 8 x 8 pixels, 256 x 64 and 64 x 10 in the head; all of it is computed for nothing
    body, head = before.record.after.macs, 64 * 64 * 4 + 256 * 64 + 64 * 10
    assert remark == (
        f"does not pay: {(body + head) / body:.3g} times the expected bit operations of before (strict); "
        "the network was left as it was, which keep=True prevents."
    )


def test_exits_that_are_kept_all_the_same_say_that_they_do_not_pay(x):
    before, after = stages_of([replace(EXITS, keep=True)], x, FakeTrainer(x))
    assert after.record.modified and after.record.exit_rates == {"exit1": 0.0}
    more = after.record.after.expected_bitops / before.record.after.bitops
    assert after.record.remarks == (f"does not pay: {more:.3g} times the expected bit operations of before (strict).",)


def test_exits_that_pay_stay(x):
    net = small_resnet((1, 1, 1), width=16)
    _, after = stages_of([EarlyExit(exits=1, threshold=0.0)], x, FakeTrainer(x), net)
    assert after.record.modified and after.record.remarks == () and after.record.exit_rates == {"exit1": 1.0}
    assert after.record.after.expected_bitops < after.record.before.bitops < after.record.after.bitops


@pytest.mark.parametrize("one", [LowRank(energy=0.5), PruneChannels(0.5)], ids=lambda one: one.info.name)
def test_static_passes_that_do_not_pay_are_taken_back_unless_they_are_kept(x, one, monkeypatch):
    """By a counter that finds the result no cheaper; by the real one what these passes choose to change always is."""
    monkeypatch.setattr(remarks, "_work", lambda one, costs: 7.0)
    monkeypatch.setattr(remarks, "is_cheaper", lambda *_: False)
    before, after = stages_of([one], x)
    assert not after.record.modified and str(after.graph_module.graph) == str(before.graph_module.graph)
    assert after.record.remarks == (
        "does not pay: 1 times the bit operations of before (strict); "
        "the network was left as it was, which keep=True prevents.",
    )
    assert stages_of([replace(one, keep=True)], x)[-1].record.modified


@pytest.mark.parametrize("one", [LowRank(energy=0.5), PruneChannels(0.5)], ids=lambda one: one.info.name)
def test_static_passes_that_pay_stay_and_say_nothing(x, one):
    record = stages_of([one], x)[-1].record
    assert record.modified and record.remarks == () and record.after.bitops < record.before.bitops


def test_a_pass_that_changes_nothing_says_so(x):
    assert stages_of([PruneChannels(0.0)], x)[-1].record.remarks == ("changed nothing.",)
    assert stages_of([Quantize(32, 32, first=None, last=None)], x, calibration=[x])[-1].record.remarks == ()


@dataclass(frozen=True)
class Wider(Pass):
    """Multiplies what a network gives by one, in a layer."""

    info: ClassVar[PassInfo] = PassInfo("wider", Kind.STATIC, Granularity.LAYER, domain="network")

    def apply(self, graph_module, context, /):
        graph_module = graph_of(nn.Sequential(graph_module, nn.Linear(10, 10)).eval(), *context.example_inputs)
        return PassResult(graph_module, modified=True)


def test_any_pass_that_makes_a_network_dearer_says_so_and_stays_unless_it_must_pay(x):
    before, after = stages_of([Wider()], x)
    assert after.record.modified
    more = 1 + 100 / before.record.after.macs
    assert after.record.remarks == (f"does not pay: {more:.3g} times the bit operations of before (strict).",)


def test_of_equal_work_the_storage_decides():
    before = ORIGINAL.after
    smaller, larger = (replace(before, storage_bits=before.storage_bits + by) for by in (-1, 1))
    assert remarks.is_cheaper(PruneChannels(0.5), before, smaller)
    assert not remarks.is_cheaper(PruneChannels(0.5), before, before)
    assert not remarks.is_cheaper(PruneChannels(0.5), before, larger)


def test_a_static_pass_is_judged_by_the_whole_network_and_a_dynamic_one_by_what_is_expected():
    before = ORIGINAL.after
    after = replace(before, bitops=before.bitops + 1, expected_bitops=before.expected_bitops - 1)
    assert remarks.is_cheaper(EarlyExit(), before, after) and not remarks.is_cheaper(PruneChannels(), before, after)
    unknown = replace(after, expected_bitops=None)
    assert not remarks.is_cheaper(EarlyExit(), before, unknown)


class Falling(FakeTrainer):
    """Measures what it is told to, one after the other."""

    def __init__(self, x, *values, metric=None):
        super().__init__(x)
        self.values = list(values)
        if metric is not None:
            self.metric = metric

    def evaluate(self, graph_module):
        return self.values.pop(0)


def test_a_stage_that_loses_much_names_the_likely_causes_in_the_report_and_as_a_warning(x):
    with pytest.warns(DropWarning) as caught:
        small = chainfx.compile(
            small_resnet((1, 1)), [Quantize(2, 2)], example_inputs=x, trainer=Falling(x, 0.9, 0.8499)
        )
    remark = (
        "accuracy fell from 90.00% to 84.99%; likely causes: too strong a step ({:.1%} of the bit operations are left: "
        "use a milder option, or several steps), too little tuning (raise the trainer's epochs), "
        "calibration (batches that are too few, or unlike the data)."
    )
    before, after = (record.after.bitops for record in small.report.records)
    (warning,) = caught
    assert str(warning.message) == f"quantize(2, 2): {remark.format(after / before)}"
    assert small.report.records[-1].remarks == (remark.format(after / before),)
    shown = " ".join(str(small.report).split())
    assert f"quantize: {' '.join(remark.format(after / before).split())}" in shown
    assert type(small.report).from_dict(small.report.to_dict()) == small.report


@pytest.mark.parametrize(("most", "warns"), [(0.05, True), (0.2, False), (None, False), (0, True)])
def test_what_is_much_is_an_option_and_no_part_of_a_stored_stage(x, tmp_path, most, warns):
    def run(most):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            stages = stages_of([PruneChannels(0.5)], x, Falling(x, 0.9, 0.8), workdir=tmp_path, warn_drop=most)
        return [w.category for w in caught], stages[-1]

    assert run(None)[0] == []
    found, stage = run(most)
    assert stage.resumed and found == ([DropWarning] if warns else [])
    assert len(stage.record.remarks) == warns


def causes(one, **changes):
    record = replace(COMPRESSED, **changes)
    return list(remarks._causes(one, ORIGINAL, record))


def test_the_causes_follow_from_what_the_stage_did():
    strong = "too strong a step (50.0% of the bit operations are left: use a milder option, or several steps)"
    untuned = "no tuning (nothing trained after it)"
    tuned = "too little tuning (raise the trainer's epochs)"
    assert causes(PruneChannels()) == [strong, untuned]
    assert causes(EarlyExit(), tuned=True) == [tuned, "the exit threshold (raise it, or lower max_drop)"]
    later = "the exit threshold (it was chosen before this stage: put early-exit last)"
    assert causes(PruneChannels(), tuned=True, exit_rates={"exit1": 0.5}) == [strong, tuned, later]
    dearer = replace(ORIGINAL.after, bitops=5e6)
    calibration = "calibration (batches that are too few, or unlike the data)"
    assert causes(Quantize(), after=dearer) == [untuned, calibration]


def test_a_metric_of_ones_own_is_shown_by_its_name_and_direction(x, capsys):
    perplexity = Metric("perplexity", higher_is_better=False, form=".1f")
    with pytest.warns(DropWarning, match=r"^prune-channels\(ratio=0.5\): perplexity rose from 12.0 to 15.3; likely"):
        small = chainfx.compile(
            small_resnet((1, 1)),
            [PruneChannels(0.5)],
            example_inputs=x,
            trainer=Falling(x, 12.0, 15.3, metric=perplexity),
            warn_drop=1,
        )
    lines = str(small.report).splitlines()
    assert "perplexity (lower is better) on held-out training data; times fewer BitOps a" in lines[2]
    assert "accuracy" not in str(small.report)
    assert lines[4].split()[:3] == ["stage", "perplexity", "MACs"]
    assert [line.split()[1] for line in lines if line.startswith("original ")] == ["12.0"]
    assert "original: perplexity 12.0 (" in capsys.readouterr().err
    again = type(small.report).from_dict(small.report.to_dict())
    assert again.records[0].measured_by == perplexity


def test_a_metric_that_became_better_is_no_loss():
    assert remarks.of_loss(PruneChannels(), replace(ORIGINAL, metric=0.5), COMPRESSED, 0.0) is None
    nothing = replace(ORIGINAL, metric=None)
    assert remarks.of_loss(PruneChannels(), nothing, COMPRESSED, 0.0) is None
    lower = Metric("loss", higher_is_better=False)
    assert (lower.loss(1.0, 1.5), Metric().loss(1.0, 1.5)) == (0.5, -0.5)


def test_records_of_a_version_without_remarks_are_read():
    plain = COMPRESSED.to_dict()
    for key in ("remarks", "measured_by"):
        del plain[key]
    assert type(COMPRESSED).from_dict(plain) == COMPRESSED
