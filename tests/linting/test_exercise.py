"""The compatibility exercise: its failed chain, its correction, and each of its facts."""

import pytest

import chainfx
from chainfx.linting import Machine
from chainfx.passes import (
    Distill,
    EarlyExit,
    Fuse,
    OptimizeGraph,
    PostTrainingQuantize,
    PruneChannels,
    PruneWeights,
    Quantize,
)
from tests.linting.chains import CORRECTED, FAILED, STUDENT

HERE = Machine(integers=True, sparse=False)


def found(passes, *rules, **options):
    """Severity, rule and positions of the findings of some rules (all, if none is named)."""
    report = chainfx.lint(passes, machine=HERE, **options)
    return [(f.severity, f.rule, f.positions) for f in report.findings if not rules or f.rule in rules]


def test_the_failed_chain_gets_exactly_its_diagnosis():
    assert found(FAILED) == [
        ("error", "order", (1, 2)),  # few levels destroy the importance signal
        ("error", "order", (1, 3)),  # the student of one's own loses the bit widths
        ("error", "order", (2, 3)),  # the teacher was pruned, and the student loses the masks
        ("warning", "recovery", (1, 2)),  # nothing is tuned after the quantization
        ("warning", "post-training", (1,)),  # four bits without training
        ("info", "kernels", (1,)),  # four bits are no faster than eight
        ("info", "kernels", (2,)),  # unstructured zeros are no faster
    ]
    importance, widths, teacher, *_ = chainfx.lint(FAILED, machine=HERE).findings
    assert importance.reason == (
        "post-training-quantize stands before prune-weights, but the other order is poor: "
        "so few levels destroy the signal that tells which weights are important"
    )
    assert importance.fix == "put prune-weights before post-training-quantize"
    assert "distill invalidates 'bit-widths', which post-training-quantize establishes" in widths.reason
    assert "the teacher loses knowledge before it has passed it on" in teacher.reason


def test_its_correction_has_four_steps_with_eight_bits():
    report = chainfx.lint(FAILED, machine=HERE)
    assert report.corrected == CORRECTED
    assert [one.info.name for one in report.corrected] == ["distill", "prune-weights", "post-training-quantize", "fuse"]
    assert report.corrected[2].label == "post-training-quantize(8, 8)"


def test_the_corrected_chain_has_no_error_and_no_warning():
    assert found(CORRECTED) == [
        ("info", "pair", (1, 2)),  # pruning of the student: moderate
        ("info", "optional", (2,)),  # and may be left out
        ("info", "kernels", (2,)),
    ]
    assert chainfx.lint(CORRECTED).corrected == CORRECTED


@pytest.mark.parametrize(("bits", "trained"), [(4, False), (4, True), (8, False), (8, True)])
def test_row_1_few_bits_without_training_then_magnitude_pruning_is_poor(bits, trained):
    one = Quantize(bits, bits) if trained else PostTrainingQuantize(bits, bits)
    ((severity, _, _),) = found([one, PruneWeights(0.5)], "order")
    assert severity == ("error" if (bits, trained) == (4, False) else "warning")


def test_row_2_magnitude_pruning_then_post_training_quantization_is_good():
    chain = [PruneWeights(0.5), PostTrainingQuantize()]
    assert found(chain, "order", "pair", "recovery") == []
    (row,) = [edge for edge in chainfx.plan(chain).edges if "row 2" in edge.source]
    assert row.reason == "the weights that stay are spread more narrowly, so that the levels lie closer"


def test_row_3_distillation_then_pruning_of_the_student_is_moderate():
    (finding,) = [f for f in chainfx.lint([STUDENT, PruneWeights(0.5)]).findings if f.rule == "pair"]
    assert (finding.severity, finding.positions) == ("info", (1, 2))
    assert finding.reason == (
        "distill and then prune-weights is rated moderate: "
        "the student is small already, and pruning it much removes what it has learnt"
    )


@pytest.mark.parametrize("last", [Fuse(), OptimizeGraph()])
@pytest.mark.parametrize(
    "first", [Quantize(), PostTrainingQuantize(), PruneChannels(0.5), Distill(depth=0.5), EarlyExit()]
)
def test_row_4_graph_optimization_goes_last(first, last):
    assert found([first, last], "order") == []
    assert found([last, first], "order") == [("info", "order", (1, 2))]
    assert chainfx.plan([last, first]).passes == (first, last)


def test_row_5_pruning_of_the_teacher_then_distillation_is_poor():
    (finding,) = [f for f in chainfx.lint([PruneWeights(0.5), Distill(depth=0.5)]).findings if f.rule == "order"]
    assert finding.severity == "warning" and "the teacher loses knowledge" in finding.reason
    assert "arXiv 2604.04988" in finding.contested and finding.fix == "put distill before prune-weights"


def test_pruning_may_be_dropped_with_a_smaller_student():
    assert found([STUDENT, PruneWeights(0.5)], "optional") == [("info", "optional", (2,))]
    assert found([PruneWeights(0.5), Quantize()], "optional") == []


@pytest.mark.parametrize("count", [3, 4])
def test_more_than_three_lossy_stages_give_diminishing_returns_and_that_is_contested(count):
    chain = (Distill(depth=0.5), PruneChannels(0.5), Quantize(), EarlyExit())[:count]
    findings = [f for f in chainfx.lint([*chain, Fuse()]).findings if f.rule == "stages"]
    assert len(findings) == (count > 3)
    assert all("arXiv 2403.17447" in f.contested and f.severity == "warning" for f in findings)


def test_training_time_beats_post_training():
    (finding,) = [f for f in chainfx.lint([PostTrainingQuantize(4, 4)]).findings if f.rule == "post-training"]
    assert (
        finding.fix
        == "use a pass that is trained in place of post-training-quantize, or use post-training-quantize(8, 8)"
    )
    assert found([Quantize(4, 4)], "post-training") == []
    assert found([PostTrainingQuantize(8, 8)], "post-training") == []
    assert found([Quantize(4, 4)], "post-training", trainer=False) == [("warning", "post-training", (1,))]


def test_what_preserves_information_goes_first():
    chain = [Quantize(4, 4), PruneWeights(0.5), Distill(depth=0.5)]
    assert [one.info.name for one in chainfx.lint(chain).corrected] == ["distill", "prune-weights", "quantize"]
