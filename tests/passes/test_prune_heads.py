"""PruneHeads: pruned attention equals the masked original, whatever way it is written, and what stays says why."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer

import chainfx
from chainfx.bitops import count
from chainfx.errors import PassError
from chainfx.ir.graph.checks import verify
from chainfx.passes import Granularity, Kind, PassContext, Quantize
from chainfx.passes.base import TuneRequest
from chainfx.passes.prune_heads import PruneHeads
from chainfx.passes.prune_weights import PruneWeights
from chainfx.testing import check_pass
from tests.nets import graph_of, small_resnet
from tests.trainers import FakeTrainer

HEADS, WIDTH = 4, 6


class Fused(nn.Module):
    """Two residual attention blocks; queries, keys and values from one layer."""

    def __init__(self, heads=HEADS, dim=HEADS * WIDTH, depth=2):
        super().__init__()
        self.heads = heads
        self.embed, self.head = nn.Linear(5, dim), nn.Linear(dim, 3)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth))
        self.qkv = nn.ModuleList(nn.Linear(dim, 3 * dim) for _ in range(depth))
        self.proj = nn.ModuleList(nn.Linear(dim, dim) for _ in range(depth))

    def attend(self, x, qkv):
        n, length, dim = x.shape
        q, k, v = qkv(x).reshape(n, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((q @ k.transpose(-2, -1)) * (dim // self.heads) ** -0.5).softmax(-1)
        return (weights @ v).transpose(1, 2).reshape(n, length, dim)

    def forward(self, x):
        x = self.embed(x)
        for norm, qkv, proj in zip(self.norms, self.qkv, self.proj, strict=True):
            x = x + proj(self.attend(norm(x), qkv))
        return self.head(x.mean(1))


class Separate(nn.Module):
    """One attention block with a layer each for queries, keys and values, by torch's own attention function."""

    def __init__(self, heads=HEADS, dim=HEADS * WIDTH):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(5, dim, bias=bias) for bias in (True, False, True))
        self.proj, self.head = nn.Linear(dim, dim), nn.Linear(dim, 3)

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.proj(y).mean(1))


def vit():
    return VisionTransformer(32, 16, 2, HEADS, HEADS * WIDTH, 32, num_classes=5)


def swin():
    return SwinTransformer([4, 4], 12, [2, 1], [2, 4], [4, 4], num_classes=5)


TOKENS, IMAGES = (2, 7, 5), (2, 3, 32, 32)


def prepared(model, shape):
    """The model in float64 with weights that matter, and inputs."""
    torch.manual_seed(0)
    model = model.double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model, torch.randn(shape, dtype=torch.float64)


def applied(one, model, x, *, graph_module=None):
    graph_module = graph_of(model, x) if graph_module is None else copy.deepcopy(graph_module)
    result = one.apply(graph_module, PassContext(graph_module, (x,), calibration=[(x,)]))
    verify(result.graph_module, (x,))
    return result.graph_module, result


def kept_rows(pruned, original):
    """Which rows of the original a pruned weight still has, from the values alone (columns may be fewer)."""
    return [int((original == row).all(1).nonzero()[0, 0]) for row in pruned]


def mask_columns(weight, kept):
    gone = torch.ones(weight.shape[1], dtype=torch.bool)
    gone[kept] = False
    weight.data[:, gone] = 0


def assert_same(one, other):
    one, other = one.detach(), other.detach()
    assert float((one - other).abs().max()) < 1e-10 * float(other.abs().max())


@pytest.mark.parametrize("importance", ["l1", "l2"])
@pytest.mark.parametrize(("ratio", "heads"), [(0.25, 3), (0.5, 2), (0.9, 1)])
def test_fused_attention_without_heads_equals_the_masked_one(ratio, heads, importance):
    model, x = prepared(Fused(), TOKENS)
    graph_module, result = applied(PruneHeads(ratio, importance=importance), model, x)
    for layer, proj in zip(("qkv.0", "qkv.1"), model.proj, strict=True):
        rows = kept_rows(graph_module.get_parameter(f"{layer}.weight"), model.get_parameter(f"{layer}.weight"))
        values = [row - 2 * HEADS * WIDTH for row in rows[len(rows) * 2 // 3 :]]
        assert len(values) == heads * WIDTH
        assert sorted({value // WIDTH for value in values}) == sorted({row // WIDTH for row in rows[: len(rows) // 3]})
        mask_columns(proj.weight, values)
    assert result.tune == TuneRequest()
    assert_same(graph_module(x), model(x))


@pytest.mark.parametrize("importance", ["l1", "l2"])
def test_the_heads_with_the_smallest_weights_go(importance):
    model, x = prepared(Fused(depth=1), TOKENS)
    rows = model.qkv[0].weight.data.view(3, HEADS, WIDTH, -1)
    rows[:, 2] *= 0.1
    rows[:, 0] *= 0.5
    graph_module, _ = applied(PruneHeads(0.5, importance=importance), model, x)
    kept = rows[:, [1, 3]].reshape(-1, rows.shape[-1])
    assert torch.equal(graph_module.get_parameter("qkv.0.weight"), kept)


def test_taylor_sees_what_the_answer_depends_on():
    model, x = prepared(Fused(depth=1), TOKENS)
    columns = model.proj[0].weight.data.view(-1, HEADS, WIDTH)
    columns[:, [0, 3]] *= 1e-3
    rows = model.qkv[0].weight.data.view(3, HEADS, WIDTH, -1)
    rows[:, [0, 3]] *= 2
    graph_module, _ = applied(PruneHeads(0.5, importance="taylor"), model, x)
    assert torch.equal(graph_module.get_parameter("qkv.0.weight"), rows[:, [1, 2]].reshape(-1, rows.shape[-1]))
    graph_module, _ = applied(PruneHeads(0.5, importance="l2"), model, x)
    assert torch.equal(graph_module.get_parameter("qkv.0.weight"), rows[:, [0, 3]].reshape(-1, rows.shape[-1]))


class Normed(Separate):
    """Queries and keys are normalized head by head, as in ViT-22B and Qwen 3."""

    def __init__(self, norm):
        super().__init__()
        self.q_norm, self.k_norm = norm(WIDTH), norm(WIDTH)

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v).transpose(1, 2).flatten(2)
        return self.head(self.proj(y).mean(1))


class Spelled(nn.Module):
    """A root mean square normalization in single steps."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm, Spelled])
def test_queries_and_keys_that_are_normalized_by_head_lose_whole_heads(norm):
    model, x = prepared(Normed(norm), TOKENS)
    graph_module, _ = applied(PruneHeads(0.5), model, x)
    kept = {
        name: kept_rows(graph_module.get_parameter(f"{name}.weight"), model.get_parameter(f"{name}.weight"))
        for name in "qkv"
    }
    assert kept["q"] == kept["k"] == kept["v"] and len(kept["q"]) == HEADS // 2 * WIDTH
    assert torch.equal(graph_module.get_parameter("q_norm.weight"), model.q_norm.weight)
    mask_columns(model.proj.weight, kept["v"])
    assert_same(graph_module(x), model(x))


class Turned(nn.Module):
    """Attention of GPT-2: the weight of the one layer for queries, keys and values lies the other way round."""

    def __init__(self, dim=HEADS * WIDTH):
        super().__init__()
        self.dim, self.embed, self.proj = dim, nn.Linear(5, dim), nn.Linear(dim, 3)
        self.weight, self.bias = nn.Parameter(torch.empty(dim, 3 * dim)), nn.Parameter(torch.empty(3 * dim))

    def forward(self, x):
        x = self.embed(x)
        qkv = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], 3 * self.dim)
        q, k, v = (each.view(*each.shape[:-1], -1, WIDTH).transpose(1, 2) for each in qkv.split(self.dim, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        return self.proj(y.reshape(*y.shape[:-2], -1))


@pytest.mark.parametrize("width_ratio", [0.0, 0.5])
def test_attention_of_gpt_2_loses_whole_heads(width_ratio):
    model, x = prepared(Turned(), TOKENS)
    graph_module, _ = applied(PruneHeads(0.5, width_ratio=width_ratio), model, x)
    weight, width = graph_module.get_parameter("folded_weight"), WIDTH if width_ratio == 0 else WIDTH // 2
    assert weight.shape == (3 * HEADS // 2 * width, HEADS * WIDTH)
    assert graph_module.get_parameter("proj.weight").shape == (3, HEADS // 2 * width)
    if width_ratio == 0:
        rows = kept_rows(weight, model.weight.t())
        mask_columns(model.proj.weight, [row - 2 * model.dim for row in rows if row >= 2 * model.dim])
        assert_same(graph_module(x), model(x))


class MultiQuery(nn.Module):
    """Heads of queries that share one head of keys and values."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(5, size) for size in (HEADS * WIDTH, WIDTH, WIDTH))
        self.proj = nn.Linear(HEADS * WIDTH, 3)

    def forward(self, x):
        q = self.q(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        weights = (q @ self.k(x).unsqueeze(1).transpose(-1, -2)).softmax(-1)
        return self.proj((weights @ self.v(x).unsqueeze(1)).transpose(1, 2).flatten(2)).mean(1)


def test_shared_keys_and_values_stay_when_heads_of_queries_go():
    model, x = prepared(MultiQuery(), TOKENS)
    graph_module, result = applied(PruneHeads(0.5), model, x)
    kept = kept_rows(graph_module.get_parameter("q.weight"), model.q.weight)
    assert len(kept) == 2 * WIDTH and graph_module.get_parameter("k.weight").shape == (WIDTH, 5)
    assert {item.node for item in result.skipped} == {"k", "v"}
    mask_columns(model.proj.weight, kept)
    assert_same(graph_module(x), model(x))


@pytest.mark.parametrize(("ratio", "width"), [(0.0, 4), (0.5, 4)])
def test_the_width_of_every_head_shrinks_alike_and_the_scale_stays(ratio, width):
    model, x = prepared(Fused(depth=1), TOKENS)
    graph_module, _ = applied(PruneHeads(ratio, width_ratio=0.3), model, x)
    heads = HEADS if ratio == 0 else HEADS // 2
    weight = graph_module.get_parameter("qkv.0.weight")
    assert weight.shape == (3 * heads * width, HEADS * WIDTH)
    rows = kept_rows(weight, model.qkv[0].weight)
    places = torch.tensor([row % (HEADS * WIDTH) for row in rows]).view(3, heads, width)
    assert (places % WIDTH == (places % WIDTH)[:1, :1]).all()
    with torch.no_grad():
        full = torch.zeros_like(model.qkv[0].weight)
        full[rows] = model.qkv[0].weight[rows]
        bias = torch.zeros_like(model.qkv[0].bias)
        bias[rows] = model.qkv[0].bias[rows]
        model.qkv[0].weight.copy_(full)
        model.qkv[0].bias.copy_(bias)
    mask_columns(model.proj[0].weight, places[2].flatten())
    assert_same(graph_module(x), model(x))


@pytest.mark.parametrize("width_ratio", [0.0, 0.4])
def test_separate_layers_lose_the_same_heads(width_ratio):
    model, x = prepared(Separate(), TOKENS)
    graph_module, _ = applied(PruneHeads(0.5, width_ratio=width_ratio), model, x)
    rows = {
        name: kept_rows(graph_module.get_parameter(f"{name}.weight"), model.get_parameter(f"{name}.weight"))
        for name in "qkv"
    }
    assert rows["q"] == rows["k"]
    assert len({tuple(sorted({row // WIDTH for row in found})) for found in rows.values()}) == 1
    with torch.no_grad():
        for name in "qk":
            layer = model.get_submodule(name)
            gone = [row for row in range(HEADS * WIDTH) if row not in rows[name]]
            layer.weight[gone] = 0
            if layer.bias is not None:
                layer.bias[gone] = 0
    mask_columns(model.proj.weight, rows["v"])
    assert_same(graph_module(x), model(x))


def test_a_vision_transformer():
    model, x = prepared(vit(), IMAGES)
    graph_module, result = applied(PruneHeads(0.5), model, x)
    layers = [f"encoder_layers_encoder_layer_{index}_mlp_{layer}" for index in range(2) for layer in (0, 3)]
    assert {item.node for item in result.skipped} == {
        *("conv_proj", "heads_head", "class_token", "encoder.pos_embedding"),
        *layers,
    }
    assert {item.reason for item in result.skipped} == {"it holds no part of attention that can go"}
    for index in range(2):
        path = f"encoder.layers.encoder_layer_{index}.self_attention"
        attention = model.get_submodule(path)
        weight = graph_module.get_parameter(f"{path}.in_proj_weight")
        assert weight.shape == (3 * 2 * WIDTH, HEADS * WIDTH)
        rows = kept_rows(weight[-2 * WIDTH :], attention.in_proj_weight)
        mask_columns(attention.out_proj.weight, [row - 2 * HEADS * WIDTH for row in rows])
    assert_same(graph_module(x), model(x))


def test_a_shifted_window_transformer_with_its_tables():
    model, x = prepared(swin(), IMAGES)
    graph_module, _ = applied(PruneHeads(0.5), model, x)
    blocks = [path for path, module in model.named_modules() if hasattr(module, "relative_position_bias_table")]
    for path in blocks:
        attention = model.get_submodule(path)
        dim, heads = attention.qkv.in_features, attention.num_heads
        weight = graph_module.get_parameter(f"{path}.qkv.weight")
        assert weight.shape == (3 * dim // 2, dim)
        assert graph_module.get_parameter(f"{path}.relative_position_bias_table").shape[1] == heads // 2
        rows = kept_rows(weight[-(dim // 2) :], attention.qkv.weight)
        mask_columns(attention.proj.weight, [row - 2 * dim for row in rows])
    assert len(blocks) == 3
    assert_same(graph_module(x), model(x))


@pytest.mark.parametrize("options", [{"ratio": 0.5}, {"ratio": 0.0, "width_ratio": 0.5}])
def test_compensation_lets_the_heads_that_stay_give_what_the_others_gave(options):
    torch.manual_seed(0)
    model = Fused(depth=1).eval()
    x, unseen = torch.randn(512, *TOKENS[1:]), torch.randn(64, *TOKENS[1:])
    graph_module = graph_of(model, x)
    context = PassContext(graph_module, (x[:2],), calibration=[(x,)])
    lost = []
    for on in (False, True):
        pruned = PruneHeads(**options, compensate=on).apply(copy.deepcopy(graph_module), context).graph_module
        lost.append((pruned(unseen) - model(unseen)).square().mean().item())
    assert lost[1] < 0.1 * lost[0]
    assert pruned.get_parameter("proj.0.weight").shape[1] == HEADS * WIDTH // 2


def test_at_least_one_head_and_one_channel_stay():
    model, x = prepared(Fused(), TOKENS)
    graph_module, _ = applied(PruneHeads(0.99, width_ratio=0.99), model, x)
    assert graph_module.get_parameter("qkv.0.weight").shape == (3, HEADS * WIDTH)
    assert graph_module(x).shape == (2, 3)


def test_what_stays_says_why():
    model, x = prepared(Fused(), TOKENS)
    _, result = applied(PruneHeads(1e-12, skip=("qkv.1",)), model, x)
    assert not result.modified and result.tune is None
    assert [(item.node, item.reason) for item in result.skipped] == [
        ("qkv_0", "none of 4 goes at a ratio of 1e-12"),
        ("qkv_1", "a pattern of skip matches it"),
        ("embed", "it holds no part of attention that can go"),
        ("proj_0", "none of 4 goes at a ratio of 1e-12"),
        ("proj_1", "a pattern of skip matches it"),
        ("head", "it holds no part of attention that can go"),
    ]
    _, result = applied(PruneHeads(0.5), *prepared(Fused(heads=1, depth=1), TOKENS))
    assert not result.modified
    others = [item.node for item in result.skipped if item.reason == "it holds no part of attention that can go"]
    assert others == ["embed", "proj_0", "head"] and {item.node for item in result.skipped} == {"qkv_0", *others}
    _, result = applied(PruneHeads(0.0), *prepared(Fused(heads=1, depth=1), TOKENS))
    assert {item.node: item.reason for item in result.skipped} == dict.fromkeys(
        ("embed", "head", "qkv_0", "proj_0"), "ratio and width_ratio are 0"
    )
    graph_module, _ = applied(PruneHeads(0.5, width_ratio=0.5), *prepared(Fused(heads=1, depth=1), TOKENS))
    assert graph_module.get_parameter("qkv.0.weight").shape == (3 * HEADS * WIDTH // 2, HEADS * WIDTH)


def test_other_layers_keep_their_shapes():
    model, x = prepared(Fused(), TOKENS)
    graph_module, _ = applied(PruneHeads(0.5, width_ratio=0.5), model, x)
    changed = {
        name for name, value in graph_module.state_dict().items() if value.shape != model.state_dict()[name].shape
    }
    assert changed == {f"{layer}.{index}.weight" for layer in ("qkv", "proj") for index in (0, 1)} | {
        "qkv.0.bias",
        "qkv.1.bias",
    }
    assert list(graph_module.state_dict()) == list(graph_of(model, x).state_dict())


def test_macs_of_the_attention_fall_with_the_heads():
    model, x = prepared(Fused(depth=1), TOKENS)
    graph_module, _ = applied(PruneHeads(0.5), model, x)
    rows = [{row.node: row.macs for row in count(graph, (x,)).rows} for graph in (graph_of(model, x), graph_module)]
    for node, macs in rows[0].items():
        assert rows[1][node] == (macs if node in ("embed", "head") else macs // 2), node


def test_quantized_and_masked_attention():
    model, x = prepared(Fused(), TOKENS)
    masked, _ = applied(PruneWeights(0.5), model, x)
    graph_module, _ = applied(Quantize(4, 8), None, x, graph_module=masked)
    pruned, result = applied(PruneHeads(0.5), None, x, graph_module=graph_module)
    assert result.modified
    assert pruned.get_buffer("qkv.0.weight_mask").shape == pruned.get_parameter("qkv.0.weight").shape


def test_compiled_saved_and_loaded(tmp_path):
    x = torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    small = chainfx.compile(
        Fused(depth=1).eval(),
        [PruneHeads(0.5, width_ratio=0.3), Quantize(4, 8)],
        example_inputs=x,
        trainer=FakeTrainer(x),
    )
    small.save(tmp_path)
    assert torch.equal(chainfx.load(tmp_path)(x), small(x))


@pytest.mark.parametrize(
    ("one", "modified"), [(PruneHeads(0.5, width_ratio=0.5), True), (PruneHeads(0.0), False)], ids=str
)
def test_the_contract(one, modified):
    torch.manual_seed(0)
    assert check_pass(one, Fused().eval(), (torch.randn(TOKENS),)).modified == modified


def test_info():
    info = PruneHeads.info
    assert (info.name, info.kind, info.granularity) == ("prune-heads", Kind.STATIC, Granularity.NEURON)
    assert info.establishes == frozenset() and info.needs == {"calibration"}
    assert PruneHeads().needs == frozenset() and PruneHeads(importance="taylor").needs == {"calibration"}
    assert PruneHeads(compensate=True).needs == {"calibration"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, "ratio=1.0 is out of range; use a number from 0 up to but not including 1."),
        ({"width_ratio": -1}, "width_ratio=-1 is out of range; use a number from 0 up to but not including 1."),
        ({"importance": "bn"}, "importance='bn' is out of range; use one of l1, l2, taylor."),
        ({"skip": "qkv"}, "skip='qkv' is out of range; use a tuple of patterns."),
        ({"compensate": 1}, "compensate=1 is out of range; use true or false."),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(PassError) as caught:
        PruneHeads(**options)
    assert str(caught.value) == f"prune-heads: {message}"


def test_a_network_without_attention():
    with pytest.raises(PassError) as caught:
        applied(PruneHeads(0.5), small_resnet(), torch.randn(1, 1, 8, 8))
    assert str(caught.value) == (
        "prune-heads: the network has no attention (no product of two activations that layers make); remove the pass."
    )


def test_errors_of_a_criterion_are_in_the_name_of_this_pass():
    model, x = prepared(Fused(), TOKENS)
    graph_module = graph_of(model, x)
    with pytest.raises(PassError, match=r"^prune-heads: its options need calibration data and there is none; "):
        PruneHeads(0.5, importance="taylor").apply(graph_module, PassContext(graph_module, (x,)))


def test_a_pattern_without_match():
    with pytest.raises(PassError) as caught:
        applied(PruneHeads(0.5, skip=("proj.*",)), *prepared(Fused(), TOKENS))
    assert str(caught.value) == (
        "prune-heads: the pattern 'proj.*' in skip matches no layer of attention; layers are qkv.0, qkv.1."
    )


def test_weights_that_are_not_finite():
    model, x = prepared(Fused(depth=1), TOKENS)
    model.qkv[0].weight.data[0, 0] = float("nan")
    with pytest.raises(PassError) as caught:
        applied(PruneHeads(0.5), model, x)
    assert str(caught.value) == (
        "prune-heads: the weight 'qkv.0.weight' of group 'qkv_0' is not finite everywhere; "
        "train the network again before pruning."
    )
