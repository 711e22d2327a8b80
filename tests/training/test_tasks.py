"""Losses, metrics and confidences of the tasks, worked out by hand, and training on each of them."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

import chainfx
from chainfx.errors import DataError, InputError, PassError, TuningError
from chainfx.ir.graph import ops
from chainfx.passes import EarlyExit, Metric, PruneWeights, Task
from chainfx.training import (
    Trainer,
    binary_classification,
    classes,
    from_loaders,
    from_tensors,
    language_modelling,
    multilabel_classification,
    regression,
    segmentation,
    token_classification,
)


def score(task, *batches):
    """The metric over batches of answers and targets."""
    return task.score(sum(task.tally(*batch) for batch in batches))


def test_classes_are_right_by_the_largest_logit():
    logits, targets = torch.eye(4), torch.tensor([0, 1, 3, 3])
    assert score(classes(4), (logits[:3], targets[:3]), (logits[3:], targets[3:])) == 0.75
    assert classes(4).loss(logits, targets) == F.cross_entropy(logits, targets)


def test_one_logit_says_yes_above_zero():
    task = binary_classification()
    assert score(task, (torch.tensor([[2.0], [-1.0], [3.0]]), torch.tensor([1, 1, 0]))) == pytest.approx(1 / 3)
    assert float(task.loss(torch.tensor([[0.0]]), torch.tensor([1]))) == pytest.approx(math.log(2))
    assert float(task.soft(torch.tensor([1.0]), torch.tensor([1.0]), 4.0)) == pytest.approx(0, abs=1e-6)


def test_labels_are_measured_by_f1_over_all():
    answers = torch.tensor([[1.0, 1.0, -1.0], [-1.0, 1.0, -1.0]])
    targets = torch.tensor([[1, 0, 0], [1, 1, 0]])
    assert score(multilabel_classification(3), (answers[:1], targets[:1]), (answers[1:], targets[1:])) == 2 * 2 / 6


def test_numbers_are_measured_by_the_root_of_the_mean_square():
    task = regression()
    assert (
        score(task, (torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 5.0])), (torch.zeros(2), torch.zeros(2))) == 1.5
    )
    assert not task.metric.higher_is_better and task.criteria == ()


def test_pixels_are_measured_by_the_mean_overlap_of_classes():
    """Class 0: 2 of 3 in the union; class 1: 1 of 2; class 2 occurs nowhere; one pixel does not count."""
    answer = F.one_hot(torch.tensor([[[0, 0], [1, 0]], [[1, 1], [0, 0]]]), 3).movedim(-1, 1).float()
    targets = torch.tensor([[[0, 0], [1, 1]], [[255, 255], [255, 255]]])
    assert score(segmentation(3), (answer[:1], targets[:1]), (answer[1:], targets[1:])) == pytest.approx(
        (2 / 3 + 1 / 2) / 2
    )


def test_tokens_that_are_left_out_do_not_count():
    answer = torch.eye(3)[None]
    assert score(token_classification(3), (answer, torch.tensor([[0, 2, -100]]))) == 0.5


def test_perplexity_is_that_of_the_next_token():
    task, tokens = language_modelling(4), torch.tensor([[0, 1, 2]])
    assert score(task, (torch.zeros(1, 3, 4), tokens)) == pytest.approx(4)
    sure = 50 * F.one_hot(torch.tensor([[1, 2, 0]]), 4).float()
    assert score(task, (sure, tokens)) == pytest.approx(1)
    assert score(language_modelling(4, shifted=True), (sure, torch.tensor([[1, 2, -100]]))) == pytest.approx(1)


def test_confidence_in_yes_or_no():
    logits = torch.tensor([[0.0, 0.0], [math.log(9), -math.log(3)]])
    assert ops.confidence(logits, "max-sigmoid").tolist() == pytest.approx([0.5, (0.9 + 0.75) / 2])


torch.manual_seed(0)
X = torch.randn(120, 6)
LINEAR = X @ torch.randn(6, 3)
MAPS = torch.randn(60, 2, 4, 4)


class Pixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x):
        return self.conv(x)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(5, 16), nn.Linear(16, 5)

    def forward(self, tokens):
        return self.out(self.words(tokens))


TOKENS = (torch.arange(60)[:, None] + torch.arange(6)) % 5

TRAINED = {
    "one logit": (binary_classification(), nn.Linear(6, 1), X, (LINEAR[:, 0] > 0).long(), 0.8),
    "labels": (multilabel_classification(3), nn.Linear(6, 3), X, (LINEAR > 0).long(), 0.8),
    "numbers": (regression(3), nn.Linear(6, 3), X, LINEAR, 0.5),
    "pixels": (segmentation(2), Pixels(), MAPS, (MAPS[:, 0] > MAPS[:, 1]).long(), 0.8),
    "tokens": (token_classification(5), Words(), TOKENS, (TOKENS * 2) % 5, 0.9),
    "language": (language_modelling(5), Words(), TOKENS, TOKENS, 1.5),
}


@pytest.mark.parametrize(("task", "model", "inputs", "targets", "reached"), TRAINED.values(), ids=TRAINED)
def test_each_task_is_learnt_pruned_and_recovered(task, model, inputs, targets, reached):
    data = from_tensors(inputs, targets, task=task)
    trainer = Trainer(data, epochs=30, learning_rate=0.3, batch_size=32)
    better = 1 if task.metric.higher_is_better else -1
    assert better * trainer.fit(model) >= better * reached
    small = chainfx.compile(
        model.eval(), [PruneWeights(0.3)], example_inputs=data.example_inputs(2), trainer=trainer, warn_drop=None
    )
    first, last = small.report.records
    assert first.measured_by == task.metric and last.tuned
    assert math.isfinite(trainer.test(small)) and better * last.metric >= better * (2 if better < 0 else 0.5) * reached


def test_an_exit_of_yes_and_no_answers():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 32), nn.Linear(32, 32)
            self.last = nn.Linear(32, 3)

        def forward(self, x):
            x = self.first(x).relu()
            return self.last(self.second(x).relu())

    data = from_tensors(X, (LINEAR > 0).long(), task=multilabel_classification(3))
    trainer = Trainer(data, epochs=3, learning_rate=0.1)
    one = EarlyExit(exits=1, criterion="max-sigmoid", max_drop=0.2, keep=True)
    small = chainfx.compile(Two().eval(), [one], example_inputs=X[:2], trainer=trainer, warn_drop=None)
    assert small(X).shape == (120, 3)
    assert set(small.report.records[-1].exit_rates) == {"exit1"}
    with pytest.raises(PassError) as caught:
        chainfx.compile(Two().eval(), [EarlyExit(exits=1)], example_inputs=X[:2], trainer=trainer)
    assert str(caught.value) == (
        "early-exit: criterion='max-softmax' does not fit answers of the task 'multilabel classification, 3 labels'; "
        "use 'max-sigmoid'."
    )
    numbers = Trainer(from_tensors(X, LINEAR, task=regression(3)), epochs=1)
    with pytest.raises(PassError) as caught:
        chainfx.compile(Two().eval(), [EarlyExit(exits=1)], example_inputs=X[:2], trainer=numbers)
    assert str(caught.value) == (
        "early-exit: the task 'regression, 3 outputs' does not say how sure an answer is, so no sample can leave "
        "early; leave the pass out, or give a task with criteria."
    )


class Sum(nn.Module):
    """Takes two inputs and weighs them differently."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, left, right):
        return self.first(left) - self.second(right)


def named(items):
    return {key: torch.stack([item[key] for item in items]) for key in items[0]}


def test_batches_with_names_and_several_inputs():
    """The order is that of ``inputs``, not that of the batch."""
    left, right = X[:80], X[40:]
    items = [
        {"right": b, "labels": a[:3], "left": a, "index": torch.tensor(0)} for a, b in zip(left, right, strict=True)
    ]
    loader = DataLoader(items, 20, collate_fn=named)
    data = from_loaders(loader, loader, task=regression(3), inputs=("left", "right"), validation=loader)
    (first, second), targets = next(data.train.batches(20))
    assert torch.equal(first, left[:20]) and torch.equal(second, right[:20]) and torch.equal(targets, left[:20, :3])
    trainer = Trainer(data, epochs=2)
    assert trainer.fit(Sum()) > 0
    small = chainfx.compile(Sum().eval(), [PruneWeights(0.2)], example_inputs=data.example_inputs(2), trainer=trainer)
    assert small(left=left, right=right).shape == (80, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"inputs": ("left", "middle")},
            "a DataLoader gave a mapping of right, labels, left without the input 'middle'.",
        ),
        (
            {},
            "a DataLoader gave inputs by name; say in which order the network takes them, as in "
            "from_loaders(..., inputs=['right', 'left']).",
        ),
        (
            {"inputs": ("left", "right"), "targets": "wanted"},
            "a DataLoader gave a mapping of right, labels, left without 'wanted'; name its targets, as in "
            "from_loaders(..., targets='left').",
        ),
    ],
)
def test_names_that_are_not_in_a_batch(options, message):
    items = [{"right": x, "labels": x[:3], "left": x} for x in X[:8]]
    loader = DataLoader(items, 4, collate_fn=named)
    with pytest.raises(DataError) as caught:
        from_loaders(loader, loader, task=regression(3), validation=loader, **options)
    assert str(caught.value) == message


def test_either_classes_or_a_task():
    loader = DataLoader([(x, 0) for x in X[:8]], 4)
    with pytest.raises(DataError) as caught:
        from_loaders(loader, loader, validation=loader)
    assert str(caught.value) == "from_loaders: neither of num_classes and task is given; give one of them."
    with pytest.raises(DataError, match=r"^from_loaders: both of num_classes and task is given"):
        from_loaders(loader, loader, validation=loader, num_classes=2, task=regression())


def test_answers_that_are_not_of_the_task():
    trainer = Trainer(from_tensors(X, LINEAR, task=regression(3)), epochs=1, batch_size=12)
    with pytest.raises(TuningError) as caught:
        trainer.fit(nn.Linear(6, 2))
    assert str(caught.value) == (
        "the network returns a tensor of shape (10, 2) for a batch of 10 samples, but the default trainer needs "
        "3 numbers a sample; change the last layer, or give a trainer of your own."
    )


def own_task(**options):
    given = {
        "name": "mine",
        "loss": F.l1_loss,
        "tally": lambda answer, targets: torch.stack(
            [(answer - targets).abs().sum(), torch.tensor(float(len(targets)))]
        ),
        "score": lambda sums: float(sums[0] / sums[1]),
        "metric": Metric("absolute error", higher_is_better=False, form=".2f"),
    }
    return Task(**{**given, **options})


def test_a_task_of_one_s_own():
    trainer, model = Trainer(from_tensors(X, LINEAR, task=own_task()), epochs=20, learning_rate=0.1), nn.Linear(6, 3)
    before = trainer.evaluate(model)
    assert trainer.fit(model) < 0.8 * before
    small = chainfx.compile(nn.Linear(6, 3), [PruneWeights(0.2)], example_inputs=X[:2], trainer=trainer, warn_drop=None)
    assert "absolute error" in str(small.report)


@pytest.mark.parametrize("what", ["loss", "metric"])
def test_a_task_whose_loss_or_metric_has_no_value(what):
    options = {
        "loss": {"loss": lambda answer, targets: answer.sum() * math.nan},
        "metric": {"score": lambda sums: math.nan},
    }
    trainer = Trainer(from_tensors(X, LINEAR, task=own_task(**options[what])), epochs=1, learning_rate=0.1)
    with pytest.raises(TuningError) as caught:
        trainer.fit(nn.Linear(6, 3))
    assert (
        str(caught.value)
        == {
            "loss": "tuning: the loss is nan at epoch 1 of 1, step 1 of 1, with learning rate 0.1; lower the trainer's "
            "learning_rate, or look for values that are not finite in the data.",
            "metric": "the absolute error of the task 'mine' is nan on the data to evaluate on; give data on which it "
            "has a value, or mend what the task tallies.",
        }[what]
    )


def test_a_task_without_a_metric():
    with pytest.raises(InputError) as caught:
        own_task(metric=None)
    assert str(caught.value) == (
        "task 'mine': metric is of type NoneType; give a chainfx.passes.Metric, which names what score makes of the "
        "sums of tally."
    )
    with pytest.raises(InputError) as caught:
        own_task(criteria=("hunch",))
    assert str(caught.value) == (
        "task 'mine': there is no confidence 'hunch'; use some of entropy, margin, max-sigmoid, max-softmax, "
        "pixel-entropy, pixel-margin, pixel-max-softmax, token-entropy, token-margin, token-max-softmax."
    )
