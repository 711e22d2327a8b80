import torch
from torch import nn

from chainfx import zoo
from chainfx.ir import edit
from chainfx.ir.blocks import drop_block, stages_of
from tests.nets import graph_of, images, small_resnet


def test_a_resnet_has_one_stage_per_width_and_its_strided_blocks_must_stay():
    graph_module = graph_of(small_resnet((2, 3, 2)), images())
    stages = stages_of(graph_module)
    assert [len(stage.blocks) for stage in stages] == [2, 3, 2]
    assert [len(stage.removable) for stage in stages] == [2, 2, 1]


def test_dropping_a_block_equals_a_network_built_without_it():
    x = images()
    full = small_resnet((3, 2))
    graph_module = graph_of(full, x)
    drop_block(graph_module, stages_of(graph_module)[0].removable[-1])
    edit.tidy(graph_module)
    short = small_resnet((2, 2))
    missing = short.load_state_dict(graph_module.state_dict(), strict=False)
    assert not missing.missing_keys
    assert not missing.unexpected_keys
    assert torch.equal(graph_module(x), short(x))


def test_the_rectifier_that_became_idle_goes_too():
    graph_module = graph_of(small_resnet((2, 2)), images())
    before = sum(isinstance(m, nn.ReLU) for m in graph_module.modules())
    drop_block(graph_module, stages_of(graph_module)[0].removable[-1])
    edit.tidy(graph_module)
    assert sum(isinstance(m, nn.ReLU) for m in graph_module.modules()) == before - 2


def test_a_plain_network_has_its_equal_convolutions_as_blocks():
    graph_module = graph_of(zoo.vgg19().eval(), images(1, 32, 3))
    stages = stages_of(graph_module)
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
    stages = stages_of(graph_of(Leaky(), torch.randn(2, 4)))
    assert [len(stage.removable) for stage in stages] == [0] * len(stages)
