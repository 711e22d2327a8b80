"""A study of a network that gives numbers: its error takes the place of accuracy, and less of it is better."""

import dataclasses

import pytest
import torch

from chainfx.study import Subject, Tuning, analyse, run_study, shipped_design
from chainfx.training import diabetes, halve_validation


@pytest.fixture(scope="module")
def study():
    return dataclasses.replace(
        shipped_design("pairwise", "diabetes", seeds=1),
        cases=1,
        trainings=("paper",),
        tuning=Tuning(epochs=1, original_epochs=2, batch_size=64),
    )


def test_points_have_the_error_with_its_sign_turned(study, tmp_path):
    result = analyse(run_study(study, tmp_path))
    assert result.status.failures == () and result.status.recorded == result.status.cases
    assert {(each.first, each.second) for each in result.verdicts if each.primary} == {
        ("DP", "PD"),
        ("DQ", "QD"),
        ("PQ", "QP"),
    }
    (record,) = (each for each in result.records[0].values() if not each.passes)
    subject = Subject.of(study)
    model = subject.original(study.tuning, seed=0)
    ((inputs, targets),) = subject.judges.batches(len(subject.judges))
    with torch.no_grad():
        error = (model(*inputs) - targets[:, None]).square().mean().sqrt()
    assert record.points[0].accuracy == pytest.approx(-float(error), rel=1e-5)


def test_designs_for_numbers_have_no_exits_and_no_shallower_students(study):
    assert "E" not in study.passes and all(one.depth is None for one in study.passes["D"])
    assert "E" not in shipped_design("sensitivity", "diabetes").passes


def test_samples_that_are_held_out_are_halved():
    data = diabetes(validation=0.5)
    chooses, judges = halve_validation(data)
    targets = torch.cat([chooses.validation.targets, judges.targets])
    assert len(chooses.validation) == len(judges) + 1 == 89
    assert torch.equal(targets.sort().values, data.validation.targets.sort().values)
    assert chooses.fingerprint != data.fingerprint and chooses.train is data.train
