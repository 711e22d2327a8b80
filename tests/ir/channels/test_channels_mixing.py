"""Channels through normalizations, products, constant selections, strides and sizes that code computes."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chainfx.errors import InputError
from chainfx.ir.channels.analyse import analyse_channels
from chainfx.ir.channels.surgery import prune
from chainfx.ir.graph import edit, layers_of, ops
from tests.ir.channels.masked import Net, X, assert_equals_masked, captured, conv, param, random_keep

ORDER = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])


def tokens(y):
    return y.flatten(2).transpose(1, 2)


def own_shape(m, y, x):
    return F.layer_norm(tokens(y), tokens(y).shape[-1:])


def outer_shape(m, y, x):
    return y.mean(2).reshape((*y.shape[:1], 8, 4)).flatten(1).view(y.mean(2).shape).unsqueeze(3)


def like_another(m, y, x):
    return F.relu(y.flatten(1)).view_as(m.b(x))


def sorted_by(m, y, x):
    return y[:, m.s] + y


def selected(m, y, x):
    return torch.cat([torch.index_select(y, 1, m.s), y], 1)


def gathered(m, y, x):
    return torch.gather(tokens(y), 1, torch.zeros_like(tokens(y), dtype=torch.int64) + m.s)


def gram(m, y, x):
    return tokens(y) @ m.b(x).flatten(2)


def added(m, y, x):
    return torch.baddbmm(torch.zeros(1, 1, 1, dtype=torch.float64), tokens(y), m.b(x).flatten(2))


def summed(m, y, x):
    return torch.einsum("...tc,...sc->...ts", tokens(y), tokens(m.b(x)) * m.s)


def generated(m, y, x):
    return F.linear(tokens(y), m.b(x).mean((0, 2, 3)).view(1, -1) * m.s)


def own_scale(m, y, x):
    q, k = (layer(tokens(y)).view(-1, 16, 2, 4).transpose(1, 2) for layer in (m.q, m.k))
    return (q @ k.transpose(2, 3) * q.size(-1) ** -0.5).softmax(-1).sum(1)


def filled(m, y, x):
    table = y.new_zeros((4, 4))
    table[1:, :2] = 1
    return y * table


def assigned(m, y, x):
    y = y.clone()
    y[:, :3] = m.b(x)
    return y


def masked_bias(m, y, x):
    bias = m.s.clone()
    bias[2:5].zero_()
    return F.conv2d(x, m.w, bias)


def mixed_tokens(m, y, x):
    return m.b(tokens(y).transpose(1, 2)).transpose(1, 2)


# name: a network, the shapes of its groups
PRUNABLE = {
    "layer norm of images": (Net(lambda m, y, x: m.n(y), n=nn.LayerNorm([8, 4, 4])), [8]),
    "layer norm of the own shape": (Net(own_shape, z=nn.Linear(8, 2)), [8]),
    "layer norm beside channels": (Net(lambda m, y, x: m.n(y), n=nn.LayerNorm(4)), [8]),
    "RMS norm function": (Net(lambda m, y, x: F.rms_norm(tokens(y), (8,), m.s), s=param(8), z=nn.Linear(8, 2)), [8]),
    "group norm function": (Net(lambda m, y, x: F.group_norm(y, 4, m.s, m.s), s=param(8)), [4]),
    "group norm of channels": (Net(lambda m, y, x: m.n(y), n=nn.GroupNorm(8, 8)), [8]),
    "batch norm with a computed scale": (
        Net(lambda m, y, x: F.batch_norm(y, m.r, m.v, m.s.exp()), r=torch.randn(8), v=torch.rand(8) + 1, s=param(8)),
        [8],
    ),
    "stepped slice": (Net(lambda m, y, x: y[:, ::2] + y[:, 1::2], z=conv(4, 2)), [4]),
    "order": (Net(sorted_by, s=ORDER), [4]),
    "selection": (Net(selected, s=ORDER[:5], z=conv(13, 2)), [5, 3]),
    "gather": (Net(gathered, s=torch.tensor(0), z=nn.Linear(8, 2)), [8]),
    "shape of another": (Net(like_another, b=conv(3, 8)), [8, 8]),
    "shape from parts": (Net(outer_shape), [8]),
    "unflatten module": (Net(lambda m, y, x: m.n(y).sum(1), n=nn.Unflatten(1, (2, 4)), z=conv(4, 2)), [4]),
    "matmul": (Net(gram, b=conv(3, 8), z=nn.Linear(16, 2)), [8]),
    "baddbmm": (Net(added, b=conv(3, 8), z=nn.Linear(16, 2)), [8]),
    "einsum": (Net(summed, b=conv(3, 8), s=param(16, 8), z=nn.Linear(16, 2)), [8]),
    "generated weight": (Net(generated, b=conv(3, 8), s=param(3, 1), z=nn.Linear(3, 2)), [8]),
    "scale from the size": (Net(own_scale, q=nn.Linear(8, 8), k=nn.Linear(8, 8), z=nn.Linear(16, 2)), [8, 4]),
    "size in arithmetic": (Net(lambda m, y, x: y / root_of(y.size(1))), [8]),
    "new zeros": (Net(filled), [8]),
    "assignment": (Net(assigned, b=conv(3, 3)), [3, 5]),
    "computed bias": (Net(masked_bias, a=None, w=param(8, 3, 1, 1), s=param(8)), [3, 5]),
    "layer along tokens": (Net(mixed_tokens, b=nn.Linear(16, 5), z=nn.Linear(8, 2)), [8]),
    "square shuffle": (Net(lambda m, y, x: twice_shuffled(y), a=conv(3, 4), z=conv(4, 2)), [2]),
}


def root_of(size):
    return size**0.5 + 1


def twice_shuffled(y):
    folded = y.view(-1, 2, 2, 4, 4)
    return folded.transpose(1, 2).reshape(-1, 4, 4, 4)


@pytest.mark.parametrize("name", PRUNABLE)
def test_pruned_equals_masked(name):
    model, sizes = PRUNABLE[name]
    model = copy.deepcopy(model)
    model.a = nn.Identity() if model.a is None else model.a
    graph_module, inputs = captured(model, X)
    analysis = analyse_channels(graph_module, inputs)
    assert sorted(group.size for group in analysis.groups) == sorted(sizes), str(analysis)
    for ratio in (0.3, 0.5, 0.9):
        pruned = assert_equals_masked(graph_module, analysis, random_keep(analysis, ratio), inputs)
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in graph_module.parameters())
    for batch in (1, 3):
        assert pruned(torch.randn(batch, *X[1:], dtype=torch.float64)).shape[0] == batch


def test_view_as_a_tensor_that_loses_other_channels():
    graph_module, inputs = captured(copy.deepcopy(PRUNABLE["shape of another"][0]), X)
    analysis = analyse_channels(graph_module, inputs)
    pruned = assert_equals_masked(graph_module, analysis, {"a": [0, 2, 3, 4, 7], "b": [1, 2]}, inputs)
    assert pruned(torch.randn(3, 3, 4, 4, dtype=torch.float64)).shape == (3, 2, 4, 4)


HEADS = 4


class Attention(nn.Module):
    """Attention in ``style`` on tokens made by a linear layer; 4 heads of width 3."""

    def __init__(self, style):
        super().__init__()
        self.style = style
        self.a, self.z = nn.Linear(10, 6), nn.Linear(6, 2)
        self.qkv = nn.Linear(6, 36)
        self.proj = nn.Linear(12, 6)
        self.table, self.hidden, self.up = param(11, HEADS), nn.Linear(1, 5), nn.Linear(5, HEADS)
        self.temperature = param(HEADS, 1, 1)
        self.register_buffer("index", torch.randint(11, (25,)))

    def forward(self, x):
        x = F.relu(self.a(x))
        n, length, _ = x.shape
        qkv = self.qkv(x)
        if self.style == "batch":
            q, k, v = (part.reshape(n, length, HEADS, 3).transpose(1, 2) for part in qkv.chunk(3, -1))
            q, k, v = (part.reshape(n * HEADS, length, 3) for part in (q, k, v))
            mixed = torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)) / 3**0.5, -1), v)
            mixed = mixed.view(n, HEADS, length, 3)
        else:
            q, k, v = qkv.reshape(n, length, 3, HEADS, 3).permute(2, 0, 3, 1, 4).unbind(0)
            mixed = self.mix(q, k, v)
        return self.z(self.proj(mixed.transpose(1, 2).reshape(n, length, -1)) + x)

    def mix(self, q, k, v):
        if self.style == "fused":
            return F.scaled_dot_product_attention(q, k, v)
        if self.style == "masked":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=self.temperature.expand(-1, 5, 5))
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature.exp()
        if self.style == "table":
            bias = self.table[self.index].view(5, 5, -1).permute(2, 0, 1)
        else:
            made = self.up(F.relu(self.hidden(torch.arange(25.0, dtype=torch.float64).view(25, 1))))
            bias = made.t().reshape(-1, 5, 5).sigmoid()
        return (scores + bias).softmax(-1) @ v


STYLES = ("fused", "masked", "table", "generated", "batch")


@pytest.mark.parametrize("fold", ["width", "heads"])
@pytest.mark.parametrize("style", STYLES)
def test_attention_keeps_a_rectangle(style, fold):
    torch.manual_seed(0)
    graph_module, inputs = captured(Attention(style), (2, 5, 10))
    analysis = analyse_channels(graph_module, inputs, fold)
    sizes = {group.name: group.size for group in analysis.groups}
    attended = [sizes[name] for name in sizes if name in analysis.attention]
    assert attended == ([HEADS] if fold == "heads" else [3, 3] if style == "batch" else [3]), str(analysis)
    assert analysis.fold == fold
    for ratio in (0.3, 0.7):
        pruned = assert_equals_masked(graph_module, analysis, random_keep(analysis, ratio), inputs)
        assert pruned(torch.randn(3, 5, 10, dtype=torch.float64)).shape == (3, 5, 2)


def test_head_shaped_parameters_follow_the_heads():
    graph_module, inputs = captured(Attention("table"), (2, 5, 10))
    analysis = analyse_channels(graph_module, inputs, "heads")
    (name,) = analysis.attention
    prune(graph_module, analysis, {name: [0, 2, 3]})
    shapes = {path: tuple(tensor.shape) for path, tensor in graph_module.named_parameters()}
    assert shapes["table"] == (11, 3) and shapes["temperature"] == (3, 1, 1)
    assert shapes["qkv.weight"] == (27, 6) and shapes["proj.weight"] == (6, 9)


def test_one_head_has_no_heads_to_remove():
    def one(m, y, x):
        q = k = v = m.q(tokens(y)).view(-1, 16, 1, 8).transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, v).flatten(2)

    graph_module, inputs = captured(Net(one, q=nn.Linear(8, 8), z=nn.Linear(128, 2)), X)
    assert not analyse_channels(graph_module, inputs, "heads").attention
    assert analyse_channels(graph_module, inputs, "width").attention


def test_products_have_the_shapes_of_the_pruned_network():
    graph_module, inputs = captured(Attention("fused"), (2, 5, 10))
    analysis = analyse_channels(graph_module, inputs)
    (name,) = analysis.products
    *operands, output = analysis.products[name]
    assert [axis.shape for axis in operands] == [(1, HEADS, 5, 3)] * 3
    units = sum(group.size for group in analysis.groups)
    first = 1 + sum(g.size for g in analysis.groups[: [g.name for g in analysis.groups].index("qkv")])
    removed = torch.zeros(units + 1, dtype=torch.bool).numpy()
    removed[first] = True
    assert [axis.kept(removed) for axis in (*operands, output)] == [(1, HEADS, 5, 2)] * 4


def test_scale_of_attention_stays():
    graph_module, inputs = captured(Attention("fused"), (2, 5, 10))
    analysis = analyse_channels(graph_module, inputs)
    prune(graph_module, analysis, {"qkv": [0]})
    (node,) = (n for n in graph_module.graph.nodes if n.target is F.scaled_dot_product_attention)
    assert node.kwargs["scale"] == 1 / math.sqrt(3)


def masked_layer(pattern):
    """Two layers; the second one's weight is quantized and masked."""
    graph_module, inputs = captured(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.Linear(4, 2)), (2, 6))
    node = list(layers_of(graph_module))[1].node
    mask = torch.arange(32).view(4, 8) % 4 < 2
    edit.set_tensor(graph_module, "masks.one", mask, parameter=False)
    graph = graph_module.graph
    with graph.inserting_before(node):
        weight = graph.call_function(ops.quantize_weight, (node.args[1], 8, "uniform", 0))
        node.update_arg(1, graph.call_function(ops.mask_weight, (weight, graph.get_attr("masks.one"), pattern)))
    graph_module.recompile()
    return graph_module, inputs


@pytest.mark.parametrize(("pattern", "sizes"), [("unstructured", [8, 4]), ("2:4", [2, 4])])
def test_masks_are_cut_with_their_weights(pattern, sizes):
    graph_module, inputs = masked_layer(pattern)
    analysis = analyse_channels(graph_module, inputs)
    assert [group.size for group in analysis.groups] == sizes
    pruned = assert_equals_masked(graph_module, analysis, random_keep(analysis, 0.5), inputs)
    mask = edit.get_tensor(pruned, "masks.one")
    assert mask.dtype == torch.bool and mask.shape == edit.get_tensor(pruned, "2.weight").shape == (2, 4)
    if pattern == "2:4":
        assert (mask.view(-1, 4).sum(1) <= 2).all()


def test_codes_of_shared_weights_are_cut():
    graph_module, inputs = captured(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), (2, 6))
    node = next(layers_of(graph_module)).node
    edit.set_tensor(graph_module, "shared.codes", torch.randint(5, (8, 6), dtype=torch.uint8), parameter=False)
    edit.set_tensor(graph_module, "shared.values", torch.randn(5, dtype=torch.float64), parameter=True)
    graph = graph_module.graph
    with graph.inserting_before(node):
        args = (graph.get_attr("shared.codes"), graph.get_attr("shared.values"))
        node.update_arg(1, graph.call_function(ops.look_up, args))
    graph_module.recompile()
    analysis = analyse_channels(graph_module, inputs)
    pruned = assert_equals_masked(graph_module, analysis, random_keep(analysis, 0.5), inputs)
    assert edit.get_tensor(pruned, "shared.codes").shape == (4, 6)
    assert edit.get_tensor(pruned, "shared.codes").dtype == torch.uint8
    assert edit.get_tensor(pruned, "shared.values").shape == (5,)


def test_selection_is_renumbered_only_where_channels_go():
    graph_module, inputs = captured(copy.deepcopy(PRUNABLE["selection"][0]), X)
    analysis = analyse_channels(graph_module, inputs)
    index = graph_module.get_buffer("s")
    prune(graph_module, analysis, {"a": [0, 1]})
    assert graph_module.get_buffer("s").tolist() != index.tolist()
    again = analyse_channels(graph_module, inputs)
    assert_equals_masked(graph_module, again, random_keep(again, 0.5), inputs)


def test_coverage_counts_all_parameters():
    graph_module, inputs = captured(nn.Sequential(conv(3, 8), nn.Softmax(1), conv(8, 4), conv(4, 2)), X)
    analysis = analyse_channels(graph_module, inputs)
    sizes = {path: parameter.numel() for path, parameter in graph_module.named_parameters()}
    assert analysis.parameters == sum(sizes.values())
    assert analysis.prunable == sizes["2.weight"] + sizes["2.bias"] + sizes["3.weight"]
    assert analysis.groups[0].parameters == analysis.prunable


def test_json_names_every_group_and_reason():
    graph_module, inputs = captured(Attention("fused"), (2, 5, 10))
    analysis = analyse_channels(graph_module, inputs)
    found = json.loads(json.dumps(analysis.to_dict()))
    assert [group["name"] for group in found["groups"]] == [group.name for group in analysis.groups]
    assert [group["name"] for group in found["groups"] if group["attention"]] == ["qkv"]
    assert found["frozen"][-1] == {
        "node": "z",
        "path": "z.weight",
        "channels": 2,
        "reason": "it is an output of the network",
    }
    assert "qkv: 3 units, width of attention, made by qkv" in str(analysis)


def test_wrong_fold():
    graph_module, inputs = captured(nn.Sequential(conv(3, 4)), X)
    with pytest.raises(InputError) as caught:
        analyse_channels(graph_module, inputs, "head")
    assert str(caught.value) == "fold is 'head', but channels of attention are kept by 'width' or by 'heads'."
