import copy

import pytest
import torch
from torch import nn

from chainfx import zoo
from chainfx.errors import PassError
from chainfx.ir.graph.checks import verify
from chainfx.passes.base import PassContext
from chainfx.passes.distill import Distill
from tests.nets import graph_of, images, small_resnet


def distilled(model, x, one):
    graph_module = graph_of(model, x)
    result = one.apply(copy.deepcopy(graph_module), PassContext(graph_module, (x,), tunes=True))
    verify(result.graph_module, (x,))
    return graph_module, result


def test_depth_gives_the_students_of_the_literature():
    x = images(1, 32, 3)
    _, result = distilled(zoo.resnet(blocks=(3, 4, 6, 3)).eval(), x, Distill(depth=(2, 4, 6, 2)))
    expected = zoo.resnet(blocks=(2, 4, 6, 2))
    sizes = [sum(p.numel() for p in m.parameters()) for m in (result.graph_module, expected)]
    assert sizes[0] == sizes[1]
    _, result = distilled(zoo.vgg19().eval(), x, Distill(depth=(2, 2, 2, 2, 2)))
    sizes = [sum(p.numel() for p in m.parameters()) for m in (result.graph_module, zoo.vgg13())]
    assert sizes[0] == sizes[1]


def test_a_student_that_inherits_equals_the_shallower_network_and_the_teacher_stays_whole():
    x = images()
    model = small_resnet((3, 3))
    _, result = distilled(model, x, Distill(depth=0.5))
    short = small_resnet((2, 2))
    short.load_state_dict(result.graph_module.state_dict())
    assert torch.equal(result.graph_module(x), short(x))
    assert torch.equal(result.tune.teacher(x), model(x))
    assert result.tune.loss == "kd"
    assert (result.tune.temperature, result.tune.hard_weight, result.tune.soft_weight) == (4.0, 0.1, 0.9)


def test_a_random_student_starts_anew_the_same_for_the_same_seed():
    x = images()
    one = Distill(depth=0.5, init="random")
    first, second = (distilled(small_resnet((3, 3)), x, one)[1].graph_module for _ in range(2))
    inherited = distilled(small_resnet((3, 3)), x, Distill(depth=0.5))[1].graph_module
    assert torch.equal(first(x), second(x))
    assert not torch.equal(first.conv1.weight, inherited.conv1.weight)
    assert float(first.conv1.weight.detach().std()) == pytest.approx((2 / 9) ** 0.5, rel=0.35)


def test_width_scales_every_hidden_channel():
    x = images(1, 16, 3)
    _, result = distilled(zoo.resnet(blocks=(1, 1), width=16).eval(), x, Distill(width=0.5))
    expected = zoo.resnet(blocks=(1, 1), width=8)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (result.graph_module, expected)]
    assert sizes[0] == sizes[1]


def test_a_student_of_ones_own_replaces_the_network():
    x = images()
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    _, result = distilled(small_resnet(), x, Distill(student=student))
    assert torch.equal(result.graph_module(x), student(x))
    with torch.no_grad():
        next(result.graph_module.parameters()).zero_()
    assert student[1].weight.abs().sum() > 0


def test_specs_round_trip_and_tell_students_apart():
    one = Distill(depth=(2, 4, 6, 2), temperature=2.0)
    assert Distill.from_spec(one.spec()) == one
    students = [nn.Linear(2, 2), nn.Linear(2, 2)]
    specs = [Distill(student=s).spec()["student"] for s in students]
    assert specs[0] != specs[1]
    assert specs[0].startswith("torch.nn.modules.linear.Linear#")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "distill: give exactly one of depth, width and student; none is given."),
        (
            {"depth": 0.5, "width": 0.5},
            "distill: give exactly one of depth, width and student; depth and width are given.",
        ),
        ({"depth": 1.5}, "distill: depth=1.5 is out of range; use a share in (0, 1) or a tuple of block counts."),
        ({"width": 1.0}, "distill: width=1.0 is out of range; use a share in (0, 1)."),
        ({"depth": 0.5, "temperature": 0}, "distill: temperature=0 is out of range; use a number above 0."),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(PassError) as caught:
        Distill(**options)
    assert str(caught.value) == message


def test_depths_and_students_that_do_not_fit():
    x = images()
    with pytest.raises(PassError) as caught:
        distilled(small_resnet((3, 2)), x, Distill(depth=(3, 2, 1)))
    assert str(caught.value) == (
        "distill: depth=(3, 2, 1) does not fit: the network has stages of (3, 2) blocks, "
        "of which at least (1, 1) must stay; give one number for each stage between those."
    )
    with pytest.raises(PassError) as caught:
        distilled(small_resnet((2, 2)), x, Distill(depth=0.9))
    assert str(caught.value) == (
        "distill: depth=0.9 keeps all blocks of the stages of (2, 2); use a smaller one or leave it out."
    )
    with pytest.raises(PassError) as caught:
        distilled(small_resnet(), x, Distill(student=nn.Sequential(nn.Flatten(), nn.Linear(64, 3))))
    assert (
        str(caught.value)
        == "distill: the student returns shape (4, 3), the teacher (4, 10); give both the same classes."
    )
    with pytest.raises(PassError) as caught:
        distilled(nn.Sequential(nn.Linear(4, 3)), torch.randn(2, 4), Distill(depth=0.5))
    assert str(caught.value) == ("distill: the network has no block with equal input and output shape; use width=.")
