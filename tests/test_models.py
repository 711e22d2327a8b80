import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from chainfx.errors import InputError
from chainfx.models import load_weights, resolve_model


def refused(call, message):
    with pytest.raises(InputError) as caught:
        call()
    assert str(caught.value) == message


def test_names_of_torchvision_of_the_zoo_and_of_a_factory():
    assert type(resolve_model("squeezenet1_1", num_classes=3)).__module__ == "torchvision.models.squeezenet"
    assert type(resolve_model("resnet20")).__module__ == "chainfx.zoo.resnet"
    assert type(resolve_model("zoo.mobilenet_v2", width=0.1)).__module__ == "chainfx.zoo.mobilenet"
    linear = resolve_model("torch.nn:Linear", in_features=3, out_features=2)
    assert isinstance(linear, nn.Linear) and linear.in_features == 3


def test_no_backbone_weights_are_downloaded(monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("a download")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", never)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", never)
    with torch.device("meta"):
        assert resolve_model("lraspp_mobilenet_v3_large", num_classes=2) is not None


def test_unknown_names_are_refused_with_close_ones():
    refused(
        lambda: resolve_model("resnet2O"),
        "there is no model named 'resnet2O'; did you mean resnet or resnet152 or resnet20 or resnet32? "
        "A factory of your own is package.module:factory.",
    )
    refused(
        lambda: resolve_model("qqqqq"),
        "there is no model named 'qqqqq'; use a torchvision name or one of chainfx.zoo. "
        "A factory of your own is package.module:factory.",
    )
    refused(
        lambda: resolve_model("no_such_package.nets:net"),
        "model 'no_such_package.nets:net': module 'no_such_package.nets' cannot be imported "
        "(No module named 'no_such_package').",
    )
    refused(
        lambda: resolve_model("torch.nn:Liner"),
        "model 'torch.nn:Liner': module 'torch.nn' has nothing callable named 'Liner'; did you mean 'Linear'?",
    )
    refused(
        lambda: resolve_model("builtins:dict"),
        "model 'builtins:dict' gives a dict, not a torch.nn.Module; name a factory of one.",
    )
    refused(
        lambda: resolve_model("resnet20", classes=3),
        "model 'resnet20' cannot be built with options {'classes': 3} "
        "(resnet20() got an unexpected keyword argument 'classes'); change them.",
    )


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
