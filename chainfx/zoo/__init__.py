"""The reference networks of the literature for small images, written anew, plain and traceable.

Every activation is a module of its own, so that quantizers of whole-graph tools find a clean pattern. The weights of
public checkpoints for CIFAR are read by :func:`load_weights`, whatever they call the layers.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from chainfx.zoo.gru import gru
from chainfx.zoo.lenet import lenet5, lenet_300_100
from chainfx.zoo.mlp import mlp
from chainfx.zoo.mobilenet import mobilenet_v2
from chainfx.zoo.resnet import resnet, resnet20, resnet32, resnet34, resnet56
from chainfx.zoo.vgg import vgg, vgg8, vgg11, vgg13, vgg16, vgg19
from chainfx.zoo.vit import vit
from chainfx.zoo.weights import LAYOUTS, load_weights

__all__ = [
    "LAYOUTS",
    "NETWORKS",
    "gru",
    "lenet5",
    "lenet_300_100",
    "load_weights",
    "mlp",
    "mobilenet_v2",
    "resnet",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet56",
    "vgg",
    "vgg8",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "vit",
]

_ALL: tuple[Callable[..., nn.Module], ...] = (
    *(gru, lenet5, lenet_300_100, mlp, mobilenet_v2, resnet, resnet20, resnet32, resnet34, resnet56),
    *(vgg, vgg8, vgg11, vgg13, vgg16, vgg19, vit),
)

NETWORKS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType({make.__name__: make for make in _ALL})
"""Every network of the zoo by its name: a function that makes it."""
