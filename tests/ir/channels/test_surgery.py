"""Channels are removed exactly where the analysis says, also beside quantizers and exits, and nothing else changes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chainfx.errors import GraphError, InputError
from chainfx.ir.channels.analyse import ChannelAnalysis, analyse_channels
from chainfx.ir.channels.surgery import prune
from chainfx.ir.graph import edit, layers_of, ops
from tests.ir.channels.masked import Net, X, assert_equals_masked, captured, conv, random_keep


def with_quantizers(graph_module, inputs, scheme="uniform"):
    """8-bit weights per output channel and 8-bit activations, as the quantize pass leaves them."""
    graph = graph_module.graph
    for layer in list(layers_of(graph_module)):
        node = layer.node
        clip = f"clip_{node.name}.value"
        edit.set_tensor(graph_module, clip, torch.tensor(3.0, dtype=torch.float64), parameter=True)
        with graph.inserting_before(node):
            node.update_arg(1, graph.call_function(ops.quantize_weight, (layer.weight, 8, scheme, layer.out_axis)))
            read = graph.get_attr(clip)
            node.update_arg(0, graph.call_function(ops.quantize_activation, (node.args[0], read, 8, True)))
    graph_module.recompile()


def with_exit(graph_module, tap, classes=2):
    """An exit head after node ``tap``: linear, ReLU, linear, exit point; the outputs become a tuple."""
    graph = graph_module.graph
    final = next(node for node in graph.nodes if node.op == "output")
    sizes = {"inner": (6, 8), "outer": (classes, 6)}
    for name, size in sizes.items():
        edit.set_tensor(graph_module, f"exit1.{name}", torch.randn(size, dtype=torch.float64), parameter=True)
    with graph.inserting_before(final):
        value = graph.call_function(torch.mean, (tap, (2, 3)))
        value = graph.call_function(F.linear, (value, graph.get_attr("exit1.inner"), None))
        value = graph.call_function(torch.relu, (value,))
        value = graph.call_function(F.linear, (value, graph.get_attr("exit1.outer"), None))
        value = graph.call_function(ops.exit_point, (value, "exit1", 0.5, "max-softmax"))
        final.args = ((value, final.args[0]),)
    graph_module.recompile()


def small_net():
    features = [conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 6), nn.ReLU()]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(96, 5))


def sized_view(m, y, x):
    n, c, h, w = y.shape
    return y.view(n, c, h * w).mean(2).reshape(n, c, 1, 1).expand(n, c, h, w)


def test_quantized_weights_and_exits_are_transparent():
    graph_module, inputs = captured(small_net(), X)
    tap = next(node for node in graph_module.graph.nodes if "relu" in str(node.target).lower() or node.name == "_2")
    with_quantizers(graph_module, inputs)
    with_exit(graph_module, tap)
    analysis = analyse_channels(graph_module, inputs)
    assert [group.size for group in analysis.groups] == [8, 6, 6]
    assert {each.path: each.reason[:28] for each in analysis.frozen} == {
        "exit1.outer": "it is the answer of an exit ",
        "6.weight": "it is an output of the netwo",
    }
    assert_equals_masked(graph_module, analysis, random_keep(analysis, 0.5), inputs)


def test_deploy_codes_freeze():
    graph_module, inputs = captured(nn.Sequential(conv(3, 8), conv(8, 6), conv(6, 2)), X)
    layer = list(layers_of(graph_module))[1]
    node = layer.node
    codes, scale = ops.encode_weight(layer.tensor.detach(), 8, "uniform", 0)[:2]
    edit.set_tensor(graph_module, "packed.codes", codes.to(torch.uint8), parameter=False)
    edit.set_tensor(graph_module, "packed.scale", scale, parameter=False)
    graph = graph_module.graph
    with graph.inserting_before(node):
        args = (graph.get_attr("packed.codes"), graph.get_attr("packed.scale"), 8, "uniform")
        node.update_arg(1, graph.call_function(ops.dequantize_weight, args))
    graph_module.recompile()
    analysis = analyse_channels(graph_module, inputs)
    assert analysis.groups == ()
    assert analysis.frozen[0].reason == f"its weight is computed (node '{node.name}')"


def test_analysis_leaves_the_graph_alone():
    graph_module, _ = captured(small_net(), X)
    graph_module.train()
    graph_module.get_submodule("1").eval()
    before = {name: value.clone() for name, value in graph_module.state_dict().items()}
    modes = [module.training for module in graph_module.modules()]
    code = graph_module.code
    analysis = analyse_channels(graph_module, (torch.empty(1, 3, 4, 4, device="meta", dtype=torch.float64),))
    assert isinstance(analysis, ChannelAnalysis)
    assert modes == [module.training for module in graph_module.modules()]
    assert code == graph_module.code
    assert all(torch.equal(value, before[name]) for name, value in graph_module.state_dict().items())


def test_surgery_keeps_order_kind_and_trainability():
    graph_module, inputs = captured(small_net(), X)
    graph_module.get_parameter("0.weight").requires_grad_(False)
    weight = graph_module.get_parameter("0.weight").detach().clone()
    analysis = analyse_channels(graph_module, inputs)
    prune(graph_module, analysis, {analysis.groups[0].name: [5, 0, 2]})
    new = graph_module.get_parameter("0.weight")
    assert torch.equal(new.detach(), weight[[0, 2, 5]])
    assert not new.requires_grad and graph_module.get_parameter("0.bias").requires_grad
    norm = graph_module.get_submodule("1")
    assert (norm.num_features, norm.weight.shape, norm.running_var.shape) == (3, (3,), (3,))
    assert isinstance(norm.weight, nn.Parameter) and "running_var" in dict(norm.named_buffers())
    assert graph_module.get_parameter("3.weight").shape == (6, 3, 3, 3)
    graph_module.train()
    graph_module(*inputs).sum().backward()
    assert graph_module.get_parameter("3.weight").grad.shape == (6, 3, 3, 3)


def test_pruned_graph_keeps_batch_and_resolution_free_and_prunes_again():
    graph_module, inputs = captured(Net(sized_view), X)
    analysis = analyse_channels(graph_module, inputs)
    prune(graph_module, analysis, {g.name: range(5) for g in analysis.groups})
    assert graph_module(torch.randn(3, 3, 6, 6, dtype=torch.float64)).shape == (3, 2, 6, 6)
    again = analyse_channels(graph_module, inputs)
    assert [group.size for group in again.groups] == [5]
    assert_equals_masked(graph_module, again, random_keep(again, 0.5), inputs)


def test_tied_parameters_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.z = conv(3, 8), conv(3, 8), conv(8, 2)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.z(self.a(x) + self.b(x))

    graph_module, inputs = captured(Tied(), X)
    analysis = analyse_channels(graph_module, inputs)
    pruned = assert_equals_masked(graph_module, analysis, {analysis.groups[0].name: [1, 2]}, inputs)
    assert pruned.get_parameter("a.weight").shape[0] == 2
    names = dict(pruned.named_parameters(remove_duplicate=False))
    assert names.get("b.weight", names["a.weight"]) is names["a.weight"]


@pytest.mark.parametrize("indices", [[], [-1], [8]])
def test_wrong_indices(indices):
    graph_module, inputs = captured(small_net(), X)
    analysis = analyse_channels(graph_module, inputs)
    name = analysis.groups[0].name
    with pytest.raises(InputError) as caught:
        prune(graph_module, analysis, {name: indices})
    assert str(caught.value) == (
        f"keep['{name}'] is {indices}, but the group has 8 units; name at least one unit, all between 0 and 7."
    )


def test_unknown_group_and_changed_graph():
    graph_module, inputs = captured(small_net(), X)
    analysis = analyse_channels(graph_module, inputs)
    names = ", ".join(group.name for group in analysis.groups)
    with pytest.raises(InputError) as caught:
        prune(graph_module, analysis, {"nowhere": [0]})
    assert str(caught.value) == f"there is no channel group 'nowhere'; use one of {names}."
    prune(graph_module, analysis, {analysis.groups[0].name: [0, 1]})
    with pytest.raises(GraphError, match=r"changed since the analysis: parameter '0.weight' has shape \(2, 3"):
        prune(graph_module, analysis, {analysis.groups[0].name: [0, 1]})
