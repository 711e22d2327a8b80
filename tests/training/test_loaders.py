import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from chainfx.errors import DataError
from chainfx.training import from_loaders, loaders
from chainfx.training.data import derived_generator


def refused(call, message):
    with pytest.raises(DataError) as caught:
        call()
    assert str(caught.value) == message


DATASET = TensorDataset(torch.arange(50.0)[:, None].expand(50, 4), torch.arange(50) % 5)


def values(batches):
    return [int(v) for (x,), _ in batches for v in x[:, 0]]


def test_loaders_hold_out_a_part_of_the_training_loader_that_never_trains():
    data = from_loaders(DataLoader(DATASET, 8, shuffle=True), DataLoader(DATASET, 10), num_classes=5)
    held = values(data.validation.batches(1))
    epochs = [values(data.train.batches(1, derived_generator(seed, "epoch"))) for seed in (1, 1, 2)]
    assert len(held) == 5 and data.batch_size == 8 and data.input_shape == (4,) and data.num_classes == 5
    assert len(epochs[0]) == 40 == 8 * data.train.steps(1) and not set(held) & set(epochs[0])
    assert epochs[0] == epochs[1] != epochs[2]
    assert values(data.test.batches(1)) == list(range(50))


def test_loaders_with_their_own_validation_are_used_as_they_are():
    train = DataLoader([((torch.ones(2), torch.zeros(3)), 1)] * 6, 3)
    data = from_loaders(train, DataLoader(DATASET), validation=DataLoader(DATASET, 20), num_classes=5)
    (first, second), targets = next(data.train.batches(1))
    assert (tuple(first.shape), tuple(second.shape), targets.tolist()) == ((3, 2), (3, 3), [1, 1, 1])
    assert values(data.validation.batches(1)) == list(range(50))


def changed(index):
    images = DATASET.tensors[0].clone()
    images[index, 2] += 1
    return TensorDataset(images, DATASET.tensors[1])


def fingerprint(dataset=DATASET, validation=DATASET, batch_size=8, **options):
    """Of a training and a validation loader."""
    return from_loaders(
        DataLoader(dataset, batch_size, **options),
        DataLoader(DATASET),
        validation=DataLoader(validation, 10),
        num_classes=5,
    ).fingerprint


def seed_all(seed):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def test_the_fingerprint_of_loaders_is_the_content_of_every_sample():
    found = [fingerprint()]
    for index in (0, 17, 18, 49):
        found += [fingerprint(changed(index)), fingerprint(DATASET, changed(index))]
    labels = TensorDataset(DATASET.tensors[0], DATASET.tensors[1].flip(0))
    found += [fingerprint(labels), fingerprint(TensorDataset(DATASET.tensors[0].double(), DATASET.tensors[1]))]
    assert len(set(found)) == len(found)
    assert fingerprint() == found[0]


def test_the_fingerprint_of_loaders_is_how_they_draw():
    even, uneven = torch.ones(50), torch.arange(50.0)
    options = [
        {},
        {"batch_size": 5},
        {"drop_last": True},
        {"shuffle": True},
        {"shuffle": True, "generator": torch.Generator().manual_seed(3)},
        {"sampler": WeightedRandomSampler(even, 50)},
        {"sampler": WeightedRandomSampler(uneven, 50)},
        {"sampler": WeightedRandomSampler(uneven, 50, generator=torch.Generator().manual_seed(3))},
        {"sampler": SubsetRandomSampler(range(20))},
        {"batch_size": 1, "batch_sampler": BatchSampler(range(50), 7, False)},
    ]
    found = []
    for each in options:
        seed_all(len(found))
        state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        found.append(fingerprint(**each))
        assert found[-1] == fingerprint(**each)
        assert torch.equal(state[0], torch.get_rng_state())
        assert state[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert len(set(found)) == len(found)
    other = {"shuffle": True, "generator": torch.Generator().manual_seed(4)}
    assert fingerprint(**other) == found[4]  # every epoch seeds it anew


def test_the_fingerprint_of_loaders_without_validation_follows_what_is_held_out():
    def held(**options):
        return from_loaders(DataLoader(DATASET, 8), DataLoader(DATASET, 8), num_classes=5, **options).fingerprint

    assert held() == held() and len({held(), held(seed=1), held(validation_share=0.2)}) == 3
    assert held(fingerprint="mine") == "mine"


class Noisy(Dataset):
    """Adds to each sample what ``draw`` gives."""

    def __init__(self, draw):
        self.draw = draw

    def __len__(self):
        return 50

    def __getitem__(self, index):
        image, label = DATASET[index]
        return image + self.draw(), label


@pytest.mark.parametrize("draw", [lambda: torch.rand(()), random.random, np.random.rand])
def test_random_transforms_that_draw_from_the_global_states_are_no_hindrance(draw):
    def twice(scale):
        found = set()
        for seed in (1, 2):
            seed_all(seed)
            found.add(fingerprint(Noisy(lambda: scale * draw())))
        return found

    assert len(twice(1)) == len(twice(2)) == 1 and twice(1) != twice(2)


def test_samples_that_differ_at_every_reading_need_a_name():
    own = np.random.default_rng(0)
    message = (
        "the samples of the {} DataLoader differ from one reading to the next, so chainfx cannot fingerprint them; let "
        "random transforms draw from torch's global generator, or give fingerprint= a name that changes with the data."
    )
    refused(lambda: fingerprint(Noisy(own.random)), message.format("training"))
    refused(lambda: fingerprint(DATASET, Noisy(own.random)), message.format("validation"))
    loader = DataLoader(Noisy(own.random), 8)
    assert from_loaders(loader, DataLoader(DATASET), num_classes=5, fingerprint="v1").fingerprint == "v1"


class Stream(IterableDataset):
    def __iter__(self):
        return iter(DATASET)


def test_samples_without_an_index_need_a_name():
    def made(**options):
        train, held = DataLoader(Stream(), 8), DataLoader(DATASET, 10)
        return from_loaders(train, held, validation=held, num_classes=5, **options)

    refused(
        made,
        "the training DataLoader reads a Stream, whose samples have no index, so chainfx cannot fingerprint them; give "
        "fingerprint= a name that changes with the data.",
    )
    assert made(fingerprint="v1").fingerprint == "v1"


class Ready(Dataset):
    """Batches made by the data set itself, so that the loader does not collate."""

    def __init__(self, first=0):
        self.first = first

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return torch.full((4, 2), float(self.first + index)), torch.arange(4)


def test_data_sets_that_make_their_own_batches_are_read_too():
    found = [fingerprint(Ready(first), batch_size=None) for first in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    drawn = BatchSampler(range(50), 7, False)
    assert fingerprint(batch_size=None, sampler=drawn, collate_fn=lambda batch: batch) != found[0]


def test_of_many_samples_some_are_read(monkeypatch):
    """Evenly spaced, so that a longer data set takes no longer."""
    read = []

    class Counted(Noisy):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    monkeypatch.setattr(loaders, "_HASHED_SAMPLES", 10)
    monkeypatch.setattr(loaders, "_READ_TWICE", 2)
    loaders._fingerprint(
        DataLoader(Counted(lambda: 0), 8), DataLoader(DATASET, 10), loaders._Form(None, "labels", True)
    )
    assert read == [0, 5] * 2 + list(range(0, 50, 5))
    assert fingerprint() != fingerprint(drop_last=True)  # which samples are drawn counts, read or not


def test_wrong_loaders_are_refused():
    good = DataLoader(DATASET, 8)
    refused(
        lambda: from_loaders(good, DataLoader(DATASET, shuffle=True), num_classes=5),
        "the test DataLoader shuffles, so its batches differ every time; make it with shuffle=False.",
    )
    sampler = WeightedRandomSampler([1.0] * 50, 50)
    refused(
        lambda: from_loaders(DataLoader(DATASET, 8, sampler=sampler), good, num_classes=5),
        "the training DataLoader draws by its own WeightedRandomSampler, so chainfx cannot hold out validation data; "
        "give validation=DataLoader(...).",
    )
    refused(
        lambda: from_loaders(good, good, num_classes=5, validation_share=0.001),
        "a share of 0.001 of 50 training samples cannot be held out; use more, or another share.",
    )
    regression = DataLoader(TensorDataset(torch.zeros(9, 2), torch.zeros(9)))
    refused(
        lambda: from_loaders(good, good, validation=regression, num_classes=5),
        "a DataLoader gave a list that is not (inputs, targets) with integer targets (N,); "
        "change its data set or collate_fn.",
    )
