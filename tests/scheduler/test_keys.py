"""Everything that decides a result is in the key of a stage, and nothing else."""

import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import chainfx
from chainfx.passes import PruneChannels
from chainfx.scheduler import StageKey, Surroundings, keys
from chainfx.training import Augment, Trainer, from_arrays
from tests.fresh import fresh
from tests.trainers import FakeTrainer

X = torch.linspace(-1, 1, 32).reshape(8, 4)
RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.integers(0, 256, (40, 4, 4), dtype=np.uint8), np.arange(40) % 4


def small_net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 10)).to(dtype).eval()


def key(net=None, ratios=(0.5,), x=X, trainer=None, **options):
    """The fingerprint of the last stage of a small chain, which prunes one ratio after the other."""
    passes = [PruneChannels(ratio) for ratio in ratios]
    small = chainfx.compile(net or small_net(), passes, example_inputs=x, trainer=trainer, **options)
    record = small.report.records[-1]
    recorded = StageKey(record.parent, record.spec, record.revision, record.surroundings)
    assert record.fingerprint == recorded.fingerprint
    return record.fingerprint


def heavier(net):
    net = copy.deepcopy(net)
    net[0].weight.data[0, 0] += 1
    return net


def text_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 10)).eval()


WORDS = torch.tensor([[0, 1, 2]])

DIFFERENT = {
    "parent": lambda: (key(), key(heavier(small_net()))),
    "a pass before": lambda: (key(), key(ratios=(0.25, 0.5))),
    "options": lambda: (key(), key(ratios=(0.25,))),
    "seed": lambda: (key(), key(seed=1)),
    "trainer": lambda: (key(trainer=FakeTrainer(X)), key(trainer=FakeTrainer(X, name="other"))),
    "no trainer": lambda: (key(), key(trainer=FakeTrainer(X))),
    "calibration": lambda: (key(calibration=[X]), key(calibration=[X + 1])),
    "no calibration": lambda: (key(), key(calibration=[X])),
    "batches of the calibration": lambda: (key(calibration=[X]), key(calibration=[X[:4], X[4:]])),
    "example shape": lambda: (key(), key(x=X[:4])),
    "example dtype": lambda: (key(text_net(), x=WORDS), key(text_net(), x=WORDS.int())),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_runs_that_differ_have_different_keys(what):
    one, other = DIFFERENT[what]()
    assert one != other


def test_equal_runs_have_equal_keys_whatever_the_values_of_the_example_and_the_global_state():
    torch.manual_seed(7)
    assert key(x=X + 1, calibration=[X]) == key(calibration=[X])


def test_the_dtype_of_the_calibration_is_in_the_key():
    zeros = torch.zeros(2, 3, dtype=torch.int32)
    assert key(text_net(), x=WORDS, calibration=[(zeros,)]) != key(text_net(), x=WORDS, calibration=[(zeros.float(),)])


def test_the_revision_of_the_pass_is_in_the_key(monkeypatch):
    before = key()
    monkeypatch.setattr(PruneChannels, "info", dataclasses.replace(PruneChannels.info, revision=2))
    assert key() != before


@pytest.mark.parametrize(("module", "name"), [(keys, "__version__"), (torch, "__version__")], ids=["chainfx", "torch"])
def test_the_versions_are_in_the_key(monkeypatch, module, name):
    before = key()
    monkeypatch.setattr(module, name, "9.9")
    assert key() != before


def test_the_kind_of_device_is_in_the_key(monkeypatch):
    graph_module = chainfx.capture(small_net(), (X,))
    before = Surroundings.of(graph_module, (X,), None, None, 0)
    monkeypatch.setattr(keys, "device_of", lambda *_: torch.device("cuda", 1))
    after = Surroundings.of(graph_module, (X,), None, None, 0)
    assert (before.device, after.device) == ("cpu", "cuda")


@pytest.mark.parametrize(
    ("device", "library", "kind", "expected"),
    [
        ("cpu", torch.backends.mkldnn, "matmul", "float32, products changed, convolutions none"),
        ("cpu", torch.backends.mkldnn, "conv", "float32, products none, convolutions changed"),
        ("cuda", torch.backends.cuda, "matmul", "float32, products changed, convolutions tf32"),
        ("cuda", torch.backends.cudnn, "conv", "float32, products none, convolutions changed"),
    ],
)
def test_how_torch_multiplies_float32_is_in_the_key(monkeypatch, device, library, kind, expected):
    monkeypatch.setattr(library, kind, SimpleNamespace(fp32_precision="changed"))  # torch cannot take a setting back
    monkeypatch.setattr(keys, "device_of", lambda *_: torch.device(device))
    assert Surroundings.of(chainfx.capture(small_net(), (X,)), (X,), None, None, 0).precision == expected


def test_the_default_dtype_is_in_the_key():
    """Heads and quantizers that a pass adds are made of it."""
    graph_module = chainfx.capture(small_net(), (X,))
    torch.set_default_dtype(torch.float64)
    try:
        found = Surroundings.of(graph_module, (X,), None, None, 0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.precision == "float64, products none, convolutions none"


SURROUNDINGS = Surroundings("n", "t", "c", 0, ("float32 (1, 2)",), "cpu", "float32", "0.1.0", "2.9.0")
KEY = StageKey("p", {"pass": "fuse"}, 1, SURROUNDINGS)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Surroundings)])
def test_every_field_of_the_surroundings_counts(field):
    value = {"seed": 1, "inputs": ()}.get(field, "other")
    other = dataclasses.replace(KEY, surroundings=dataclasses.replace(SURROUNDINGS, **{field: value}))
    assert other.fingerprint != KEY.fingerprint


@pytest.mark.parametrize(("field", "value"), [("parent", "q"), ("spec", {"pass": "other"}), ("revision", 2)])
def test_every_field_of_the_key_counts(field, value):
    assert dataclasses.replace(KEY, **{field: value}).fingerprint != KEY.fingerprint


def with_trainer(images=IMAGES, labels=LABELS, **options):
    data = from_arrays(images, labels, (IMAGES[:8], LABELS[:8]), validation=0.2)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    trainer = Trainer(data, **{"epochs": 1, "batch_size": 8, **options})
    return key(net, x=data.example_inputs(2), trainer=trainer)


def test_what_the_trainer_does_and_on_which_data_is_in_the_key():
    data = from_arrays(IMAGES, LABELS, (IMAGES[:8], LABELS[:8]), validation=0.2)
    changed = []
    for part in (data.train, data.validation):  # one pixel of the training part, and one of the validation part
        index = next(i for i in range(40) if np.array_equal(IMAGES[i], part.images[0, 0].numpy()))
        images = IMAGES.copy()
        images[index, 0, 0] ^= 255
        changed.append({"images": images})
    changed += [{"epochs": 2}, {"batch_size": 4}, {"learning_rate": 0.1}, {"augment": Augment(padding=1)}]
    found = [with_trainer(), *(with_trainer(**each) for each in changed)]
    assert len(set(found)) == len(found)


def test_a_fresh_process_has_the_same_keys():
    code = "from tests.scheduler.test_keys import key, with_trainer, X; print(key(calibration=[X]), with_trainer())"
    assert fresh(code).out.split() == [key(calibration=[X]), with_trainer()]
