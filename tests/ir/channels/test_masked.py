"""The masked reference is right where it can be worked out by hand, and it can fail."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chainfx.ir.channels.analyse import analyse_channels
from chainfx.ir.channels.surgery import prune
from tests.ir.channels.absence import Absence, AbsentNetwork
from tests.ir.channels.masked import TOLERANCE, Net, X, captured, conv, difference, masked_outputs, planned_shapes
from tests.ir.channels.prune_checks import Promise

NAN = torch.nan


def pair():
    """Two coupled layers and a reader: 8 units, of which all but 2 and 5 are kept."""
    graph_module, inputs = captured(Net(lambda m, y, x: F.relu(y + m.b(x)), b=conv(3, 8)), X)
    analysis = analyse_channels(graph_module, inputs)
    return graph_module, inputs, analysis, {analysis.groups[0].name: [0, 1, 3, 4, 6, 7]}


def test_equals_zeroed_sources_where_nothing_shifts_them():
    graph_module, inputs, analysis, keep = pair()
    wanted, _ = masked_outputs(graph_module, analysis, keep, inputs)
    for name in ("a", "b"):
        layer = graph_module.get_submodule(name)
        for tensor in (layer.weight, layer.bias):
            tensor.data[[2, 5]] = 0
    with torch.no_grad():
        assert difference(graph_module(*inputs), wanted) <= TOLERANCE


def test_equals_a_reader_that_ignores_shifted_channels():
    graph_module, inputs = captured(nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.Sigmoid(), conv(8, 2)), X)
    analysis = analyse_channels(graph_module, inputs)
    wanted, _ = masked_outputs(graph_module, analysis, {analysis.groups[0].name: [0, 1, 3, 4, 6, 7]}, inputs)
    graph_module.get_parameter("3.weight").data[:, [2, 5]] = 0
    with torch.no_grad():
        assert difference(graph_module(*inputs), wanted) <= TOLERANCE


def test_leaves_the_graph_alone():
    graph_module, inputs, analysis, keep = pair()
    before = copy.deepcopy(graph_module.state_dict())
    masked_outputs(graph_module, analysis, keep, inputs)
    assert all(torch.equal(value, before[name]) for name, value in graph_module.state_dict().items())


def test_macs_are_those_of_what_is_left():
    graph_module, inputs, analysis, keep = pair()
    _, macs = masked_outputs(graph_module, analysis, keep, inputs)
    positions = 2 * 16
    assert macs == {"a": positions * 6 * 27, "b": positions * 6 * 27, "z": positions * 2 * 6 * 9}


def with_absent(shape, *channels):
    x = torch.randn(shape, dtype=torch.float64)
    x[..., list(channels)] = NAN
    return x, [c for c in range(shape[-1]) if c not in channels]


def test_layer_and_rms_norm_are_those_of_the_present_channels():
    x, kept = with_absent((2, 5, 8), 1, 6)
    weight, bias = torch.randn(2, 8, dtype=torch.float64)
    with Absence():
        layer, root = F.layer_norm(x, (8,), weight, bias), F.rms_norm(x, (8,), weight)
    assert layer.isnan().all((0, 1)).tolist() == root.isnan().all((0, 1)).tolist() == [c in (1, 6) for c in range(8)]
    wanted = F.layer_norm(x[..., kept], (6,), weight[kept], bias[kept])
    torch.testing.assert_close(layer[..., kept], wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(root[..., kept], F.rms_norm(x[..., kept], (6,), weight[kept]), rtol=1e-12, atol=1e-12)


def test_group_norm_is_that_of_whole_groups():
    x, kept = with_absent((2, 4, 4, 8), 2, 3)
    x = x.movedim(-1, 1)
    with Absence():
        found = F.group_norm(x, 4)
    torch.testing.assert_close(found[:, kept], F.group_norm(x[:, kept], 3), rtol=1e-12, atol=1e-12)
    x[:, 0] = NAN
    with Absence(), pytest.raises(AssertionError, match="channels of one group of a GroupNorm"):
        F.group_norm(x, 4)
    with Absence():
        found = F.group_norm(x, 1)
    kept.remove(0)
    torch.testing.assert_close(found[:, kept], F.group_norm(x[:, kept], 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_are_those_of_the_present_channels(transposed):
    x, kept = with_absent((2, 5, 5, 8), 1, 5)
    x = x.movedim(-1, 1)
    weight, bias = torch.randn(8, 4, 3, 3, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    call = F.conv_transpose2d if transposed else F.conv2d
    options = (2, 1, 0, 2) if transposed else (2, 1, 1, 2)
    weight[[0, 4] if not transposed else [1, 5]] = NAN
    weight[:, 0 if transposed else 1] = NAN
    mode = Absence()
    with mode:
        found = call(x, weight, bias, *options)
    small = weight[kept][:, [1, 2, 3]] if transposed else weight[[1, 2, 3, 5, 6, 7]][:, [0, 2, 3]]
    made = [1, 2, 3, 5, 6, 7]
    wanted = call(x[:, kept], small, bias[made], *options)
    assert found[:, [0, 4]].isnan().all()
    torch.testing.assert_close(found[:, made], wanted, rtol=1e-12, atol=1e-12)
    assert mode.macs == small.numel() * 2 * (25 if transposed else 9)


def test_attention_is_that_of_the_present_width_at_the_scale_of_the_whole():
    q, kept = with_absent((2, 3, 5, 4), 1)
    k, _ = with_absent((2, 3, 5, 4), 1)
    v, _ = with_absent((2, 3, 5, 4), 0)
    mode = Absence()
    with mode:
        found = F.scaled_dot_product_attention(q, k, v)
    wanted = F.scaled_dot_product_attention(q[..., kept], k[..., kept], v[..., 1:], scale=0.5)
    assert found[..., 0].isnan().all()
    torch.testing.assert_close(found[..., 1:], wanted, rtol=1e-12, atol=1e-12)
    assert mode.macs == 2 * 3 * 5 * 5 * (3 + 3)


def mismatched():
    x, _ = with_absent((2, 5, 8), 1)
    y, _ = with_absent((2, 5, 8), 2)
    weight, _ = with_absent((4, 8), 2)
    kernel = weight[:, :, None, None]
    return {
        "the input of linear": lambda: F.linear(x, weight),
        "the weight of a convolution": lambda: F.conv2d(x.transpose(1, 2)[..., None], kernel),
        "the summed axis of a product": lambda: x @ y.transpose(1, 2),
    }


@pytest.mark.parametrize("what", mismatched())
def test_absent_factors_that_meet_present_ones_are_seen(what):
    with Absence(), pytest.raises(AssertionError, match=what):
        mismatched()[what]()


def test_what_mixes_channels_spoils_the_output():
    graph_module, inputs, analysis, keep = pair()
    (output,) = graph_module.graph.find_nodes(op="output")
    made_by_both = next(node for node in graph_module.graph.nodes if node.name == "z").args[0]
    with graph_module.graph.inserting_before(output):
        output.args = (graph_module.graph.call_function(torch.softmax, (made_by_both, 1)),)
    graph_module.recompile()
    wanted, _ = masked_outputs(graph_module, analysis, keep, inputs)
    with pytest.raises(AssertionError, match="lacks channels"):
        difference(wanted, wanted)


def test_other_channels_are_seen():
    graph_module, inputs, analysis, keep = pair()
    promise = Promise.of(graph_module, analysis, keep, inputs)
    prune(graph_module, analysis, {name: [0, 1, 3, 4, 5, 7] for name in keep})
    with pytest.raises(AssertionError, match="differs from the masked one by"):
        promise.check(graph_module)


def test_other_shapes_and_costs_are_seen():
    graph_module, inputs, analysis, keep = pair()
    promise = Promise.of(graph_module, analysis, keep, inputs)
    with pytest.raises(AssertionError):
        promise.check(graph_module)
    prune(graph_module, analysis, keep)
    assert promise.check(graph_module) <= TOLERANCE
    dearer = dataclasses.replace(promise, macs={name: macs + 1 for name, macs in promise.macs.items()})
    with pytest.raises(AssertionError):
        dearer.check(graph_module)


def test_members_that_name_other_channels_are_seen():
    graph_module, inputs, analysis, keep = pair()
    (group,) = analysis.groups
    shifted = [
        m._replace(units=np.roll(m.units, 1)) if (m.path, m.dim) == ("z.weight", 1) else m for m in group.members
    ]
    wrong = dataclasses.replace(analysis, groups=(dataclasses.replace(group, members=tuple(shifted)),))
    with pytest.raises(AssertionError, match="the weight of a convolution"):
        AbsentNetwork(graph_module, wrong, keep).run(*inputs)


def test_planned_shapes():
    graph_module, _, analysis, keep = pair()
    assert planned_shapes(graph_module, analysis, keep) == {
        "a.weight": [6, 3, 3, 3],
        "a.bias": [6],
        "b.weight": [6, 3, 3, 3],
        "b.bias": [6],
        "z.weight": [2, 6, 3, 3],
        "z.bias": [2],
    }
