import copy
import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import combinations, count, pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, symbolic_trace
from torch.utils.data import DataLoader, TensorDataset

from chainfx.errors import DataError, InputError, TuningError
from chainfx.ir.graph import ops
from chainfx.passes import soft_labels as soft_loss
from chainfx.passes.base import Epoch, Metric, TuneRequest
from chainfx.training import Augment, Trainer, digits, from_arrays, from_loaders, machine
from chainfx.training import running as running_module
from chainfx.training import trainer as trainer_module
from chainfx.training.machine import placed
from chainfx.training.modes import freeze
from chainfx.training.rates import rate_factor

ROOT = Path(__file__).parents[2]


class Net(nn.Module):
    """A body with BatchNorm and dropout, and a head with dropout of its own."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), nn.AvgPool2d(2)
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(128, 10))

    def forward(self, x):
        return self.head(self.body(x))


class TwoExits(Net):
    def __init__(self):
        super().__init__()
        self.early = nn.Linear(64, 10)

    def forward(self, x):
        return ops.exit_point(self.early(x.flatten(1)), "exit1", 0.5, "max-softmax"), self.head(self.body(x))


@pytest.fixture(scope="module")
def data():
    return digits()


@pytest.fixture(scope="module")
def trainer(data):
    return Trainer(data, epochs=2, learning_rate=0.1, batch_size=64)


def graph(cls=Net, seed=0) -> GraphModule:
    torch.manual_seed(seed)
    return symbolic_trace(cls())


def silent(epoch):
    pass


def finished(do):
    """Does something with every finished epoch, and nothing with what is told of parts of one."""
    return lambda epoch: do(epoch) if epoch.share == 1 else None


def tuned(trainer, model, seed=0, **request):
    trainer.tune(model, TuneRequest(**request), seed=seed, on_epoch=silent)
    return model


def changed(before, after):
    return {key for key, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[key])}


def test_it_learns_the_digits_and_reports_every_epoch(trainer):
    epochs: list[Epoch] = []
    model = Net()
    metric = trainer.fit(model, on_epoch=finished(epochs.append))
    assert [(e.index, e.total) for e in epochs] == [(1, 2), (2, 2)] and epochs[0].loss > epochs[1].loss
    assert metric == max(e.metric for e in epochs) == trainer.evaluate(model) > 0.85
    assert trainer.test(model) > 0.85
    assert trainer.metric == Metric("accuracy", higher_is_better=True, form=".2%")


def test_parts_of_an_epoch_are_told_at_a_bounded_rate_with_the_mean_loss_so_far(monkeypatch):
    """By a clock that goes 0.1 seconds further whenever it is read: once a step, and once for each that is told of."""
    now, losses, told = count(), [], []
    monkeypatch.setattr(running_module, "time", SimpleNamespace(monotonic=lambda: next(now) / 10))
    step = running_module.Run._step
    monkeypatch.setattr(running_module.Run, "_step", lambda *args: losses.append(step(*args)) or losses[-1])
    dataset = TensorDataset(torch.randn(48, 4), torch.arange(48) % 4)
    loader = DataLoader(dataset, 4)
    data = from_loaders(loader, loader, validation=loader, num_classes=4)
    Trainer(data, epochs=2).fit(nn.Linear(4, 4), on_epoch=told.append)
    assert [(e.index, e.total, e.share) for e in told] == [
        (index, 2, share) for index in (1, 2) for share in (0.25, 0.5, 0.75, 1)
    ]
    assert [e.metric is None for e in told] == [True, True, True, False] * 2
    assert len(losses) == 24
    for place, done in enumerate((3, 6, 9, 12)):
        for epoch, first in ((told[place], 0), (told[4 + place], 12)):
            assert epoch.loss == pytest.approx(sum(float(loss) for loss, _ in losses[first : first + done]) / done)


def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_generator(data):
    trainer = Trainer(data, epochs=2, augment=Augment(padding=1, flip=False))
    results = []
    for seed, noise in ((1, 0), (1, 99), (2, 0)):
        model = graph()
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        results.append(tuned(trainer, model, seed))
        assert torch.equal(before, torch.get_rng_state())
    assert not changed(results[0], results[1])
    assert changed(results[0], results[2]) >= {"head.2.weight", "body.0.weight"}


def test_augmentation_precision_and_smoothing_change_the_result(data):
    options = ({}, {"augment": Augment()}, {"precision": "bfloat16"}, {"label_smoothing": 0.1}, {"max_norm": 0.1})
    options = [{"precision": "float32", **each} for each in options]  # what "auto" means depends on the machine
    weights = [tuned(Trainer(data, epochs=1, **each), graph()).head.get_submodule("2").weight for each in options]
    assert all(not torch.equal(weights[0], other) for other in weights[1:])
    assert all(weight.dtype == torch.float32 for weight in weights)


def test_the_graph_comes_back_with_its_keys_flags_and_gradients(trainer):
    model = graph()
    model.eval()
    model.body.get_submodule("1").train()
    model.get_parameter("body.0.bias").requires_grad_(False)
    flags = {name: module.training for name, module in model.named_modules()}
    code, keys = model.code, list(model.state_dict())
    for call in (lambda: tuned(trainer, model), lambda: trainer.evaluate(model), lambda: trainer.test(model)):
        call()
        assert {name: module.training for name, module in model.named_modules()} == flags
        assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["body.0.bias"]
        assert all(parameter.grad is None for parameter in model.parameters())
    assert (code, keys) == (model.code, list(model.state_dict()))
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_what_is_trained_has_gradients_and_nothing_else():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].requires_grad_(False)
    assert list(freeze(model, ("1.weight",))) == ["1.weight"]
    assert [name for name, each in model.named_parameters() if each.requires_grad] == ["1.weight"]


def test_frozen_parts_do_not_move_nor_do_their_statistics(trainer):
    before = graph()
    names = ("head.2.weight", "head.2.bias")
    assert changed(before, tuned(trainer, copy.deepcopy(before), parameters=names)) == set(names)
    assert "body.1.running_mean" in changed(before, tuned(trainer, copy.deepcopy(before)))


def test_dropout_sleeps_in_a_frozen_part_and_works_in_a_trained_one(trainer):
    model, seen = graph(), []
    for name in ("body.3", "head.1"):
        dropout = model.get_submodule(name)
        dropout.register_forward_hook(lambda module, args, out, name=name: seen.append((name, module.training)))
    tuned(trainer, model, parameters=("head.2.weight",))
    assert set(seen) == {("body.3", False), ("head.1", True), ("head.1", False)}


def test_an_unknown_or_empty_choice_of_parameters_is_refused(trainer):
    with pytest.raises(TuningError) as caught:
        tuned(trainer, graph(), parameters=("head.2.wieght",))
    assert str(caught.value) == (
        "tuning: the network has no parameter 'head.2.wieght' to train; did you mean 'head.2.weight'?"
    )
    with pytest.raises(TuningError) as caught:
        tuned(trainer, graph(), parameters=())
    assert str(caught.value) == ("tuning: there is no parameter to train; name some in TuneRequest(parameters=...).")


def test_every_exit_is_trained_and_the_last_one_is_evaluated(trainer):
    before = graph(TwoExits)
    after = tuned(trainer, copy.deepcopy(before))
    assert {"early.weight", "head.2.weight"} <= changed(before, after)
    assert trainer.evaluate(after) > trainer.evaluate(before)


def test_distillation_brings_the_student_to_the_teacher_which_stays_as_it_is(data, trainer):
    teacher = graph(seed=1).eval()
    trainer.fit(teacher)
    kept = copy.deepcopy(teacher)
    student = graph(seed=2)
    (inputs,), _ = next(data.validation.batches(500))

    def distance():
        with torch.no_grad():
            return soft_loss(copy.deepcopy(student).eval()(inputs), teacher(inputs), 4.0).item()

    before = distance()
    tuned(trainer, student, loss="kd", teacher=teacher, hard_weight=0.0, soft_weight=1.0, from_scratch=True)
    assert distance() < before / 3
    assert not changed(kept, teacher) and not teacher.training
    with pytest.raises(TuningError) as caught:
        tuned(trainer, student, loss="kd")
    assert str(caught.value) == "tuning with loss='kd' needs a teacher; give TuneRequest(teacher=...)."


def test_a_teacher_answers_in_eval_mode_and_keeps_its_own_flags(trainer):
    teacher, modes = graph(seed=1), set()
    teacher.get_submodule("body.1").register_forward_hook(lambda module, args, out: modes.add(module.training))
    kept = copy.deepcopy(teacher)
    tuned(trainer, graph(), loss="kd", teacher=teacher)
    assert modes == {False}
    assert all(module.training for module in teacher.modules()) and not changed(kept, teacher)


def test_every_epoch_and_seed_has_its_own_order(data):
    def orders(seed):
        seen = []
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        model.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()) if module.training else None)
        Trainer(data, epochs=2, batch_size=1000).fit(model, seed=seed)
        return seen

    found = [*orders(1), *orders(2)]
    assert len(found) == 4
    assert not any(torch.equal(a, b) for a, b in combinations(found, 2))
    assert all(torch.equal(a, b) for a, b in zip(orders(1), found[:2], strict=True))


def test_images_stay_channels_first_on_a_cpu_where_channels_last_crashes_narrow_networks():
    images = torch.rand(64, 6, 8, 8)
    (placed_images,), _ = placed(((images,), torch.zeros(64)), torch.device("cpu"))
    assert placed_images.is_contiguous() and torch.equal(placed_images, images)


def test_temperature_and_weights_of_the_request_count(trainer):
    teacher = graph(seed=1)
    asked = ({}, {"temperature": 1.0}, {"hard_weight": 1.0}, {"soft_weight": 0.1})
    weights = [tuned(trainer, graph(), loss="kd", teacher=teacher, **o).head.get_submodule("2").weight for o in asked]
    assert all(not torch.equal(weights[0], other) for other in weights[1:])


def moved(trainer, **request):
    """How far one run moves the parameters, in Euclidean distance."""
    before = graph()
    after = tuned(trainer, copy.deepcopy(before), **request)
    old, new = (nn.utils.parameters_to_vector(model.parameters()).detach() for model in (before, after))
    return (new - old).norm().item()


def test_fine_tuning_uses_a_tenth_of_the_rate_unless_the_request_says_otherwise(data):
    trainer = Trainer(data, epochs=1, learning_rate=0.05)
    full, fine = moved(trainer, from_scratch=True), moved(trainer)
    assert 5 < full / fine < 12
    assert moved(trainer, learning_rate=0.05) == full
    assert moved(trainer, learning_rate=0.05, weight_decay=0.5) != full
    assert moved(trainer, learning_rate=0.05, optimizer="adam") > 2 * full


def test_the_rate_warms_up_and_falls_to_zero():
    factors = [rate_factor(step, 100) for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(a > b for a, b in pairwise(factors[4:])) and 0 < factors[-1] < 1e-3
    assert [rate_factor(0, 1), rate_factor(0, 2)] == [1, 1] and 0 < rate_factor(1, 2) < 1


def test_every_step_is_done_with_the_rate_of_the_schedule(monkeypatch):
    """Two epochs of two steps: one step of warm-up, then (1 + cos(pi i / 4)) / 2 for i = 1, 2, 3."""
    rates, step = [], torch.optim.SGD.step

    def noted(optimizer, *args, **options):
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *args, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    dataset = TensorDataset(torch.eye(8).repeat(4, 1), torch.arange(8).repeat(4))
    data = from_loaders(DataLoader(dataset, 16), DataLoader(dataset, 16), num_classes=8)
    trainer = Trainer(data, epochs=2, learning_rate=0.5)
    trainer.fit(nn.Linear(8, 8))
    shares = [1.0, 0.8535533905932737, 0.5, 0.14644660940672627]
    assert rates == pytest.approx([0.5 * share for share in shares])
    rates.clear()
    tuned(trainer, symbolic_trace(nn.Sequential(nn.Linear(8, 8))))
    assert rates == pytest.approx([0.05 * share for share in shares])


def test_labels_are_smoothed_in_distillation_as_in_training(data):
    """With no weight on the teacher distillation is the training on the labels, bit for bit, smoothing and all."""
    trainer, sharp = (Trainer(data, epochs=1, label_smoothing=each) for each in (0.2, 0.0))
    request = {"loss": "kd", "teacher": graph(seed=1), "hard_weight": 1.0, "soft_weight": 0.0}
    smooth, direct = tuned(trainer, graph(), **request), tuned(trainer, graph())
    assert not changed(smooth, direct)
    assert changed(smooth, tuned(sharp, graph(), **request))


def test_no_gradient_is_left_and_the_best_state_is_that_of_the_model(trainer):
    model = tuned(trainer, graph())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_data_without_a_batch_are_refused():
    class Nothing:
        def __len__(self):
            return 0

        def steps(self, batch_size):
            return 1

        def batches(self, batch_size, generator=None):
            return iter(())

    full = digits()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(TuningError) as caught:
        Trainer(replace(full, train=Nothing()), epochs=1).fit(model)
    assert str(caught.value) == ("tuning: the training data gave no batch; use a smaller batch size or more data.")
    with pytest.raises(DataError) as caught:
        Trainer(replace(full, validation=Nothing())).evaluate(model)
    assert str(caught.value) == ("the data to evaluate on gave no batch; check the length of its DataLoader.")


def test_batches_are_of_128_unless_the_trainer_or_the_loader_says_otherwise(data):
    def sizes(source, **options):
        seen = []
        model = nn.Sequential(nn.Flatten(), nn.LazyLinear(source.num_classes))
        model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])) if module.training else None)
        model(torch.zeros(1, *source.input_shape))
        seen.clear()
        Trainer(source, epochs=1, **options).fit(model)
        return max(seen)

    assert (sizes(data), sizes(data, batch_size=7)) == (128, 7)
    dataset = TensorDataset(torch.eye(8).repeat(8, 1), torch.arange(8).repeat(8))
    assert sizes(from_loaders(DataLoader(dataset, 16), DataLoader(dataset, 64), num_classes=8)) == 16


def test_decay_momentum_and_the_norm_of_the_gradient_are_those_of_the_trainer(monkeypatch, data):
    """What SGD and Adam are made with, and what the gradient is clipped to."""
    made, clipped = [], []
    sgd, adam, clip = torch.optim.SGD, torch.optim.Adam, nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.optim, "SGD", lambda p, lr, **o: made.append((lr, o)) or sgd(p, lr, **o))
    monkeypatch.setattr(torch.optim, "Adam", lambda p, lr, **o: made.append((lr, o)) or adam(p, lr, **o))
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda p, norm: clipped.append(norm) or clip(p, norm))
    trainer = Trainer(data, epochs=1, learning_rate=0.02, momentum=0.5, weight_decay=0.25, max_norm=3.0)
    tuned(trainer, graph())
    tuned(trainer, graph(), weight_decay=0.0, learning_rate=0.125)
    tuned(trainer, graph(), optimizer="adam", from_scratch=True)
    assert made == [
        (pytest.approx(0.002), {"momentum": 0.5, "weight_decay": 0.25}),
        (0.125, {"momentum": 0.5, "weight_decay": 0.0}),
        (0.02, {"weight_decay": 0.25}),
    ]
    assert set(clipped) == {3.0}


def test_the_defaults_are_those_of_the_protocol(data):
    trainer = Trainer(data)
    assert (trainer.epochs, trainer.learning_rate, trainer.momentum, trainer.weight_decay) == (30, 0.05, 0.9, 5e-4)
    assert (trainer.fine_tune_scale, trainer.label_smoothing, trainer.max_norm) == (0.1, 0.0, 5.0)


@pytest.mark.parametrize(
    ("precision", "native", "dtype"),
    [
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
        ("bfloat16", False, torch.bfloat16),
        ("float32", True, torch.float32),
    ],
)
def test_forward_passes_are_in_the_precision_and_evaluation_in_float32(monkeypatch, data, precision, native, dtype):
    monkeypatch.setattr("chainfx.training.trainer.computes_bfloat16", lambda device: native)
    seen = {True: set(), False: set()}
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model.register_forward_hook(lambda module, args, out: seen[module.training].add(out.dtype))
    Trainer(data, epochs=1, precision=precision).fit(model)
    assert seen == {True: {dtype}, False: {torch.float32}}


def process(index, count=2):
    """What accelerate says to process ``index`` of ``count``."""
    return SimpleNamespace(
        device=torch.device("cpu"), num_processes=count, process_index=index, is_main_process=index == 0
    )


def test_each_process_trains_on_its_own_share_of_every_batch(monkeypatch):
    dataset = TensorDataset(torch.arange(40.0)[:, None].repeat(1, 4), torch.arange(40) % 4)
    data = from_loaders(DataLoader(dataset, 8, shuffle=True), DataLoader(dataset, 8), num_classes=4)
    monkeypatch.setattr("chainfx.training.running.shared", lambda model, device: model)
    aligned = []
    monkeypatch.setattr("chainfx.training.running.same_buffers", aligned.append)

    def seen(index, count):
        monkeypatch.setattr(machine, "_state", lambda: process(index, count))
        batches, model = [], nn.Linear(4, 4)
        model.register_forward_pre_hook(
            lambda module, args: batches.append(args[0][:, 0].tolist()) if module.training else None
        )
        epochs = []
        Trainer(data, epochs=2, learning_rate=1e-3).fit(model, on_epoch=finished(epochs.append))
        assert len(epochs) == (2 if index == 0 else 0)
        assert aligned == [model] * 2  # after every epoch the statistics are those of the first process
        aligned.clear()
        return batches

    whole, first, second = seen(0, 1), seen(0, 2), seen(1, 2)
    assert [len(batch) for batch in first] == [len(batch) for batch in second] == [4] * len(whole)
    for batch, one, other in zip(whole, first, second, strict=True):
        assert (batch[::2], batch[1::2]) == (one, other)


def test_a_batch_smaller_than_the_number_of_processes_stays_whole(monkeypatch):
    batch = (torch.arange(2.0),), torch.arange(2)
    monkeypatch.setattr(machine, "_state", lambda: process(1, 3))
    assert machine.own_share(batch) is batch
    monkeypatch.setattr(machine, "_state", lambda: process(1, 2))
    (inputs,), targets = machine.own_share(batch)
    assert (inputs.tolist(), targets.tolist()) == ([1.0], [1])


def test_the_best_epoch_is_kept_and_of_equal_ones_the_last(monkeypatch, trainer):
    def run(*metrics, **options):
        model = graph()
        states, left = [copy.deepcopy(model.state_dict())], iter(metrics)
        monkeypatch.setattr("chainfx.training.running.measure_final", lambda model, *_: next(left))
        some = Trainer(trainer.data, epochs=len(metrics) - (not options))
        request = TuneRequest(**options)
        kept = finished(lambda _: states.append(copy.deepcopy(model.state_dict())))
        some.tune(model, request, seed=0, on_epoch=kept)
        assert next(left, None) is None
        same = [all(torch.equal(value, model.state_dict()[k]) for k, value in state.items()) for state in states]
        return same.index(True)

    assert run(0.0, 0.1, 0.5, 0.5, 0.2) == 3
    assert run(0.0, 0.6, 0.5) == 1
    assert run(0.6, 0.6, 0.5) == 1
    assert run(0.7, 0.6, 0.5) == 0  # what came in was better
    assert run(0.1, 0.1, 0.0, from_scratch=True) == 2


def test_validation_and_test_samples_are_never_trained_on():
    seen = set()
    images = torch.arange(100).to(torch.uint8)[:, None, None].expand(100, 2, 2).numpy()
    data = from_arrays(images, torch.arange(100).numpy() % 4, mean=(0.0,), std=(1 / 255,))
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    model.register_forward_pre_hook(
        lambda module, args: seen.update(args[0][:, 0, 0, 0].tolist()) if module.training else None
    )
    Trainer(data, epochs=4, batch_size=8, learning_rate=1e-6).fit(model)
    held = {float(v) for part in (data.validation, data.test) for v in part.images[:, 0, 0, 0]}
    assert seen == set(map(float, range(100))) - held


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_a_loss_or_gradient_that_is_not_finite_names_where(data, what):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    poison = float("nan")
    if what == "loss":
        model.register_forward_hook(lambda module, args, out: out * poison if module.training else out)
    else:
        model[1].weight.register_hook(lambda gradient: gradient * poison)
    with pytest.raises(TuningError) as caught:
        Trainer(data, epochs=3, learning_rate=0.2).fit(model)
    assert str(caught.value) == (
        f"tuning: the {what} is nan at epoch 1 of 3, step 1 of 10, with learning rate 0.2; "
        "lower the trainer's learning_rate, or look for values that are not finite in the data."
    )
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())


def test_an_interrupt_passes_through_and_the_flags_are_restored(trainer):
    def interrupt(epoch):
        raise KeyboardInterrupt

    model = graph().eval()
    with pytest.raises(KeyboardInterrupt):
        trainer.tune(model, TuneRequest(parameters=("head.2.bias",)), seed=0, on_epoch=interrupt)
    assert not model.training and all(parameter.requires_grad for parameter in model.parameters())


def test_calibration_and_validation_are_the_same_at_every_iteration(trainer):
    for batches in (trainer.calibration, [inputs for inputs, _ in trainer.validation]):
        assert [tuple(x.shape[1:]) for (x,) in batches] == [(1, 8, 8)] * len(list(batches))
    assert sum(len(x) for (x,) in trainer.calibration) == 512
    first, again = list(trainer.validation), list(trainer.validation)
    assert all(torch.equal(a[0][0], b[0][0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))


def test_it_trains_from_data_loaders_with_their_batch_size():
    dataset = TensorDataset(torch.eye(8).repeat(20, 1), torch.arange(8).repeat(20))
    data = from_loaders(DataLoader(dataset, 16, shuffle=True), DataLoader(dataset, 40), num_classes=8)
    results = []
    for noise in (0, 1):
        torch.manual_seed(3)
        model = nn.Linear(8, 8)
        torch.manual_seed(noise)
        assert Trainer(data, epochs=3, learning_rate=1.0).fit(model) == 1.0
        results.append(model)
    assert not changed(*results)
    with pytest.raises(InputError) as caught:
        Trainer(data, batch_size=32)
    assert str(caught.value) == (
        "trainer: batch_size=32 has no effect, the DataLoaders give batches of 16; leave batch_size out."
    )


def test_the_fingerprint_follows_data_and_every_option(data):
    def fingerprint(source=data, **options):
        return Trainer(source, **options).fingerprint

    options = [
        {},
        {"epochs": 3},
        {"learning_rate": 0.1},
        {"batch_size": 7},
        {"momentum": 0.5},
        {"weight_decay": 0.0},
        {"fine_tune_scale": 1.0},
        {"precision": "bfloat16"},
        {"augment": Augment()},
        {"augment": Augment(padding=1)},
        {"label_smoothing": 0.1},
        {"max_norm": 1.0},
        {"source": digits(seed=1)},
    ]
    found = {fingerprint(**chosen) for chosen in options}
    native = "bfloat16" if fingerprint(precision="bfloat16") == fingerprint() else "float32"
    assert fingerprint(precision=native) == fingerprint() == fingerprint(digits())
    assert len(found) == len(options) - (native == "bfloat16")
    assert fingerprint(batch_size=128) == fingerprint()


def test_the_fingerprint_follows_the_batch_size_that_loaders_fix(data):
    one, other = (dataclasses.replace(data, batch_size=size) for size in (8, 16))
    assert Trainer(one).fingerprint != Trainer(other).fingerprint


@pytest.mark.parametrize(("name", "value"), [("this_device", torch.device("cuda", 1)), ("process_count", 2)])
def test_the_fingerprint_follows_the_kind_of_device_and_the_number_of_processes(data, monkeypatch, name, value):
    before = Trainer(data, precision="float32").fingerprint
    monkeypatch.setattr(trainer_module, name, lambda: value)
    assert Trainer(data, precision="float32").fingerprint != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "trainer: epochs=0 is out of range; use at least 1."),
        ({"learning_rate": 0.0}, "trainer: learning_rate=0.0 is out of range; use a number above 0."),
        ({"batch_size": 0}, "trainer: batch_size=0 is out of range; use at least 1."),
        ({"momentum": 1.0}, "trainer: momentum=1.0 is out of range; use 0 or more, below 1."),
        ({"weight_decay": -1.0}, "trainer: weight_decay=-1.0 is out of range; use 0 or more."),
        ({"fine_tune_scale": 0.0}, "trainer: fine_tune_scale=0.0 is out of range; use a number above 0."),
        (
            {"precision": "float16"},
            "trainer: precision='float16' is out of range; use 'auto', 'float32' or 'bfloat16'.",
        ),
        ({"label_smoothing": 1.0}, "trainer: label_smoothing=1.0 is out of range; use 0 or more, below 1."),
        ({"max_norm": 0.0}, "trainer: max_norm=0.0 is out of range; use a number above 0."),
    ],
)
def test_options_out_of_range_are_refused(data, options, message):
    with pytest.raises(InputError) as caught:
        Trainer(data, **options)
    assert str(caught.value) == message


def test_a_seed_far_away_or_negative_is_a_seed(trainer):
    tuned(trainer, graph(), seed=-(2**70))


TWO_PROCESSES = """
import hashlib, sys, torch, chainfx
from torch import nn
from chainfx.training import Trainer, digits
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
epochs, seen = [], []
model.register_forward_pre_hook(
    lambda module, args: seen.extend(hash(x.numpy().tobytes()) for x in args[0]) if module.training else None
)
accuracy = Trainer(digits(), epochs=2).fit(model, on_epoch=lambda epoch: epochs.extend([epoch] * (epoch.share == 1)))
state = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
group = torch.distributed.get_world_size()
answer = f"{len(epochs)} {group} {accuracy > 0.7} {hashlib.sha256(state).hexdigest()} " + " ".join(map(str, seen))
open(f"{sys.argv[1]}/{torch.distributed.get_rank()}", "w").write(answer)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_one_network_together(tmp_path):
    (tmp_path / "train.py").write_text(TWO_PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [*launch, tmp_path / "train.py", tmp_path],
        check=True,
        capture_output=True,
        timeout=300,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    first, second = ((tmp_path / name).read_text().split() for name in "01")
    assert (first[:3], second[:3]) == (["2", "2", "True"], ["0", "2", "True"])
    assert first[3] == second[3]
    half = (len(first) - 4) // 2
    assert len(first) == len(second) and half >= 500
    for epoch in (slice(4, 4 + half), slice(4 + half, None)):
        assert not set(first[epoch]) & set(second[epoch])


STAGES_OF_TWO_PROCESSES = """
import hashlib, json, sys, torch, chainfx
from torch import nn
from chainfx.passes import EarlyExit, PruneWeights, Quantize
from chainfx.scheduler import StageStore
from chainfx.training import Trainer, machine
from chainfx.training.contrast import Contrast
from tests.trainers import few_digits

folder, written, seen, banks, epochs = sys.argv[1], [], [], [], []
keep, own, forward = StageStore.keep, machine.own_places, Contrast.forward
StageStore.keep = lambda self, stage: written.append(stage.record.name) or keep(self, stage)
machine.own_places = lambda places: seen.append(own(places).tolist()) or own(places)

def remembering(self, *arguments):
    loss = forward(self, *arguments)
    banks.append(hashlib.sha256(self.bank_own.numpy().tobytes() + self.bank_taught.numpy().tobytes()).hexdigest())
    return loss

Contrast.forward = remembering

def state(small):
    values = small.graph_module.state_dict().values()
    return hashlib.sha256(b"".join(each.numpy().tobytes() for each in values)).hexdigest()

def compiled():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).eval()
    return chainfx.compile(
        model, [PruneWeights(0.3), Quantize(4, 8), EarlyExit(exits=1, max_drop=0.5, keep=True)],
        example_inputs=few_digits().example_inputs(2), trainer=Trainer(few_digits(), epochs=1, batch_size=25),
        tuning={"quantize": {"contrast_weight": 0.1, "negatives": 8}}, workdir=f"{folder}/stages", warn_drop=None,
    )

chainfx.training.Trainer(few_digits()).on(chainfx.passes.Execution())  # accelerate makes the group
rank = torch.distributed.get_rank()
small = compiled()
answer = {"written": written[:], "seen": seen[:], "state": state(small),
          "metrics": [record.metric for record in small.report.records], "banks": banks[:]}
again = compiled()
answer["read"], answer["resumed"] = state(again), len(seen) == len(answer["seen"])
if rank:
    StageStore.find = lambda self, fingerprint: None  # as on a machine that has not this folder
answer["computed"] = state(compiled()) == state(small) and len(seen) == 2 * len(answer["seen"])
json.dump(answer, open(f"{folder}/{rank}", "w"))
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_tune_the_stages_of_a_chain_together(tmp_path):
    """Each reads its own share; networks, metrics and memory banks are the same in both, and one keeps the stages."""
    (tmp_path / "compress.py").write_text(STAGES_OF_TWO_PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    ended = subprocess.run(
        [*launch, tmp_path / "compress.py", tmp_path],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert ended.returncode == 0, ended.stderr
    first, second = (json.loads((tmp_path / name).read_text()) for name in "01")
    assert first["written"] == ["prune-weights", "quantize", "early-exit"] and second["written"] == []
    assert len(list((tmp_path / "stages").iterdir())) == 3
    for same in ("state", "metrics", "banks"):
        assert first[same] == second[same], same
    assert len(set(first["banks"])) == len(first["banks"]) == 6  # the steps of an epoch, of 13 and 12 samples
    for answer in (first, second):
        assert answer["resumed"] and answer["read"] == answer["state"] and answer["computed"]
    for one, other in zip(first["seen"], second["seen"], strict=True):
        assert not set(one) & set(other) and abs(len(one) - len(other)) <= 1
    assert sum(map(len, first["seen"])) + sum(map(len, second["seen"])) == 3 * 6 * 25
