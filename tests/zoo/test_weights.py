"""Weights from files: of chainfx's own names and of public checkpoints, safely, and refused where they do not fit."""

import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from chainfx import zoo
from chainfx.errors import InputError
from chainfx.zoo import load_weights


def refused(call, message):
    with pytest.raises(InputError) as caught:
        call()
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_weights_are_loaded(tmp_path, name):
    source, model = nn.Linear(3, 2), nn.Linear(3, 2)
    save = save_file if name.endswith("safetensors") else torch.save
    save(source.state_dict(), tmp_path / name)
    load_weights(model, tmp_path / name)
    assert torch.equal(model.weight, source.weight) and torch.equal(model.bias, source.bias)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "w.pt"
    name = f"weights {str(path)!r}"

    def saved(state):
        torch.save(state, path)
        return lambda: load_weights(nn.Linear(3, 2), path)

    refused(lambda: load_weights(nn.Linear(3, 2), path), f"{name}: there is no such file.")
    weight = torch.zeros(2, 3)
    refused(saved({"weight": weight}), f"{name}: the file misses 'bias' (1 such); wrong model?")
    refused(
        saved({"weight": weight, "bias": torch.zeros(2), "x": weight}),
        f"{name}: the file has the unknown key 'x' (1 such); wrong model?",
    )
    refused(
        saved({"weight": weight, "bias": torch.zeros(5)}),
        f"{name}: 'bias' has shape (5,), the model's has (2,); check the model's options.",
    )
    refused(saved({"epoch": 3}), f"{name}: not a state dict of tensors; save model.state_dict() alone.")
    for content in (b"", b"no pickle"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"w\.pt': not a readable state dict \("):
            load_weights(nn.Linear(3, 2), path)
    safe = tmp_path / "w.safetensors"
    safe.write_bytes(b"short")
    with pytest.raises(InputError, match=r"w\.safetensors': not a readable state dict \("):
        load_weights(nn.Linear(3, 2), safe)


RENAMES = {
    "own": (),
    "idelbayev": ((r"^stages\.0", "layer1"), (r"^stages\.1", "layer2"), (r"^fc", "linear")),
    "chenyaofo": ((r"^stages\.0", "layer1"), (r"^stages\.1", "layer2"), (r"shortcut", "downsample")),
}


def published(layout, *, counters=True, prefix=""):
    """A small ResNet, and its state dict as a public checkpoint of that layout has it."""
    torch.manual_seed(0)
    network = zoo.resnet((1, 1), width=4)
    state = {}
    for key, value in network.state_dict().items():
        name = key
        for pattern, theirs in RENAMES[layout]:
            name = re.sub(pattern, theirs, name)
        if counters or not key.endswith("num_batches_tracked"):
            state[prefix + name] = value
    return network, state


@pytest.mark.parametrize("layout", zoo.LAYOUTS)
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model", "net"])
@pytest.mark.parametrize("chosen", [True, False])
def test_public_checkpoints_of_every_layout_are_read(tmp_path, layout, wrapper, chosen):
    network, state = published(layout, counters=wrapper != "net", prefix="module." if wrapper else "")
    torch.save({wrapper: state, "epoch": 7, "best_prec1": 91.7} if wrapper else state, tmp_path / "w.th")
    model = zoo.resnet((1, 1), width=4)
    load_weights(model, tmp_path / "w.th", *((layout,) if chosen else ()))
    own = network.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in model.state_dict().items())


def test_a_layout_that_is_chosen_is_the_only_one_that_is_tried(tmp_path):
    _, state = published("idelbayev")
    torch.save(state, tmp_path / "w.pt")
    name = f"weights {str(tmp_path / 'w.pt')!r}"
    model = zoo.resnet((1, 1), width=4)
    refused(
        lambda: load_weights(model, tmp_path / "w.pt", layout="chenyaofo"),
        f"{name}: the file misses 'fc.bias' (2 such); wrong model?",
    )
    refused(
        lambda: load_weights(model, tmp_path / "w.pt", layout="theirs"),
        "layout='theirs' is not known; use 'auto', 'own', 'idelbayev', 'chenyaofo'.",
    )
    refused(
        lambda: load_weights(zoo.resnet((1, 2), width=4), tmp_path / "w.pt"),
        f"{name}: the file misses 'stages.1.1.bn1.bias' (10 such); wrong model?",
    )


def test_a_missing_counter_of_batches_stays_what_it_was(tmp_path):
    _, state = published("own", counters=False)
    torch.save(state, tmp_path / "w.pt")
    model = zoo.resnet((1, 1), width=4)
    model.bn1.num_batches_tracked.fill_(5)
    load_weights(model, tmp_path / "w.pt")
    assert model.bn1.num_batches_tracked.item() == 5


class Evil:
    """What a pickle may hold: a call that is made when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_in_a_file_is_executed(tmp_path):
    torch.save({"state_dict": Evil(str(tmp_path / "made"))}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt': not a readable state dict \(Weights only load failed"):
        load_weights(nn.Linear(3, 2), tmp_path / "w.pt")
    assert not Path(tmp_path / "made").exists()


def test_every_network_of_the_zoo_is_listed():
    assert set(zoo.NETWORKS) == {name for name in zoo.__all__ if name.islower()} - {"load_weights"}
    assert all(zoo.NETWORKS[name] is getattr(zoo, name) for name in zoo.NETWORKS)
