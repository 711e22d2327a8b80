"""What the trainer of a study does with requests, what students it makes, and what it measures of exits."""

import dataclasses

import pytest
import torch

from chainfx.ir.graph import content_hash, exits_of, facts_of, seeded
from chainfx.passes import Distill, EarlyExit, PassContext, Quantize, TuneRequest, classification
from chainfx.scheduler import Stage, StageRunner
from chainfx.study import ContrastedStudent, FreshStudent, Recovery, StudyTrainer, Subject, UntaughtStudent
from chainfx.study.points import points_of
from chainfx.training import Batches, Data, Trainer
from chainfx.training.data import Images
from tests.nets import graph_of, images, small_resnet
from tests.study.designs import tiny
from tests.trainers import FakeTrainer, few_digits

X = images(20)


@pytest.fixture(scope="module")
def graph_module():
    return graph_of(small_resnet(), X)


def trainer(graph_module, training):
    return StudyTrainer(FakeTrainer(X), training, 0.02, graph_module)


def test_the_paper_s_stages_are_trained_as_passes_ask(graph_module):
    asked = TuneRequest(("a",), loss="kd", teacher=graph_module, learning_rate=0.3)
    paper = trainer(graph_module, "paper")
    assert paper.served(asked) == dataclasses.replace(asked, distil_exits=True, decay="all")
    assert paper.served(TuneRequest()) == TuneRequest(loss="task", distil_exits=True, decay="all")


def test_where_training_is_held_equal_every_request_is_the_same(graph_module):
    study = trainer(graph_module, "equal")
    for asked in (TuneRequest(), TuneRequest(("a",), optimizer="adam", from_scratch=True)):
        study.tune(graph_module, asked, seed=0, on_epoch=lambda epoch: None)
    assert (
        study.trainer.requests
        == [
            TuneRequest(
                parameters=None,
                loss="kd",
                teacher=graph_module,
                learning_rate=0.02,
                from_scratch=True,
                distil_exits=True,
                decay="all",
            )
        ]
        * 2
    )


def test_what_is_trained_is_said_in_words(graph_module):
    usual = Trainer(few_digits(), epochs=4)
    paper, equal = (StudyTrainer(usual, training, 0.025, graph_module) for training in ("paper", "equal"))
    student = TuneRequest(loss="kd", teacher=graph_module, from_scratch=True)
    heads = TuneRequest(("a", "b"), loss="task", learning_rate=0.3)
    rest = "for 4 epochs"
    assert [paper.trained(each.plain()) for each in (student, TuneRequest(), heads)] == [
        f"all parameters, by distillation, at a rate of 0.05, {rest}",
        f"all parameters, by the loss of the task, at a rate of 0.005, {rest}",
        f"2 tensors, the rest frozen, by the loss of the task, at a rate of 0.3, {rest}",
    ]
    same = f"all parameters, by distillation from the original network, at a rate of 0.025, {rest}"
    assert {equal.trained(each.plain()) for each in (student, TuneRequest(), heads)} == {same}


def test_the_fingerprint_tells_trainings_and_rates_apart(graph_module):
    paper, equal = (trainer(graph_module, training) for training in ("paper", "equal"))
    faster = dataclasses.replace(equal, rate=0.03)
    assert len({paper.fingerprint, equal.fingerprint, faster.fingerprint}) == 3
    assert paper.fingerprint == dataclasses.replace(paper, rate=0.03).fingerprint


def test_a_fresh_student_is_the_original_made_smaller_and_new(graph_module):
    context = PassContext(graph_module, (X,), calibration=[(X,)], tunes=True)
    compressed = Quantize(4, 4).apply(graph_of(small_resnet(width=2), X), context).graph_module
    result = FreshStudent(Distill(width=0.5, temperature=2.0)).apply(compressed, context)
    student = result.graph_module
    assert facts_of(student).names == frozenset() and facts_of(compressed).names
    assert student.get_parameter("conv1.weight").shape == (2, 1, 3, 3)
    assert not torch.equal(student.get_parameter("conv1.weight"), graph_module.get_parameter("conv1.weight")[:2])
    assert (result.tune.loss, result.tune.temperature, result.tune.from_scratch) == ("kd", 2.0, True)
    assert str(result.tune.teacher.graph) == str(compressed.graph) and result.tune.teacher is not compressed


def test_an_untaught_student_is_the_same_network_trained_by_the_task_alone(graph_module):
    context = PassContext(graph_module, (X,), tunes=True)
    distill = Distill(width=0.5, temperature=2.0)
    taught, untaught = (one.apply(graph_of(small_resnet(), X), context) for one in (distill, UntaughtStudent(distill)))
    assert content_hash(taught.graph_module.state_dict()) == content_hash(untaught.graph_module.state_dict())
    assert (taught.tune.loss, untaught.tune.loss, untaught.tune.teacher) == ("kd", "task", None)
    assert untaught.tune.from_scratch


def test_a_contrasted_student_is_the_same_network_taught_by_contrast(graph_module):
    context = PassContext(graph_module, (X,), tunes=True)
    distill = Distill(width=0.5)
    taught, other = (one.apply(graph_of(small_resnet(), X), context) for one in (distill, ContrastedStudent(distill)))
    assert content_hash(taught.graph_module.state_dict()) == content_hash(other.graph_module.state_dict())
    assert (other.tune.loss, other.tune.contrast_weight, other.tune.teacher is None) == ("task", 0.8, False)
    assert StudyTrainer(None, "paper", 0.1, None).served(other.tune).contrast_weight == 0.8


def test_recovery_learns_from_the_original_and_changes_nothing_else(graph_module):
    context = PassContext(graph_module, (X,), calibration=[(X,)], tunes=True)
    compressed = Quantize(4, 4).apply(graph_of(small_resnet(width=2), X), context).graph_module
    before, text = content_hash(compressed.state_dict()), str(compressed.graph)
    result = Recovery(Distill(width=0.5, temperature=2.0)).apply(compressed, context)
    assert content_hash(result.graph_module.state_dict()) == before and str(result.graph_module.graph) == text
    assert (result.tune.loss, result.tune.temperature, result.tune.from_scratch) == ("kd", 2.0, False)
    assert str(result.tune.teacher.graph) == str(graph_module.graph) and result.tune.teacher is not graph_module


def test_readings_of_a_distillation_have_its_options_under_names_of_their_own():
    distill = Distill(width=0.5)
    readings = [kind(distill) for kind in (FreshStudent, UntaughtStudent, Recovery, ContrastedStudent)]
    assert [one.label for one in readings] == [f"{name}(width=0.5)" for name in NAMES]
    assert [one.spec() for one in readings] == [{**distill.spec(), "pass": name} for name in NAMES]
    assert {one.info.family for one in readings} == {"distillation"}


NAMES = ("fresh-student", "untaught-student", "recovery", "contrasted-student")


def split():
    return Images((X * 10 + 100).to(torch.uint8), torch.arange(20) % 10, (0.5,), (0.5,))


def stage_of(graph_module, *passes):
    runner = StageRunner(graph_module, example_inputs=(X,), trainer=FakeTrainer(X))
    stage = runner.first()
    for one in passes:
        stage = runner.next(stage, one)
    return stage


def test_exits_are_measured_at_every_threshold_the_ends_included(graph_module):
    stage = stage_of(graph_module, EarlyExit(exits=1, threshold=1.01, keep=True))
    batches = Batches(split(), 8)
    points = points_of(stage, batches, batches, (0.0, 0.2, 1.01), ("mac_bw_ba", "strict"), classification())
    assert [point.threshold for point in points] == [0.0, 0.2, 1.01]
    (mark,) = exits_of(stage.graph_module)
    assert mark.threshold == 1.01  # as it was
    report, original = stage.record.report, stage_of(graph_module).record.report
    assert points[0].bitops["strict"] == report.reprice("strict").cumulative[0].bitops
    assert points[2].bitops["mac_bw_ba"] == report.bitops > original.bitops
    assert points[0].bitops["mac_bw_ba"] <= points[1].bitops["mac_bw_ba"] <= points[2].bitops["mac_bw_ba"]


def test_accuracy_is_that_of_the_exit_that_is_taken(graph_module):
    stage = stage_of(graph_module, EarlyExit(exits=1, threshold=1.01, keep=True))
    pixels = split()
    inputs, _ = next(pixels.batches(20))
    with torch.no_grad():
        early, final = (logits.argmax(1) for logits in stage.graph_module.eval()(*inputs))
    judging, testing = (Batches(dataclasses.replace(pixels, labels=labels), 8) for labels in (final, early))
    first, last = points_of(stage, judging, testing, (0.0, 1.01), ("mac_bw_ba",), classification())
    alike = (early == final).float().mean().item()
    assert alike < 1 and [last.accuracy, first.test] == [1, 1]
    assert [first.accuracy, last.test] == pytest.approx([alike, alike])


def test_a_network_without_exits_is_one_point(graph_module):
    stage = stage_of(graph_module)
    batches = Batches(split(), 8)
    (point,) = points_of(stage, batches, batches, (0.0, 1.01), ("mac_bw_ba",), classification())
    assert (point.threshold, point.bitops) == (None, {"mac_bw_ba": stage.record.report.bitops})


def test_single_stages_have_the_keys_of_a_whole_run(graph_module, tmp_path):
    from chainfx.scheduler import StageStore, plan, run

    store = StageStore(tmp_path)
    passes = [Quantize(4, 4), Quantize(2, 4)]
    options = {"example_inputs": (X,), "trainer": FakeTrainer(X), "store": store, "seed": 3}
    whole = list(run(graph_module, plan(passes, "given"), **options))
    runner = StageRunner(graph_module, **options)
    first = runner.next(runner.first(), passes[0])
    second = runner.next(first, passes[1])
    assert isinstance(first, Stage) and first.resumed and second.resumed
    assert [stage.record for stage in (runner.first(), first, second)] == [stage.record for stage in whole]
    assert runner.key(first.record.fingerprint, passes[1]).fingerprint == second.record.fingerprint


def test_halves_of_what_is_held_out():
    from chainfx.training import digits, halve_validation

    data = digits(validation=0.4)
    chooses, judges = halve_validation(data)
    assert isinstance(chooses, Data) and chooses.train is data.train and chooses.fingerprint != data.fingerprint
    both = torch.cat([chooses.validation.images, judges.images])
    assert len(both) == len(data.validation)
    assert sorted(map(content_hash, both)) == sorted(map(content_hash, data.validation.images))
    assert set(judges.labels.tolist()) == set(range(10))


def test_the_original_of_a_seed_is_trained_as_long_as_the_tuning_says():
    study = tiny()
    subject = Subject.of(study)

    def trained(epochs, seed):
        with seeded(seed):
            model = subject.network()
        subject.trainer(study.tuning, epochs).fit(model, seed=seed)
        return model

    lasting = dataclasses.replace(study.tuning, original_epochs=2)
    for tuning, expected in ((study.tuning, trained(1, 3)), (lasting, trained(2, 3))):
        model = subject.original(tuning, seed=3)
        assert not model.training
        for given, known in zip(model.state_dict().values(), expected.state_dict().values(), strict=True):
            assert torch.equal(given, known)
    assert not torch.equal(model.fc.weight, subject.original(lasting, seed=4).fc.weight)
