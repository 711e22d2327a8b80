import pytest
import torch
import torch.nn.functional as F

from chainfx.errors import TuningError
from chainfx.training.losses import distillation_loss, soft_loss, task_loss

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


def test_distillation_weighs_the_task_on_every_output_and_the_teacher_on_the_last():
    early = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    expected = 0.1 * (F.cross_entropy(early, TARGETS) + F.cross_entropy(STUDENT, TARGETS))
    expected = expected + 0.9 * soft_loss(STUDENT, TEACHER, 4.0)
    found = distillation_loss((early, STUDENT), (-early, TEACHER), TARGETS)
    assert found.item() == pytest.approx(expected.item())


def test_the_task_loss_sums_over_outputs():
    assert task_loss((STUDENT, TEACHER), TARGETS).item() == pytest.approx(
        (F.cross_entropy(STUDENT, TARGETS) + F.cross_entropy(TEACHER, TARGETS)).item()
    )


def test_label_smoothing_reaches_the_cross_entropy():
    smooth = task_loss(STUDENT, TARGETS, label_smoothing=0.2)
    assert smooth.item() == pytest.approx(F.cross_entropy(STUDENT, TARGETS, label_smoothing=0.2).item())


def test_label_smoothing_reaches_the_hard_part_of_distillation():
    """Cross-entropy against 0.9 on the class and 0.05 on each of the two others."""
    wanted = torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.05, 0.9]])
    hard = -(wanted * torch.log_softmax(STUDENT, 1)).sum(1).mean()
    found = distillation_loss(STUDENT, TEACHER, TARGETS, hard_weight=0.5, soft_weight=0.0, label_smoothing=0.15)
    assert found.item() == pytest.approx(0.5 * hard.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("output", "shown"), [({"out": STUDENT}, "dict"), (torch.zeros(2, 3, 4, 4), "(2, 3, 4, 4)"), ((), "tuple")]
)
def test_what_is_not_logits_is_refused(output, shown):
    with pytest.raises(TuningError) as caught:
        task_loss(output, TARGETS)
    assert str(caught.value) == (
        f"the network returned {shown}, not logits of shape (N, classes) or a tuple of them; "
        "the default trainer trains classifiers, give your own trainer for anything else."
    )


def test_exits_learn_from_the_exits_of_the_teacher_or_from_its_final_output():
    early, taught = STUDENT.flip(0), TEACHER.flip(0)
    hard = 0.1 * task_loss((early, STUDENT), TARGETS)
    same = distillation_loss((early, STUDENT), (taught, TEACHER), TARGETS, exits=True)
    expected = hard + 0.9 * (soft_loss(early, taught, 4.0) + soft_loss(STUDENT, TEACHER, 4.0))
    assert same.item() == pytest.approx(expected.item())
    final = distillation_loss((early, STUDENT), TEACHER, TARGETS, exits=True)
    expected = hard + 0.9 * (soft_loss(early, TEACHER, 4.0) + soft_loss(STUDENT, TEACHER, 4.0))
    assert final.item() == pytest.approx(expected.item())
