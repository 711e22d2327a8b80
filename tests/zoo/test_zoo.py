"""The counts are those printed for these networks on 32x32 images and 10 classes, to every printed digit."""

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace

from chainfx.bitops import count
from chainfx.zoo import (
    mobilenet_v2,
    resnet,
    resnet20,
    resnet32,
    resnet34,
    resnet56,
    vgg,
    vgg8,
    vgg11,
    vgg13,
    vgg16,
    vgg19,
)

IMAGE = (torch.zeros(1, 3, 32, 32, device="meta"),)


def costs(make, **options) -> tuple[float, float]:
    """Millions of MACs and of parameters."""
    with torch.device("meta"):
        report = count(symbolic_trace(make(**options)), IMAGE)
    assert not report.uncounted
    return report.macs / 1e6, report.parameters / 1e6


@pytest.mark.parametrize(
    ("blocks", "macs", "parameters"),
    [
        ((2, 4, 6, 3), 1083.9, 21.208),
        ((2, 4, 6, 2), 1008.4, 16.487),
        ((2, 3, 6, 2), 932.9, 16.192),
        ((2, 3, 5, 2), 857.4, 15.011),
        ((2, 3, 4, 2), 781.9, 13.831),
        ((2, 2, 4, 2), 706.4, 13.535),
        ((2, 2, 3, 2), 630.9, 12.355),
        ((2, 2, 2, 2), 555.4, 11.174),
        ((1, 2, 2, 2), 479.9, 11.100),
        ((1, 2, 2, 1), 404.4, 6.379),
        ((1, 1, 2, 1), 328.9, 6.084),
        ((1, 1, 1, 1), 253.4, 4.903),
    ],
)
def test_resnets_of_every_depth(blocks, macs, parameters):
    found = costs(resnet, blocks=blocks)
    assert (round(found[0], 1), round(found[1], 3)) == (macs, parameters)


@pytest.mark.parametrize(
    ("make", "options", "macs", "parameters"),
    [
        (resnet34, {}, 1159.40, 21.2821),
        (resnet34, {"num_classes": 100}, 1159.45, 21.3283),
        (vgg19, {}, 398.14, 20.0405),
        (vgg19, {"num_classes": 100}, 398.18, 20.0867),
        (mobilenet_v2, {}, 87.98, 2.2367),
        (resnet20, {}, 40.55, 0.2697),
        (resnet20, {"shortcut": "B"}, 40.81, 0.2725),
        (resnet32, {}, 68.86, 0.4642),
        (resnet56, {}, 125.49, 0.8530),
    ],
)
def test_the_reference_networks(make, options, macs, parameters):
    found = costs(make, **options)
    assert (round(found[0], 2), round(found[1], 4)) == (macs, parameters)


@pytest.mark.parametrize(
    ("make", "options", "macs", "parameters"),
    [
        (vgg8, {}, 67.8, 3.919),
        (vgg11, {}, 152.8, 9.231),
        (vgg13, {}, 228.3, 9.416),
        (vgg16, {}, 313.2, 14.728),
        (mobilenet_v2, {"strides": (1, 1, 1, 2, 1, 2, 1)}, 296.5, 2.237),
        (mobilenet_v2, {"width": 0.5}, 23.7, 0.587),
    ],
)
def test_the_other_networks(make, options, macs, parameters):
    found = costs(make, **options)
    assert (round(found[0], 1), round(found[1], 3)) == (macs, parameters)


def test_defaults_are_the_reference_networks():
    with torch.device("meta"):
        assert str(resnet()) == str(resnet34())
        assert str(vgg()) == str(vgg19())


SMALL = [
    (resnet, {"blocks": (1, 1, 1), "width": 4}),
    (resnet, {"blocks": (1, 1), "width": 4, "shortcut": "A"}),
    (vgg, {"layers": (1, 1, 1), "width": 4}),
    (mobilenet_v2, {"width": 0.125}),
]


@pytest.mark.parametrize(("make", "options"), SMALL)
def test_they_run_on_grey_images_of_any_size_and_train(make, options):
    torch.manual_seed(0)
    network = make(num_classes=7, in_channels=1, **options)
    output = network(torch.randn(2, 1, 8, 8))
    assert output.shape == (2, 7)
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(("make", "options"), SMALL)
def test_tracing_changes_nothing(make, options):
    torch.manual_seed(0)
    network = make(**options).eval()
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(symbolic_trace(network)(images), network(images))


@pytest.mark.parametrize(("make", "options"), SMALL)
def test_every_activation_is_a_module_of_its_own(make, options):
    graph = symbolic_trace(make(**options)).graph
    called = [node.target for node in graph.nodes if node.op == "call_module"]
    assert len(called) == len(set(called))
    assert not [node for node in graph.nodes if "relu" in str(node.target) and node.op == "call_function"]


def test_shortcut_a_moves_every_second_pixel_and_pads_channels_with_zeros():
    block = resnet((1, 1), 4, shortcut="A").stages[1][0].shortcut
    assert not list(block.parameters())
    images = torch.randn(1, 4, 6, 6)
    moved = block(images)
    assert moved.shape == (1, 8, 3, 3)
    assert torch.equal(moved[:, 2:6], images[:, :, ::2, ::2])
    assert moved[:, :2].abs().sum() + moved[:, 6:].abs().sum() == 0


def test_only_blocks_that_change_the_shape_have_a_shortcut_module():
    blocks = resnet((2, 2), 4).stages
    kinds = [type(block.shortcut) for stage in blocks for block in stage]
    assert kinds == [nn.Identity, nn.Identity, nn.Sequential, nn.Identity]
