"""The reference networks of the literature for 32x32 images, written anew as plain, traceable modules.

Every activation is a module of its own, so that quantizers of whole-graph tools find a clean pattern.
"""

from chainfx.zoo.mobilenet import mobilenet_v2
from chainfx.zoo.resnet import resnet, resnet20, resnet32, resnet34, resnet56
from chainfx.zoo.vgg import vgg, vgg8, vgg11, vgg13, vgg16, vgg19

__all__ = [
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
]
