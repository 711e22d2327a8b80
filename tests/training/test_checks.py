"""What does not fit together is said in one sentence, before anything is trained."""

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace
from torch.utils.data import DataLoader, TensorDataset

import chainfx
from chainfx.errors import DataError, InputError, TuningError
from chainfx.ir.graph import ops
from chainfx.passes import EarlyExit, Execution, PruneChannels, PruneWeights, TuneRequest
from chainfx.training import Trainer, digits, from_loaders
from tests.nets import images, small_resnet
from tests.trainers import FakeTrainer, few_digits

NEEDS = "but the default trainer needs logits of shape (12, 3), a column for each of the 3 classes of its data; "
ALONE = "wrap the network in a module that returns the logits alone, or give a trainer of your own."


class Returns(nn.Module):
    """A linear layer with ``width`` outputs, of which ``make`` makes what the network returns."""

    def __init__(self, make, width=3):
        super().__init__()
        self.layer, self.make = nn.Linear(6, width), make

    def forward(self, x):
        return self.make(self.layer(x))


def loaders(classes=3, labels=None, shape=(6,), validation=None):
    """Data of 24 training and 12 validation samples."""
    torch.manual_seed(0)
    x, y = torch.randn(24, *shape), torch.arange(24) % classes if labels is None else labels
    train = DataLoader(TensorDataset(x, y), 12)
    held = DataLoader(TensorDataset(x[:12] if validation is None else validation, y[:12]), 12)
    return from_loaders(train, held, num_classes=classes, validation=held)


def spied(model):
    """The model, and a list of the batches it saw in training mode."""
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args) if module.training else None)
    return model, seen


MISFITS = {
    "logits and features": (
        Returns(lambda z: (z, z.repeat(1, 2))),
        f"a tuple of a tensor of shape (12, 3) and a tensor of shape (12, 6) for a batch of 12 samples, {NEEDS}{ALONE}",
    ),
    "logits twice": (
        Returns(lambda z: [z, -z]),
        f"a list of a tensor of shape (12, 3) and a tensor of shape (12, 3) for a batch of 12 samples, {NEEDS}{ALONE}",
    ),
    "dict": (Returns(lambda z: {"logits": z}), f"a dict for a batch of 12 samples, {NEEDS}{ALONE}"),
    "nothing": (Returns(lambda z: ()), f"a tuple of nothing for a batch of 12 samples, {NEEDS}{ALONE}"),
    "other classes": (
        Returns(lambda z: z, 5),
        f"a tensor of shape (12, 5) for a batch of 12 samples, {NEEDS}"
        "give the last layer 3 outputs, or correct num_classes of the data.",
    ),
    "a picture": (
        Returns(lambda z: z[:, :, None, None].expand(-1, -1, 4, 4)),
        f"a tensor of shape (12, 3, 4, 4) for a batch of 12 samples, {NEEDS}"
        "give the data another task (chainfx.training) for anything but one class a sample.",
    ),
}


@pytest.mark.parametrize(("model", "message"), MISFITS.values(), ids=MISFITS)
@pytest.mark.parametrize("how", ["fit", "tune", "evaluate", "test"])
def test_a_network_that_returns_no_logits_of_the_classes(model, message, how):
    model, seen = spied(model)
    trainer = Trainer(loaders(), epochs=1)
    with pytest.raises(TuningError) as caught:
        if how == "tune":
            trainer.tune(model, TuneRequest(), seed=0, on_epoch=print)
        else:
            getattr(trainer, how)(model)
    assert str(caught.value) == f"the network returns {message}"
    assert not seen and model.training


@pytest.mark.parametrize("make", [lambda z: z, lambda z: z[:, 0]], ids=["(N, 1)", "(N,)"])
def test_a_single_logit_for_two_classes(make):
    shape = tuple(make(torch.zeros(12, 1)).shape)
    with pytest.raises(TuningError) as caught:
        Trainer(loaders(2), epochs=1).fit(Returns(make, 1))
    assert str(caught.value) == (
        f"the network returns a tensor of shape {shape} for a batch of 12 samples, but the default trainer needs "
        "logits of shape (12, 2), a column for each of the 2 classes of its data; "
        "give the last layer two outputs, or the data task=binary_classification() for a single logit."
    )


def test_a_chain_stops_before_its_first_pass():
    stages = []
    model = Returns(lambda z: (z, z.relu()))
    with pytest.raises(TuningError, match=r"^the network returns a tuple of a tensor of shape \(12, 3\) and"):
        chainfx.compile(
            model,
            [PruneWeights(0.5)],
            example_inputs=torch.randn(2, 6),
            trainer=Trainer(loaders(), epochs=1),
            on_stage=stages.append,
        )
    assert not stages


def test_one_tensor_in_a_tuple_is_logits_as_well():
    assert Trainer(loaders(), epochs=1).fit(Returns(lambda z: (z,))) > 0


class Exits(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.first, self.last = nn.Linear(6, width), nn.Linear(6, 3)

    def forward(self, x):
        return ops.exit_point(self.first(x), "exit1", 0.5, "max-softmax"), self.last(x)


def test_exits_return_logits_each():
    trainer = Trainer(loaders(), epochs=1)
    assert trainer.evaluate(symbolic_trace(Exits())) > 0
    with pytest.raises(TuningError) as caught:
        trainer.evaluate(symbolic_trace(Exits(4)))
    assert str(caught.value) == (
        "the network returns a tuple of a tensor of shape (12, 4) and a tensor of shape (12, 3) for a batch of 12 "
        f"samples, {NEEDS}{ALONE}"
    )


def test_a_network_with_exits_is_tuned_after_they_are_in():
    trainer = Trainer(digits(), epochs=1, batch_size=512)
    chain = [EarlyExit(exits=1, threshold=0.5, keep=True), PruneChannels(0.25)]
    small = chainfx.compile(small_resnet((1, 1)), chain, example_inputs=images(2), trainer=trainer, order="given")
    assert [record.tuned for record in small.report.records] == [False, True, True]


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range(label):
    labels = torch.arange(24) % 3
    labels[20] = label  # a training sample only
    with pytest.raises(DataError) as caught:
        Trainer(loaders(labels=labels), epochs=1).fit(nn.Linear(6, 3))
    assert str(caught.value) == (
        f"a label is {label}, but the data have 3 classes, numbered from 0 to 2; correct the labels or num_classes."
    )
    with pytest.raises(DataError, match=rf"^a label is {label}, but the data have 3 classes"):
        Trainer(loaders(labels=labels.flip(0)), epochs=1).evaluate(nn.Linear(6, 3))


def test_labels_in_memory_are_checked_before_the_first_step():
    data = few_digits()
    data.train.targets[3] = 10
    with pytest.raises(DataError) as caught:
        Trainer(data, epochs=1).fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    assert str(caught.value) == (
        "a label is 10, but the data have 10 classes, numbered from 0 to 9; correct the labels or num_classes."
    )


def test_labels_of_another_shape():
    with pytest.raises(DataError) as caught:
        Trainer(loaders(labels=torch.zeros(24, 1, dtype=torch.long)), epochs=1).evaluate(nn.Linear(6, 3))
    assert str(caught.value) == (
        "the labels of a batch of 12 samples have shape (12, 1); "
        "give the index of one class for each sample, shape (12,)."
    )


@pytest.mark.parametrize("how", ["fit", "evaluate"])
def test_data_that_do_not_fit_the_network(how):
    with pytest.raises(DataError) as caught:
        getattr(Trainer(loaders(shape=(5,)), epochs=1), how)(nn.Linear(6, 3))
    assert str(caught.value) == (
        "the network does not accept a batch of the data, of shape (12, 5): "
        "mat1 and mat2 shapes cannot be multiplied (12x5 and 6x3); "
        "give data of the shape and type that the network takes."
    )


def test_a_network_that_has_no_kernels_in_half_precision():
    class Odd(nn.Linear):
        def forward(self, x):
            if torch.is_autocast_enabled(x.device.type):
                raise RuntimeError("no kernel for it.")
            return super().forward(x)

    trainer = Trainer(loaders(), epochs=1)
    assert trainer.evaluate(Odd(6, 3)) >= 0
    with pytest.raises(DataError) as caught:
        trainer.on(Execution(precision="bfloat16")).evaluate(Odd(6, 3))
    assert str(caught.value) == (
        "the network does not accept a batch of the data, of shape (12, 6): no kernel for it; give data of the shape "
        "and type that the network takes, or compute in float32 if it is torch.bfloat16 that it has no kernels for on "
        "this device."
    )


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")]
)
def test_too_little_memory_is_no_misfit(error):
    def fails(logits):
        raise error

    with pytest.raises(type(error)) as caught:
        Trainer(loaders(), epochs=1).evaluate(Returns(fails))
    assert caught.value is error


def test_values_that_are_no_numbers():
    poisoned = torch.randn(12, 6)
    poisoned[3, 1] = float("nan")
    with pytest.raises(DataError) as caught:
        Trainer(loaders(validation=poisoned), epochs=1).evaluate(nn.Linear(6, 3))
    assert str(caught.value) == (
        "the data to evaluate on have values that are not a number (NaN); mend or remove these samples."
    )
    with pytest.raises(TuningError) as caught:
        Trainer(loaders(), epochs=1).fit(Returns(lambda z: z * torch.nan))
    assert str(caught.value) == (
        "the network gives logits that are not a number (NaN) on the data to evaluate on; look for NaN in its "
        "parameters and buffers, or lower the trainer's learning_rate if it was trained just now."
    )


def test_a_class_that_is_never_chosen_may_have_a_logit_of_minus_infinity():
    assert Trainer(loaders(), epochs=1).evaluate(Returns(lambda z: z.index_fill(1, torch.tensor(2), -torch.inf))) > 0


WANTED = "give chainfx.training.Trainer(data) or an object with all that chainfx.passes.Trainer lists."


@pytest.mark.parametrize(
    ("trainer", "seen"),
    [
        (digits(), "a Data, which has no tune, evaluate; "),
        (torch.optim.SGD, "the class SGD, which has no fingerprint, tune, evaluate, calibration, validation; "),
        (Trainer, "the class Trainer, not an object of it; "),
        ("default", "a str, which has no fingerprint, tune, evaluate, calibration, validation; "),
    ],
)
def test_what_is_no_trainer(trainer, seen):
    with pytest.raises(InputError) as caught:
        chainfx.compile(nn.Linear(4, 2), [PruneWeights(0.5)], example_inputs=torch.randn(2, 4), trainer=trainer)
    assert str(caught.value) == f"trainer is {seen}{WANTED}"


def test_a_metric_that_is_none():
    x = torch.randn(16, 4)
    trainer = FakeTrainer(x)
    trainer.metric = "f1"
    with pytest.raises(InputError) as caught:
        chainfx.compile(nn.Linear(4, 2), [PruneWeights(0.5)], example_inputs=x, trainer=trainer)
    assert str(caught.value) == (
        "trainer.metric is a str; give a chainfx.passes.Metric, which names what the trainer measures, "
        "or leave it out for accuracy."
    )


@pytest.mark.parametrize("value", [-0.1, "much"])
def test_what_is_much_to_lose_is_a_number(value):
    with pytest.raises(InputError) as caught:
        chainfx.compile(nn.Linear(4, 2), [PruneWeights(0.5)], example_inputs=torch.randn(2, 4), warn_drop=value)
    assert str(caught.value) == (f"warn_drop={value!r} is out of range; use a number from 0, or None for no warning.")


def test_a_trainer_that_hands_on_to_another_is_one():
    class Proxy:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

    x = torch.randn(16, 4)
    trainer = Proxy(FakeTrainer(x))
    small = chainfx.compile(nn.Linear(4, 10), [PruneWeights(0.5)], example_inputs=x, trainer=trainer)
    assert small.report.records[-1].tuned
