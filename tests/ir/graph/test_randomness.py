"""The global random generators: started at a seed where that is needed, and always given back."""

import contextlib

import pytest
import torch
from torch import nn

from chainfx.ir.capture import capture
from chainfx.ir.graph import derived_generator, seeded
from chainfx.training import Trainer, classes, from_tensors


@pytest.fixture
def whole_machine(monkeypatch):
    """Fail where the generators of all devices are seeded, most of which nobody would give back."""

    def refuse(seed):
        raise AssertionError(f"all devices were seeded with {seed}")

    for module in (torch, torch.random):
        monkeypatch.setattr(module, "manual_seed", refuse)
    for module in (torch.cuda, torch.xpu, torch.mtia):  # of which the last cannot be seeded before torch 2.10
        monkeypatch.setattr(module, "manual_seed_all", refuse, raising=False)


def test_numbers_are_those_of_a_seeded_generator_and_what_was_there_goes_on():
    torch.manual_seed(7)
    torch.rand(3)
    here = torch.random.get_rng_state()
    with contextlib.suppress(ZeroDivisionError), seeded(3):
        drawn = torch.rand(4)
        raise ZeroDivisionError
    assert torch.equal(torch.random.get_rng_state(), here)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(4))


def test_a_purpose_has_numbers_of_its_own():
    one, again, *others = (
        derived_generator(seed, purpose) for seed, purpose in ((1, "a"), (1, "a"), (2, "a"), (1, "b"))
    )
    assert torch.equal(torch.rand(3, generator=one), torch.rand(3, generator=again))
    assert len({one.initial_seed(), *(each.initial_seed() for each in others)}) == 3


def test_no_other_device_is_seeded(whole_machine):
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    with seeded(0, [torch.device("cpu")]):
        capture(model, (torch.rand(2, 4),))
    data = from_tensors(torch.rand(40, 4), torch.arange(40) % 2, task=classes(2))
    Trainer(data, epochs=1, batch_size=4).fit(model, seed=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_is_seeded_and_given_back_where_it_is_named():
    device = torch.device("cuda", 0)
    here = torch.cuda.get_rng_state(device)
    with seeded(3, [device]):
        drawn = torch.rand(4, device=device)
    assert torch.equal(torch.cuda.get_rng_state(device), here)
    torch.cuda.manual_seed(3)
    assert torch.equal(drawn, torch.rand(4, device=device))
    there = torch.cuda.get_rng_state(device)
    with seeded(3):
        assert torch.equal(torch.cuda.get_rng_state(device), there)
