"""One tiny module for each construct that channels travel through: what is pruned, what stays, and that it works."""

import copy
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chainfx.ir.channels.analyse import analyse_channels
from tests.budget import mostly_slow
from tests.ir.channels import prune_checks as checks
from tests.ir.channels.masked import Net, X, captured, conv, param, random_keep, shuffle

TOKENS = (2, 6, 10)


class Case(NamedTuple):
    """A module, the shapes of its inputs, the sizes of its groups in graph order, and why other weights stay."""

    module: nn.Module
    sizes: tuple[int, ...]
    frozen: tuple[str, ...] = ()
    shapes: tuple = (X,)
    fold: str = "width"


class Function(nn.Module):
    """``forward(m, *inputs)`` with layers by name."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.body = forward
        for name, layer in layers.items():
            if isinstance(layer, torch.Tensor) and not isinstance(layer, nn.Parameter):
                self.register_buffer(name, layer)
            else:
                setattr(self, name, layer)

    def forward(self, *inputs):
        return self.body(self, *inputs)


class TwoInputs(Function):
    def forward(self, x, y):
        return self.body(self, x, y)


class OneInput(Function):
    def forward(self, x):
        return self.body(self, x)


def net(forward, **layers):
    return Net(lambda m, y, x: forward(m, y), **layers)


def tokens(forward, width=8, **layers):
    """Tokens (N, L, 10) -> linear ``a`` -> ``forward`` -> linear ``z`` -> (N, L, 2)."""
    return Net(lambda m, y, x: forward(m, y), a=nn.Linear(10, width), **{"z": nn.Linear(width, 2)} | layers)


def linears(*names, width=8, out=8):
    return {name: nn.Linear(width, out) for name in names}


def heads_of(x, heads=4):
    return x.view(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)


def joined(x):
    return x.transpose(1, 2).flatten(2)


def separate_attention(m, x):
    q, k, v = (heads_of(layer(x)) for layer in (m.q, m.k, m.v))
    weights = torch.softmax(q @ k.transpose(-2, -1) / 2, -1)
    return joined(weights @ v)


def fused_attention(m, x):
    n, length, _ = x.shape
    qkv = m.qkv(x).reshape(n, length, 3, 4, 4).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    return m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, 16))


def biased_attention(m, x):
    """Swin's: a table of relative positions, one column a head."""
    n, length, _ = x.shape
    qkv = m.qkv(x).reshape(n, length, 3, 4, 4).permute(2, 0, 3, 1, 4)
    scores = (qkv[0] * 4**-0.5) @ qkv[1].transpose(-2, -1)
    bias = m.table[m.index.view(-1)].view(length, length, -1).permute(2, 0, 1)
    weights = (scores + bias.unsqueeze(0)).softmax(-1)
    return m.out((weights @ qkv[2]).transpose(1, 2).reshape(n, length, 16))


def cosine_attention(m, x):
    """Swin v2's: normalized queries and keys, and a learnt scale for each head."""
    q, k, v = (heads_of(layer(x)) for layer in (m.q, m.k, m.v))
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
    return joined((scores * m.scale.exp()).softmax(-1) @ v)


def einsum_attention(m, x):
    """MaxViT's."""
    q, k, v = (heads_of(each) for each in m.qkv(x).chunk(3, -1))
    weights = torch.softmax(torch.einsum("bhid,bhjd->bhij", q, k) * 0.5, -1)
    return m.out(joined(torch.einsum("bhij,bhjd->bhid", weights, v)))


def window_partition(m, y):
    n, c, h, w = y.shape
    x = y.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)
    x = m.b(x)
    return x.view(n, h // 2, w // 2, 2, 2, -1).permute(0, 5, 1, 3, 2, 4).reshape(n, -1, h, w)


def shifted_windows(m, y):
    return torch.roll(window_partition(m, torch.roll(y, (-1, -1), (2, 3))), (1, 1), (2, 3))


def patch_merging(m, y):
    x = y.permute(0, 2, 3, 1)
    parts = (x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2])
    return m.b(m.n(torch.cat(parts, -1))).permute(0, 3, 1, 2)


def class_token(m, x):
    x = torch.cat([m.token.expand(x.shape[0], -1, -1), x], 1) + m.position
    return m.b(x)[:, 0]


def squeeze_and_excite(m, y):
    return y * torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(y, 1)))))


def split_apart(m, y):
    left, right = torch.split(y, [3, 5], 1)
    return torch.cat([m.b(left), right], 1)


def chunk_mixed(m, y):
    left, right = y.chunk(2, 1)
    return torch.cat([left, m.b(right)], 1)


def unbind_parts(m, y):
    left, right = y.unflatten(1, (2, 4)).unbind(1)
    return left * right


def two_outputs(m, x):
    y = F.relu(m.a(x))
    return m.e(y.mean((2, 3))), m.z(y)


def embedded(m, x):
    return m.z(F.relu(m.table(m.indices) + m.a(x)))


def last_tokens(m, x):
    return m.b(x)[:, -1]


OUT = "it is an output of the network"
ATTENTION = {"q": nn.Linear(8, 16), "k": nn.Linear(8, 16), "v": nn.Linear(8, 16), "z": nn.Linear(16, 2)}
FUSED = {"qkv": nn.Linear(8, 48), "out": nn.Linear(16, 8)}
TABLE = {"table": param(36, 4), "index": torch.arange(36).view(6, 6)}

CASES = {
    # element-wise
    "residual add": Case(net(lambda m, y: y + m.b(F.relu(y)), b=conv(8, 8)), (8,), (OUT,)),
    "mul": Case(net(lambda m, y: y * m.b(y), b=conv(8, 8)), (8,), (OUT,)),
    "broadcasting": Case(net(lambda m, y: y / (1 + m.b(y.mean((2, 3), True)).exp()), b=conv(8, 8, 1)), (8,), (OUT,)),
    "one-channel gate": Case(net(lambda m, y: y * torch.sigmoid(m.b(y)), b=conv(8, 1)), (8,), (OUT,)),
    "squeeze and excite": Case(net(squeeze_and_excite, down=conv(8, 4, 1), up=conv(4, 8, 1)), (8, 4), (OUT,)),
    "layer scale": Case(net(lambda m, y: y + m.s * m.b(y), b=conv(8, 8), s=param(8, 1, 1)), (8,), (OUT,)),
    "raw parameter": Case(net(lambda m, y: torch.maximum(y, m.s), s=param(1, 8, 4, 4)), (8,), (OUT,)),
    # concatenation and parts
    "cat": Case(net(lambda m, y: torch.cat([y, m.b(y)], 1), b=conv(8, 8), z=conv(16, 2)), (8, 8), (OUT,)),
    "cat with itself": Case(net(lambda m, y: torch.cat([y, F.relu(y), y], 1), z=conv(24, 2)), (8,), (OUT,)),
    "dense block": Case(
        net(
            lambda m, y: torch.cat([y, c := m.b(y), m.c(torch.cat([y, c], 1))], 1),
            b=conv(8, 4),
            c=conv(12, 4),
            z=conv(16, 2),
        ),
        (8, 4, 4),
        (OUT,),
    ),
    "split": Case(net(split_apart, b=conv(3, 3)), (3, 5, 3), (OUT,)),
    "chunk": Case(net(chunk_mixed, b=conv(4, 6), z=conv(10, 2)), (4, 4, 6), (OUT,)),
    "slice": Case(
        net(lambda m, y: torch.cat([y[:, 5:], m.b(y[:, :5])], 1), b=conv(5, 4), z=conv(7, 2)), (5, 3, 4), (OUT,)
    ),
    "unbind": Case(net(unbind_parts, z=conv(4, 2)), (4,), (OUT,)),
    "index": Case(tokens(last_tokens, b=nn.Linear(8, 6), z=nn.Linear(6, 2)), (8, 6), (OUT,), (TOKENS,)),
    # views
    "flatten to linear": Case(net(lambda m, y: y.flatten(1), z=nn.Linear(128, 2)), (8,), (OUT,)),
    "literal view": Case(net(lambda m, y: y.view(-1, 8 * 16), z=nn.Linear(128, 2)), (8,), (OUT,)),
    "computed view": Case(
        net(lambda m, y: y.reshape(y.size(0), y.size(1), -1).mean(2), z=nn.Linear(8, 2)), (8,), (OUT,)
    ),
    "size in arithmetic": Case(net(lambda m, y: y / y.size(1)), (8,), (OUT,)),
    "permute": Case(net(lambda m, y: y.permute(0, 2, 3, 1), z=nn.Linear(8, 2)), (8,), (OUT,)),
    "transpose": Case(net(lambda m, y: y.flatten(2).transpose(1, 2), z=nn.Linear(8, 2)), (8,), (OUT,)),
    "channel shuffle": Case(net(lambda m, y: shuffle(y, 2), a=conv(3, 12), z=conv(12, 2)), (6,), (OUT,)),
    "pixel shuffle": Case(net(lambda m, y: F.pixel_shuffle(y, 2), a=conv(3, 16), z=conv(4, 2)), (4,), (OUT,)),
    "pixel unshuffle": Case(net(lambda m, y: F.pixel_unshuffle(y, 2), z=conv(32, 2)), (8,), (OUT,)),
    "window partition": Case(net(window_partition, b=nn.Linear(8, 6), z=conv(6, 2)), (8, 6), (OUT,)),
    "shifted windows": Case(net(shifted_windows, b=nn.Linear(8, 6), z=conv(6, 2)), (8, 6), (OUT,)),
    "patch merging": Case(net(patch_merging, n=nn.LayerNorm(32), b=nn.Linear(32, 6), z=conv(6, 2)), (8, 6), (OUT,)),
    # layers
    "depthwise": Case(net(lambda m, y: m.b(y), b=conv(8, 8, groups=8)), (8,), (OUT,)),
    "depthwise multiplier": Case(net(lambda m, y: m.b(y), b=conv(8, 16, groups=8), z=conv(16, 2)), (8,), (OUT,)),
    "grouped": Case(net(lambda m, y: m.b(y), b=conv(8, 12, groups=2), z=conv(12, 2)), (4, 6), (OUT,)),
    "transposed": Case(net(lambda m, y: m.b(y), b=nn.ConvTranspose2d(8, 6, 2, 2), z=conv(6, 2)), (8, 6), (OUT,)),
    "grouped transposed": Case(
        net(lambda m, y: m.b(y), b=nn.ConvTranspose2d(8, 6, 2, 2, groups=2), z=conv(6, 2)), (4, 3), (OUT,)
    ),
    "shared module": Case(net(lambda m, y: m.b(F.relu(m.b(y))), b=conv(8, 8)), (8,), (OUT,)),
    "embedding": Case(
        OneInput(embedded, a=nn.Linear(10, 8), table=nn.Embedding(6, 8), indices=torch.arange(6), z=nn.Linear(8, 2)),
        (8,),
        (OUT,),
        (TOKENS,),
    ),
    "1d": Case(
        Net(lambda m, y, x: m.b(y).mean(2), a=nn.Conv1d(6, 8, 3), b=nn.Conv1d(8, 6, 1), z=nn.Linear(6, 2)),
        (8, 6),
        (OUT,),
        (TOKENS,),
    ),
    # normalizations
    "batch norm": Case(net(lambda m, y: F.relu(m.n(y)), n=nn.BatchNorm2d(8)), (8,), (OUT,)),
    "layer norm": Case(tokens(lambda m, x: m.n(x), n=nn.LayerNorm(8)), (8,), (OUT,), (TOKENS,)),
    "plain layer norm": Case(tokens(lambda m, x: F.layer_norm(x, (8,))), (8,), (OUT,), (TOKENS,)),
    "RMS norm": Case(tokens(lambda m, x: m.n(x), n=nn.RMSNorm(8)), (8,), (OUT,), (TOKENS,)),
    "group norm": Case(net(lambda m, y: m.n(y), n=nn.GroupNorm(4, 8)), (4,), (OUT,)),
    "group norm of one group": Case(net(lambda m, y: m.n(y), n=nn.GroupNorm(1, 8)), (8,), (OUT,)),
    "instance norm": Case(net(lambda m, y: m.n(y), n=nn.InstanceNorm2d(8, affine=True)), (8,), (OUT,)),
    "L2 normalization": Case(net(lambda m, y: F.normalize(y, dim=1)), (8,), (OUT,)),
    # attention
    "separate attention": Case(tokens(separate_attention, **ATTENTION), (8, 4, 4), (OUT,), (TOKENS,)),
    "separate attention, heads": Case(tokens(separate_attention, **ATTENTION), (8, 4), (OUT,), (TOKENS,), "heads"),
    "fused attention": Case(tokens(fused_attention, **FUSED), (8, 4, 8), (OUT,), (TOKENS,)),
    "fused attention, heads": Case(tokens(fused_attention, **FUSED), (8, 4, 8), (OUT,), (TOKENS,), "heads"),
    "relative positions": Case(tokens(biased_attention, **FUSED, **TABLE), (8, 4, 8), (OUT,), (TOKENS,)),
    "relative positions, heads": Case(
        tokens(biased_attention, **FUSED, **TABLE), (8, 4, 8), (OUT,), (TOKENS,), "heads"
    ),
    "cosine attention": Case(tokens(cosine_attention, scale=param(4, 1, 1), **ATTENTION), (8, 4, 4), (OUT,), (TOKENS,)),
    "cosine attention, heads": Case(
        tokens(cosine_attention, scale=param(4, 1, 1), **ATTENTION), (8, 4), (OUT,), (TOKENS,), "heads"
    ),
    "einsum attention": Case(tokens(einsum_attention, **FUSED), (8, 4, 4, 8), (OUT,), (TOKENS,)),
    "nn.MultiheadAttention": Case(
        tokens(lambda m, x: m.b(x, x, x)[0], b=nn.MultiheadAttention(8, 2, batch_first=True)),
        (8, 4, 8),
        (OUT,),
        (TOKENS,),
    ),
    "class token": Case(
        tokens(class_token, token=param(1, 1, 8), position=param(1, 7, 8), b=nn.Linear(8, 6), z=nn.Linear(6, 2)),
        (8, 6),
        (OUT,),
        (TOKENS,),
    ),
    # padding, inputs, outputs
    "zero channels beside": Case(net(lambda m, y: F.pad(y, (0, 0, 0, 0, 2, 2)), z=conv(12, 2)), (8,), (OUT,)),
    "spatial padding": Case(
        net(lambda m, y: F.pad(F.pad(y, (1, 1, 1, 1), value=0.5), (1, 1, 1, 1), "circular")), (8,), (OUT,)
    ),
    "two inputs": Case(
        TwoInputs(lambda m, x, y: m.z(m.a(x) + m.b(y)), a=conv(3, 8), b=conv(5, 8), z=conv(8, 2)),
        (8,),
        (OUT,),
        (X, (2, 5, 4, 4)),
    ),
    "two outputs": Case(OneInput(two_outputs, a=conv(3, 8), e=nn.Linear(8, 4), z=conv(8, 2)), (8,), (OUT, OUT)),
    # what must stay
    "softmax": Case(net(lambda m, y: y.softmax(1)), (), ("softmax is taken over its channels", OUT)),
    "mean over channels": Case(
        net(lambda m, y: y.mean(1, True), z=conv(1, 2)), (), ("mean is taken over its channels", OUT)
    ),
    "channels padded from themselves": Case(
        Net(lambda m, y, x: F.pad(y.flatten(2).transpose(1, 2), (1, 1), "circular"), z=nn.Linear(10, 2)),
        (),
        ("it is padded from its own channels", OUT),
    ),
    "input added": Case(
        Net(lambda m, y, x: y + x, a=conv(3, 3), z=conv(3, 2)), (), ("it meets a tensor whose size is fixed", OUT)
    ),
    "rolled channels": Case(net(lambda m, y: y.roll(1, 1)), (), ("its channels are rolled", OUT)),
    "outer product": Case(
        net(lambda m, y: (y.unsqueeze(1) * m.b(y).unsqueeze(2)).flatten(1, 2), b=conv(8, 8), z=conv(64, 2)),
        (8,),
        ("it is broadcast over other channels", OUT),
    ),
    "new tensor of its shape": Case(
        net(lambda m, y: y + y.new_zeros(y.shape)), (), ("a number of channels is used in its arithmetic", OUT)
    ),
    "computed weight": Case(
        net(lambda m, y: F.conv2d(y, m.w.expand(8, 8, 1, 1)), w=param(8, 1, 1, 1)), (), ("its weight is computed", OUT)
    ),
    "opaque module": Case(
        tokens(lambda m, x: m.b(x, x), b=nn.Bilinear(8, 8, 8)),
        (),
        ("the inside of module Bilinear is not visible", OUT),
        (TOKENS,),
    ),
    "lone unit": Case(
        net(lambda m, y: y + y.flip(1), a=conv(3, 2), z=conv(2, 2)), (), ("all its channels are one unit", OUT)
    ),
}


def analysed(case):
    graph_module, inputs = captured(copy.deepcopy(case.module), *case.shapes)
    return graph_module, inputs, analyse_channels(graph_module, inputs, fold=case.fold)


@pytest.mark.parametrize("name", CASES)
def test_construct(name):
    case = CASES[name]
    graph_module, inputs, analysis = analysed(case)
    assert tuple(group.size for group in analysis.groups) == case.sizes, str(analysis)
    reasons = tuple(each.reason.partition(" (node ")[0] for each in analysis.frozen)
    assert reasons == case.frozen, str(analysis)
    reached = checks.trainable(graph_module, inputs)
    for ratio in (0.3, 0.5):
        pruned, keep = copy.deepcopy(graph_module), random_keep(analysis, ratio)
        checks.check_pruned(pruned, analysis, keep, inputs)
        fewer = sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in graph_module.parameters())
        assert fewer == bool(case.sizes)
    checks.check_recaptures(pruned, analysis, keep, inputs)
    checks.check_trains(pruned, inputs, reached)


QUICK = ("dense block", "fused attention", "opaque module")


@pytest.mark.parametrize("name", mostly_slow(CASES, QUICK))
def test_a_pruned_construct_is_exported_and_compiled(name):
    graph_module, inputs, analysis = analysed(CASES[name])
    checks.prune(graph_module, analysis, random_keep(analysis, 0.5))
    checks.check_exports(graph_module, inputs)
    checks.check_compiles(graph_module, inputs, backend="eager")
