import copy

import torch
from torch import nn

from chainfx.ir.graph import layers_of, ops, summands_of, verify
from chainfx.passes import PassContext, Quantize
from tests.nets import graph_of, images, small_resnet, warm


def quantized(model, x, one):
    graph_module = graph_of(model, x)
    one.apply(graph_module, PassContext(graph_module, (x,), calibration=[(x,)]))
    verify(graph_module, (x,))
    return graph_module


def summands(graph_module):
    found = [summands_of(graph_module, node) for node in graph_module.graph.nodes]
    return [[each.target is ops.quantize_activation for each in pair] for pair in found if pair is not None]


def test_an_addition_reads_the_quantizer_of_the_layer_beside_it():
    graph_module = quantized(small_resnet((2, 2)), images(), Quantize(8, 8))
    (conv,) = [layer for layer in layers_of(graph_module) if layer.path == "stages.0.0.conv1"]
    assert [user.name for user in conv.input_quantizer.users] == [conv.name, "add"]
    # the third block changes the shape: its skip connection is a layer, whose value no layer reads
    assert summands(graph_module) == [[False, True], [False, True], [False, False], [False, True]]


def test_residuals_can_be_left_in_float():
    graph_module = quantized(small_resnet((2, 2)), images(), Quantize(8, 8, residuals=False))
    assert not any(map(any, summands(graph_module)))


def test_a_second_quantize_puts_its_own_quantizers_before_additions():
    x = images()
    graph_module = quantized(small_resnet((2, 2)), x, Quantize(2, 3))
    context = PassContext(graph_module, (x,), calibration=[(x,)])
    twice = Quantize(8, 8).apply(copy.deepcopy(graph_module), context).graph_module
    verify(twice, (x,))
    direct = quantized(small_resnet((2, 2)), x, Quantize(8, 8))
    assert torch.equal(twice(x), direct(x))
    floats = Quantize(8, 8, residuals=False).apply(twice, context).graph_module
    verify(floats, (x,))
    assert torch.equal(floats(x), quantized(small_resnet((2, 2)), x, Quantize(8, 8, residuals=False))(x))


class Adds(nn.Module):
    """Additions whose summands must stay: of another shape, in place into the skip tensor, of no layer's value."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(1, 1, 3, padding=1) for _ in range(3))
        self.position = nn.Parameter(torch.randn(8))

    def forward(self, x):
        x = torch.relu(x) + self.position
        y = torch.sigmoid(self.a(x)) + x
        z = self.b(y)
        y.add_(z)
        return torch.add(self.c(y), y, alpha=2)


def test_additions_that_cannot_be_in_integers_keep_their_value():
    torch.manual_seed(0)
    graph_module = quantized(warm(Adds()), images(), Quantize(8, 8))
    assert summands(graph_module) == [[False, False], [False, False]]


def test_of_several_quantizers_the_widest_is_read():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.side, self.head = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            x = torch.relu(self.stem(x))
            side = self.side(x)
            return self.head(torch.relu(self.a(x) + x)), side

    torch.manual_seed(0)
    graph_module = quantized(Twice().eval(), images(), Quantize(8, 4, first=None, last=6))
    (pair,) = [pair for node in graph_module.graph.nodes if (pair := summands_of(graph_module, node))]
    assert pair[1].args[2:] == (6, False)
