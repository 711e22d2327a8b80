"""Which batches reach the device: those of this process alone, data that fit there, and rates and averages of steps."""

import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from chainfx.errors import DataWarning, TuningError
from chainfx.passes import TuneRequest
from chainfx.training import Trainer, digits, from_loaders, machine
from chainfx.training.data import Images
from chainfx.training.feeding import Feed, resident
from chainfx.training.rates import Average, rate_factor

DATA = digits()


def process(index, count):
    return SimpleNamespace(
        device=torch.device("cpu"), num_processes=count, process_index=index, is_main_process=index == 0
    )


class Read(Dataset):
    """Forty samples; remembers which were read."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return 40

    def __getitem__(self, index):
        self.read.append(index)
        return torch.full((4,), float(index)), index % 4


def feed(split, size=8):
    return Feed(split, size, None, DATA.purpose, torch.device("cpu"), seed=0)


def test_each_process_reads_its_own_part_of_a_data_set_and_nothing_else(monkeypatch):
    def read(index, count):
        dataset = Read()
        loader = DataLoader(dataset, 8, shuffle=True, generator=torch.Generator())
        other = DataLoader(Read(), 8)
        split = from_loaders(loader, other, num_classes=4, validation=other, fingerprint="x").train
        monkeypatch.setattr(machine, "_state", lambda: process(index, count))
        dataset.read.clear()
        list(feed(split).epoch(1))
        return dataset.read

    whole, first, second = read(0, 1), read(0, 2), read(1, 2)
    assert sorted(whole) == list(range(40)) and sorted([*first, *second]) == list(range(40))
    assert len(first) == len(second) == 20 and not set(first) & set(second)


def test_each_process_prepares_its_own_part_of_data_in_memory(monkeypatch):
    class Seen(Images):
        def at(self, index):
            seen.append(index)
            return super().at(index)

    def prepared(index, count):
        monkeypatch.setattr(machine, "_state", lambda: process(index, count))
        seen.clear()
        batches = list(feed(Seen(**options), 128).epoch(1))
        return torch.cat(seen), [len(batch[1]) for batch, _ in batches]

    seen = []
    options = {each.name: getattr(DATA.train, each.name) for each in dataclasses.fields(DATA.train)}

    (whole, sizes), (first, halves), (second, _) = prepared(0, 1), prepared(0, 2), prepared(1, 2)
    assert set(sizes) == {128} and set(halves) == {64}
    assert sorted(torch.cat([first, second]).tolist()) == sorted(whole.tolist())


def test_data_go_to_the_device_where_half_of_its_free_memory_holds_them(monkeypatch):
    meta = torch.device("meta")
    assert resident(DATA.train, torch.device("cpu")) is DATA.train
    assert resident(DATA.train, meta).images.is_meta
    monkeypatch.setattr(machine, "free_memory", lambda device: 2 * DATA.train.nbytes)
    assert resident(DATA.train, meta).images.is_meta
    monkeypatch.setattr(machine, "free_memory", lambda device: 1.5 * 2**30)
    large = dataclasses.replace(DATA.train, images=torch.empty(2**22, 1, 16, 16, dtype=torch.uint8, device="meta"))
    monkeypatch.setattr(type(large), "targets", property(lambda split: torch.zeros(1)))
    with pytest.warns(DataWarning) as caught:
        assert resident(large, meta) is large
    assert str(caught[0].message) == (
        "the data take 1.0 GiB, more than half of the 1.5 GiB that are free on meta; they stay in main memory and are "
        "copied batch by batch."
    )


def test_a_step_waits_for_no_number(monkeypatch):
    """What is read of tensors while an epoch goes on: the losses at its end, and nothing of a step."""
    waits = []
    item, tolist = torch.Tensor.item, torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "item", lambda self: waits.append("item") or item(self))
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: waits.append("tolist") or tolist(self))
    monkeypatch.setattr("chainfx.training.running._SECONDS", 1e9)
    monkeypatch.setattr("chainfx.training.running.measure_final", lambda *_: waits.append("measured") or 0.5)
    Trainer(DATA, epochs=1).tune(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), TuneRequest(), seed=0, on_epoch=id)
    assert waits == ["measured", "tolist", "tolist", "measured"]


def test_the_rate_starts_anew_in_equal_parts():
    factors = [rate_factor(step, 40, restarts=1) for step in range(40)]
    assert factors[0] == 1.0 and factors[20] == 1.0 and factors[30] == pytest.approx(0.5)
    assert factors[19] < 0.02 and 0 < factors[39] < 0.02
    assert factors[:20] == [rate_factor(step, 20) for step in range(20)]


def test_an_average_forgets_where_it_began_and_takes_the_place_of_parameters():
    parameter = nn.Parameter(torch.zeros(1))
    average = Average([parameter], 0.5)
    for value in (1.0, 3.0):
        parameter.data.fill_(value)
        average.step()
    first = 0.1 * 0 + 0.9 * 1
    second = 2 / 11 * first + 9 / 11 * 3
    with average.instead():
        assert parameter.item() == pytest.approx(second)
    assert parameter.item() == 3.0


def test_training_stops_after_so_many_epochs_that_are_no_better(monkeypatch):
    metrics = iter([0.5, 0.6, 0.6, 0.3, 0.9])
    monkeypatch.setattr("chainfx.training.running.measure_final", lambda *_: next(metrics))
    told, states = [], []
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def on_epoch(epoch):
        if epoch.share == 1:
            told.append(epoch.metric)
            states.append(copy.deepcopy(model.state_dict()))

    request = TuneRequest(patience=2, epochs=9)
    Trainer(DATA, batch_size=1000).tune(model, request, seed=0, on_epoch=on_epoch)
    assert told == [0.6, 0.6, 0.3]
    assert torch.equal(model[1].weight, states[1]["1.weight"])


def test_a_batch_that_is_too_small_for_batch_norm():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))
    with pytest.raises(TuningError) as caught:
        Trainer(DATA, epochs=1, batch_size=1).fit(model)
    assert str(caught.value) == (
        "tuning: a batch has 1 sample, and BatchNorm cannot train on one value a channel; use a batch size of at least "
        "2 for each process, and drop_last=True in a DataLoader."
    )


def test_a_compiled_network_trains_the_network(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(network) or network)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    Trainer(DATA, epochs=1, compile=True).fit(model)
    assert compiled == [model]
