"""Compiling and training inside of torch.no_grad() and torch.inference_mode()."""

import copy

import pytest
import torch
from torch import nn

import chainfx
from chainfx.errors import TuningError
from chainfx.passes import PruneChannels, Quantize
from chainfx.training import Trainer
from tests.nets import images, small_resnet
from tests.trainers import FakeTrainer, few_digits

MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
CHAIN = [PruneChannels(0.25, importance="taylor"), Quantize(4, 4)]


@pytest.fixture(params=MODES.values(), ids=MODES)
def mode(request):
    return request.param


@pytest.fixture(scope="module")
def trainer():
    return Trainer(few_digits(), epochs=1, batch_size=64)


def compiled(model, x, trainer):
    return chainfx.compile(model, CHAIN, example_inputs=x, trainer=trainer)


@pytest.fixture(scope="module")
def outside(trainer):
    return compiled(small_resnet((1, 1)), images(8), trainer)


def same(one, other):
    state = other.state_dict()
    return all(torch.equal(value, state[key]) for key, value in one.state_dict().items())


def test_a_network_is_compiled_and_tuned_as_outside(mode, trainer, outside):
    model, x = small_resnet((1, 1)), images(8)
    with mode():
        small = compiled(model, x, trainer)
        assert torch.is_grad_enabled() is False and torch.is_inference_mode_enabled() is (mode is torch.inference_mode)
    assert same(small.graph_module, outside.graph_module)
    assert not any(tensor.is_inference() for tensor in (*small.parameters(), *small.buffers(), *small.example_inputs))
    free = x.clone().requires_grad_()
    small.graph_module(free).sum().backward()
    assert free.grad.abs().sum() > 0


def test_a_network_and_data_that_were_made_in_inference_mode(outside):
    with torch.inference_mode():
        model, x, data = small_resnet((1, 1)), images(8), few_digits()
        small = compiled(model, x, Trainer(data, epochs=1, batch_size=64))
        taught = chainfx.compile(model, CHAIN, example_inputs=x, trainer=FakeTrainer(x), calibration=[x])
    for each in (small, taught, compiled(model, x, Trainer(data, epochs=1, batch_size=64))):
        assert not any(tensor.is_inference() for tensor in (*each.parameters(), *each.buffers()))
    assert same(small.graph_module, outside.graph_module)
    assert all(tensor.is_inference() for tensor in model.parameters())  # the model is left alone


def test_training_from_scratch(mode, trainer):
    inside, free = small_resnet((1, 1)), small_resnet((1, 1))
    with mode():
        found = trainer.fit(inside)
        assert trainer.evaluate(inside) == found
    assert trainer.fit(free) == found and same(inside, free)
    inside(images()).sum().backward()


def test_parameters_made_in_inference_mode_are_not_trained_in_place(trainer):
    torch.manual_seed(0)
    with torch.inference_mode():
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(TuningError) as caught:
        trainer.fit(model)
    assert str(caught.value) == (
        "tuning: the network was made in torch.inference_mode(), and torch trains no such parameters in place; "
        "train a copy.deepcopy of it that is made outside of that mode."
    )
    accuracy = trainer.evaluate(model)
    free = copy.deepcopy(model)
    assert trainer.evaluate(free) == accuracy < trainer.fit(free)
