import pytest
import torch
from torch import nn

from chainfx.errors import InputError
from chainfx.models import resolve_model


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
