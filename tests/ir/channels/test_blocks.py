import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chainfx import zoo
from chainfx.ir.channels.analyse import analyse_channels
from chainfx.ir.channels.blocks import drop_block, stages_of
from chainfx.ir.graph import edit, ops, verify
from chainfx.passes import PassContext, Quantize
from tests.nets import graph_of, images, small_resnet


def staged(model, x):
    """A graph and its stages."""
    graph_module = graph_of(model, x)
    return graph_module, stages_of(graph_module, analyse_channels(graph_module, (x,)))


def test_a_resnet_has_one_stage_per_width_and_its_strided_blocks_must_stay():
    _, stages = staged(small_resnet((2, 3, 2)), images())
    assert [len(stage.blocks) for stage in stages] == [2, 3, 2]
    assert [len(stage.removable) for stage in stages] == [2, 2, 1]


def test_dropping_a_block_equals_a_network_built_without_it():
    x = images()
    full = small_resnet((3, 2))
    graph_module, stages = staged(full, x)
    drop_block(graph_module, stages[0].removable[-1])
    edit.tidy(graph_module)
    short = small_resnet((2, 2))
    missing = short.load_state_dict(graph_module.state_dict(), strict=False)
    assert not missing.missing_keys
    assert not missing.unexpected_keys
    assert torch.equal(graph_module(x), short(x))


def test_the_rectifier_that_became_idle_goes_too():
    graph_module, stages = staged(small_resnet((2, 2)), images())
    before = sum(isinstance(m, nn.ReLU) for m in graph_module.modules())
    drop_block(graph_module, stages[0].removable[-1])
    edit.tidy(graph_module)
    assert sum(isinstance(m, nn.ReLU) for m in graph_module.modules()) == before - 2


def test_a_plain_network_has_its_equal_convolutions_as_blocks():
    _, stages = staged(zoo.vgg19().eval(), images(1, 32, 3))
    assert [len(stage.blocks) for stage in stages] == [2, 2, 4, 4, 4]
    assert [len(stage.removable) for stage in stages] == [1, 1, 3, 3, 4]


class Leaky(nn.Module):
    """The branch is read elsewhere, so taking the block out would change more than the addition."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.a(x)
        branch = self.b(x)
        return (x + branch) * branch


def test_a_branch_that_is_read_elsewhere_is_no_removable_block():
    _, stages = staged(Leaky(), torch.randn(2, 4))
    assert [len(stage.removable) for stage in stages] == [0] * len(stages)


class TwoStreams(nn.Module):
    """Three residual blocks, a layer that makes new channels of the same shape, and two blocks more."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.ModuleList(nn.Linear(6, 6) for _ in range(n)) for n in (3, 2))
        self.stem, self.between, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.first:
            x = x + torch.relu(layer(x))
        x = self.between(torch.relu(x))
        for layer in self.second:
            x = x + torch.relu(layer(x))
        return self.head(x)


def test_two_residual_streams_of_one_shape_are_two_stages():
    _, stages = staged(TwoStreams(), torch.randn(2, 4))
    assert [len(stage.blocks) for stage in stages] == [3, 2]


def test_streams_that_must_stay_are_told_apart_by_their_shapes_alone():
    class Returned(TwoStreams):
        def forward(self, x):
            return super().forward(x), self.stem(x) + self.between(self.stem(x))

    _, stages = staged(Returned(), torch.randn(2, 4))
    assert [len(stage.blocks) for stage in stages] == [6]  # the sum that is returned ends a block, too


class Plain(nn.Module):
    """Three plain convolutions with any activation after them."""

    def __init__(self, activation):
        super().__init__()
        self.activation = activation
        self.layers = nn.ModuleList(nn.Conv2d(*sizes, 3, padding=1) for sizes in ((3, 4), (4, 4), (4, 4)))

    def forward(self, x):
        for layer in self.layers:
            x = self.activation(layer(x))
        return x.mean((2, 3))


@pytest.mark.parametrize("activation", [nn.SiLU(), torch.tanh, F.leaky_relu, torch.Tensor.relu_])
def test_a_plain_block_ends_with_whatever_activation_follows_it(activation):
    graph_module, (stage,) = staged(Plain(activation), images(4, 8, 3))
    called = [node for node in graph_module.graph.nodes if node.op.startswith("call")]
    assert [block.out for block in stage.blocks] == called[1:-1:2]
    assert [block.entry for block in stage.removable] == called[1:-2:2]


class Rectified(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.before, self.after = before, after
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        x = self.before(self.a(x))
        return self.c(self.after(x + self.b(x)))


@pytest.mark.parametrize(
    ("before", "after", "left"),
    [(torch.relu, nn.ReLU(), 1), (F.relu6, nn.ReLU6(), 1), (F.relu, F.relu6, 2), (torch.tanh, torch.tanh, 2)],
)
def test_an_activation_goes_only_if_a_second_time_changes_nothing(before, after, left):
    model, x = Rectified(before, after), 9 * torch.randn(50, 4)
    graph_module, stages = staged(model, x)
    drop_block(graph_module, stages[-1].removable[-1])
    edit.tidy(graph_module)
    calls = [node for node in graph_module.graph.nodes if node.op.startswith("call")]
    assert len(calls) == 2 + left
    assert torch.equal(graph_module(x), model.c(after(before(model.a(x)))))


def test_a_block_between_quantizers_leaves_none_of_them_behind():
    x = images()
    graph_module = graph_of(small_resnet((2,)), x)
    Quantize(4, 4).apply(graph_module, PassContext(graph_module, (x,), calibration=[(x,)]))
    verify(graph_module, (x,))
    (stage,) = stages_of(graph_module, analyse_channels(graph_module, (x,)))
    relus = len(graph_module.graph.find_nodes(op="call_module", target="stages.0.1.relu2"))
    drop_block(graph_module, stage.blocks[-1])
    edit.tidy(graph_module)
    quantizers = graph_module.graph.find_nodes(op="call_function", target=ops.quantize_activation)
    assert relus == 1 and not graph_module.graph.find_nodes(op="call_module", target="stages.0.1.relu2")
    assert [edit.input_of(node).name for node in quantizers] == ["x", "relu", "stages_0_0_relu1", "flatten"]
