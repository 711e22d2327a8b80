import copy

import pytest
import torch
from torch import nn

from chainfx.ir.graph.checks import verify
from chainfx.ir.graph.facts import facts_of
from chainfx.passes.base import PassContext
from chainfx.passes.fuse import Fuse
from chainfx.passes.quantize import Quantize
from tests.nets import graph_of, images, small_resnet, warm


def fused(model, x):
    graph_module = graph_of(model, x)
    result = Fuse().apply(copy.deepcopy(graph_module), PassContext(graph_module, (x,)))
    verify(result.graph_module, (x,))
    return graph_module, result


def norms(graph_module):
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in graph_module.modules())


class Layers(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x):
        return self.body(x)


CASES = {
    "conv1d": (Layers(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (2, 3, 9)),
    "conv2d-no-bias": (Layers(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), (2, 3, 7, 7)),
    "conv2d-grouped": (Layers(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (2, 4, 7, 7)),
    "conv3d": (Layers(nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3)), (2, 2, 4, 4, 4)),
    "transposed": (Layers(nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4)), (2, 3, 5, 5)),
    "linear": (Layers(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU()), (6, 5)),
    "no-affine": (Layers(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), (2, 3, 7, 7)),
}


@pytest.mark.parametrize("case", CASES)
def test_folding_is_equal_in_eval_mode_and_takes_the_norm_away(case):
    model, shape = CASES[case]
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean.normal_(generator=torch.Generator().manual_seed(1))
            norm.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(2))
    x = torch.randn(*shape)
    model.eval()
    expected = model(x)
    graph_module, result = fused(model, x)
    assert result.modified
    assert norms(result.graph_module) == 0
    torch.testing.assert_close(result.graph_module(x), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(graph_module(x), expected)


def test_a_resnet_folds_whole_and_equals_the_original_in_float64():
    x = images().double()
    model = small_resnet().double()
    _, result = fused(model, x)
    assert norms(result.graph_module) == 0
    assert not result.skipped
    torch.testing.assert_close(result.graph_module(x), model(x), atol=1e-12, rtol=1e-12)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


def test_what_cannot_be_folded_stays_with_its_reason():
    x = images()
    _, result = fused(warm(Twice()), x)
    assert [item.reason for item in result.skipped] == ["the output of 'conv' is also read elsewhere"]
    assert not result.modified
    _, result = fused(warm(Layers(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3))), x)
    assert [item.reason for item in result.skipped] == [
        "what it normalises is not the output of a convolution or linear layer"
    ]
    _, result = fused(warm(Layers(nn.Linear(5, 4), nn.BatchNorm1d(6))), torch.randn(2, 6, 5))
    assert [item.reason for item in result.skipped] == ["it normalises another axis than the layer's output features"]


@pytest.mark.parametrize(
    ("one", "folds"),
    [
        (Quantize(4, 32, first=None, last=None), True),
        (Quantize(8, 32, first=None, last=None), True),
        (Quantize(1, 32, first=None, last=None, scheme="uniform"), True),
        (Quantize(4, 32, first=None, last=None, granularity="tensor"), False),
        (Quantize(4, 32, first=None, last=None, scheme="dorefa"), False),
    ],
    ids=lambda one: getattr(one, "label", str(one)),
)
def test_a_quantized_weight_is_folded_where_its_levels_scale_with_it(one, folds):
    x, model = images().double(), small_resnet().double()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.weight.data[::2] *= -1
    graph_module = graph_of(model, x)
    context = PassContext(graph_module, (x,), calibration=[(x,)])
    graph_module = one.apply(copy.deepcopy(graph_module), context).graph_module
    verify(graph_module, (x,))
    expected, facts, count = graph_module(x), facts_of(graph_module), norms(graph_module)
    result = Fuse().apply(graph_module, context)
    verify(result.graph_module, (x,))
    assert norms(result.graph_module) == len(result.skipped) == (0 if folds else count)
    assert facts_of(result.graph_module).difference(facts) == ()
    torch.testing.assert_close(result.graph_module(x), expected, atol=1e-12, rtol=1e-12)
    reasons = {item.reason.split(" of '")[0] for item in result.skipped}
    assert reasons == (set() if folds else {"folding would move the weight"})
