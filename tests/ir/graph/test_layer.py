"""Layers seen as one thing, and the patterns that say which of them a pass works on."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chainfx.errors import GraphError, PassError
from chainfx.ir.graph import Layer, Skipped, ends_of, layer_at, layer_path, layers_of, left_alone, ops, select, value_of
from chainfx.ir.graph.edit import function_of, get_tensor, input_of, set_tensor
from tests.nets import graph_of


class Net(nn.Module):
    """A strided convolution in groups, a depthwise and a transposed one, and a linear layer without bias."""

    def __init__(self):
        super().__init__()
        self.grouped = nn.Conv2d(4, 6, 3, stride=2, groups=2)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.transposed = nn.ConvTranspose2d(6, 8, 2, groups=2)
        self.fc = nn.Linear(8, 5, bias=False)

    def forward(self, x):
        return self.fc(self.transposed(self.depthwise(torch.relu(self.grouped(x)))).mean((2, 3)))


@pytest.fixture
def graph_module():
    return graph_of(Net(), torch.zeros(1, 4, 8, 8))


def by_path(graph_module):
    return {layer.path: layer for layer in layers_of(graph_module)}


def test_what_a_layer_is(graph_module):
    layers = by_path(graph_module)
    assert list(layers) == ["grouped", "depthwise", "transposed", "fc"]
    assert [layer.weight_path for layer in layers.values()] == [f"{path}.weight" for path in layers]
    assert [layer.groups for layer in layers.values()] == [2, 6, 2, 1]
    assert [(layer.in_axis, layer.out_axis) for layer in layers.values()] == [(1, 0), (1, 0), (0, 1), (1, 0)]
    assert [layer.transposed for layer in layers.values()] == [False, False, True, False]
    assert layers["grouped"].options[0] == (2, 2) and layers["fc"].options == ()
    assert layers["grouped"].bias.target == "grouped.bias" and layers["fc"].bias is None
    for layer in layers.values():
        assert layer.tensor is graph_module.get_parameter(layer.weight_path)
        assert layer.weight is layer.weight_read is layer.weight_beneath_mask
        assert layer.source is layer.node.args[0]
        assert layer.mask is layer.weight_quantizer is layer.input_quantizer is None


def test_a_layer_is_the_same_however_often_it_is_looked_at(graph_module):
    layers = list(layers_of(graph_module))
    assert layers == list(layers_of(graph_module)) and len({*layers, *layers_of(graph_module)}) == 4
    assert layer_at(graph_module, layers[0].node) == layers[0]
    assert layer_at(graph_module, layers[0].weight) is None


def test_what_a_pass_puts_before_a_layer_is_seen_at_once(graph_module):
    fc, graph = by_path(graph_module)["fc"], graph_module.graph
    source = fc.source
    set_tensor(graph_module, "clip", torch.ones(()), parameter=True)
    set_tensor(graph_module, "mask", torch.rand(5, 8) < 0.5, parameter=False)
    fc.put_mask("mask", "unstructured")
    with graph.inserting_before(fc.node):
        fc.read_weight(graph.call_function(ops.quantize_weight, (fc.weight_beneath_mask, 4, "uniform", 0)))
        fc.read_input(graph.call_function(ops.quantize_activation, (source, graph.get_attr("clip"), 4, False)))
    assert fc.mask.args[1].target == "mask" and fc.mask.args[2] == "unstructured"
    assert fc.mask.args[0] is fc.weight_quantizer is fc.weight_beneath_mask
    assert fc.weight_quantizer.args == (fc.weight, 4, "uniform", 0) and fc.path == "fc"
    assert fc.input_quantizer.args[0] is fc.source is source
    seen = value_of(graph_module, fc.weight_read)
    assert torch.equal(seen, ops.quantize_weight(fc.tensor, 4, "uniform", 0) * get_tensor(graph_module, "mask"))
    fc.read_weight(fc.weight)
    assert fc.weight_quantizer is None and fc.mask.args[0] is fc.weight


def test_a_bias_that_was_not_there(graph_module):
    fc = by_path(graph_module)["fc"]
    assert fc.bias_read is None
    set_tensor(graph_module, "fc.bias", torch.ones(5), parameter=True)
    fc.read_bias("fc.bias")
    assert fc.bias is fc.bias_read and fc.bias.target == "fc.bias"


class Computed(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.cell = nn.Parameter(torch.randn(4, 4)), nn.LSTMCell(4, 4)

    def forward(self, x):
        return self.cell(F.linear(F.linear(x, self.w), self.w * 2))[0]


def test_layers_that_nobody_sees_into_are_named():
    graph_module = graph_of(Computed(), torch.zeros(1, 4))
    layers, skipped = select(graph_module, "prune")
    assert [(layer.path, layer.weight_path) for layer in layers] == [("w", "w")]
    assert [each.reason for each in skipped] == [
        "its weight is computed",
        "the inside of module LSTMCell is not visible",
    ]
    computed = next(node for node in graph_module.graph.nodes if node.name == skipped[0].node)
    assert layer_at(graph_module, computed) is None
    with pytest.raises(GraphError) as caught:
        Layer(graph_module, computed).weight_path  # noqa: B018
    assert str(caught.value) == (
        f"the weight of node {computed.name!r} is computed; only a stored weight makes it a layer."
    )


def test_the_first_and_the_last_layers():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x):
            y = self.a(x) + self.b(x)
            return self.c(y), self.d(y.relu())

    first, last = ends_of(graph_of(Branches(), torch.zeros(1, 4)))
    assert {layer.path for layer in first} == {"a", "b"}
    assert {layer.path for layer in last} == {"c", "d"}


def test_include_and_skip(graph_module):
    layers, skipped = select(graph_module, "prune", include=("*e*",), skip=("depth*", "fc"))
    assert [layer.path for layer in layers] == ["grouped", "transposed"]
    assert skipped == [
        Skipped("depthwise", "a pattern of skip matches it"),
        Skipped("fc", "a pattern of skip matches it"),
    ]
    layers, skipped = select(graph_module, "prune", include=("fc",), skip=("grouped",))
    assert [layer.path for layer in layers] == ["fc"]
    assert [each.reason for each in skipped] == [
        "a pattern of skip matches it",
        "no pattern of include matches it",
        "no pattern of include matches it",
    ]


def test_names_of_weights_count_where_a_pass_says_so(graph_module):
    layers, _ = select(graph_module, "quantize", skip=("fc.weight", "grouped"), weight_names=True)
    assert [layer.path for layer in layers] == ["depthwise", "transposed"]
    for names in (False, True):
        with pytest.raises(PassError) as caught:
            select(graph_module, "quantize", skip=("fc.weights",), weight_names=names)
        assert str(caught.value) == (
            "quantize: the pattern 'fc.weights' in skip matches no layer; "
            "layers are grouped, depthwise, transposed, fc."
        )
    with pytest.raises(PassError, match=r"the pattern 'fc.weight' in include matches no layer"):
        select(graph_module, "prune", include=("fc.weight",))


def test_a_group_is_left_alone_for_one_layer_of_it_and_a_pattern_may_name_what_is_in_no_group():
    groups = {"one": ["a", "b"], "two": ["c"]}
    assert left_alone(groups, "prune", ["a", "b", "c", "d"], skip=["b", "d"]) == {"one": "a pattern of skip matches it"}
    assert left_alone(groups, "prune", [], include=["b"]) == {"two": "no pattern of include matches it"}
    with pytest.raises(PassError) as caught:
        left_alone(groups, "prune-heads", ["a", "b"], skip=["e"], kind="layer of attention")
    assert str(caught.value) == ("prune-heads: the pattern 'e' in skip matches no layer of attention; layers are a, b.")


def test_the_path_of_a_layer():
    assert layer_path("layer1.0.conv1.weight") == "layer1.0.conv1" and layer_path("w") == "w"


def test_arguments_that_are_no_nodes_and_calls_that_are_no_functions(graph_module):
    fc = by_path(graph_module)["fc"]
    assert input_of(fc.node) is fc.node.args[0] and function_of(fc.node) is F.linear
    with pytest.raises(GraphError) as caught:
        input_of(fc.node, 2)
    assert str(caught.value) == (
        "node 'fc' has None as argument 2, where another node is needed; mend the pass that made it."
    )
    with pytest.raises(GraphError) as caught:
        function_of(fc.weight)
    assert str(caught.value) == (
        "node 'fc_weight' calls 'fc.weight', which is no function; mend the pass that made it."
    )
