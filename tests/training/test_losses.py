import pytest
import torch
import torch.nn.functional as F

from chainfx.passes import classification
from chainfx.passes import soft_labels as soft_loss
from chainfx.training.losses import soft_sum, task_sum

TASK = classification()

STUDENT = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.3, -0.7]])
TEACHER = torch.tensor([[1.0, 0.0, 0.0], [-2.0, 1.0, 4.0]])
TARGETS = torch.tensor([0, 2])


def test_the_soft_loss_is_the_divergence_of_softened_probabilities_times_temperature_squared():
    temperature = 4.0
    p, q = (torch.softmax(z.double() / temperature, 1) for z in (TEACHER, STUDENT))
    by_hand = temperature**2 * (p * (p / q).log()).sum() / len(TARGETS)
    assert soft_loss(STUDENT, TEACHER, temperature).item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert soft_loss(TEACHER, TEACHER, temperature).item() == pytest.approx(0, abs=1e-6)


def test_the_gradient_of_the_soft_loss_hardly_depends_on_the_temperature():
    norms = []
    for temperature in (50.0, 100.0):
        student = STUDENT.clone().requires_grad_()
        soft_loss(student, TEACHER, temperature).backward()
        norms.append(student.grad.norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


def test_without_exits_the_teacher_is_for_the_final_output():
    early = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    found = soft_sum(TASK, (early, STUDENT), (-early, TEACHER), 4.0, exits=False)
    assert found.item() == pytest.approx(soft_loss(STUDENT, TEACHER, 4.0).item())


def test_the_task_loss_sums_over_outputs():
    assert task_sum(TASK, (STUDENT, TEACHER), TARGETS).item() == pytest.approx(
        (F.cross_entropy(STUDENT, TARGETS) + F.cross_entropy(TEACHER, TARGETS)).item()
    )


def test_label_smoothing_reaches_the_cross_entropy():
    smooth = task_sum(TASK, (STUDENT,), TARGETS, 0.2)
    assert smooth.item() == pytest.approx(F.cross_entropy(STUDENT, TARGETS, label_smoothing=0.2).item())


def test_smoothed_labels_share_a_part_evenly():
    """Cross-entropy against 0.9 on the class and 0.05 on each of the two others."""
    wanted = torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.05, 0.9]])
    hard = -(wanted * torch.log_softmax(STUDENT, 1)).sum(1).mean()
    assert task_sum(TASK, (STUDENT,), TARGETS, 0.15).item() == pytest.approx(hard.item(), rel=1e-5)


def test_exits_learn_from_the_exits_of_the_teacher_or_from_its_final_output():
    early, taught = STUDENT.flip(0), TEACHER.flip(0)
    same = soft_sum(TASK, (early, STUDENT), (taught, TEACHER), 4.0, exits=True)
    expected = soft_loss(early, taught, 4.0) + soft_loss(STUDENT, TEACHER, 4.0)
    assert same.item() == pytest.approx(expected.item())
    final = soft_sum(TASK, (early, STUDENT), (TEACHER,), 4.0, exits=True)
    expected = soft_loss(early, TEACHER, 4.0) + soft_loss(STUDENT, TEACHER, 4.0)
    assert final.item() == pytest.approx(expected.item())
