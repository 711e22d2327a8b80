"""Networks that people bring, with random weights: every integer layer against float64, and the answer at the end."""

import copy

import pytest
import torch
import torchvision

from chainfx.deploy import Machine
from chainfx.ir.graph import layers_of
from tests.deploy.integers.nets import distance, on_integers, run
from tests.deploy.integers.reference import compared
from tests.nets import images, warm

NETWORKS = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "resnet50": lambda: torchvision.models.resnet50(num_classes=10, width_per_group=16),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.35),
    "mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(num_classes=10),
    "efficientnet_b0": lambda: torchvision.models.efficientnet_b0(num_classes=10),
    "shufflenet_v2": lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=10),
    "vit": lambda: torchvision.models.VisionTransformer(64, 16, 2, 4, 64, 128, num_classes=10),
    "convnext": lambda: torchvision.models.ConvNeXt(
        [torchvision.models.convnext.CNBlockConfig(24, 48, 2), torchvision.models.convnext.CNBlockConfig(48, None, 2)],
        num_classes=10,
    ),
}


@pytest.mark.slow
@pytest.mark.skipif(not Machine.here().kernels, reason="this machine has no integer kernels")
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_runs_in_integers_and_is_exact(name):
    torch.manual_seed(0)
    x = images(4, 64, 3)
    small, graph_module = on_integers(warm(NETWORKS[name]()), x)
    paths = {layer.path for layer in layers_of(graph_module)}
    assert {row.name for row in small.lowering if row.name in paths and row.engine == "int8"} == paths
    seen = compared(small, x)
    assert seen.layers == len(list(layers_of(graph_module))) and seen.is_exact, seen
    exact = run(copy.deepcopy(graph_module).double(), x.double())
    assert distance(run(small, x), exact) <= max(0.02, 2 * distance(run(graph_module, x), exact))
