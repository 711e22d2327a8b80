"""Blocks that take tokens (N, L, C) or a vector (N, C)."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.blocks import Block, activation, block, param


def heads_of(x, heads):
    return x.view(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)


def weighed(q, k, option):
    """Attention weights as four families of networks compute them."""
    if option % 4 == 0:
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    if option % 4 == 1:
        return torch.softmax(torch.einsum("bhid,bhjd->bhij", q, k), -1)
    q, k = (F.normalize(each, dim=-1) if option % 4 == 2 else each * 0.5 for each in (q, k))
    return torch.matmul(q, k.transpose(2, 3)).softmax(-1)


@block(2)
def attention(shape, width, option):
    heads = 1 + option % 3

    def forward(m, x):
        q, k, v = (heads_of(layer(m.n(x)), heads) for layer in (m.q, m.k, m.v))
        mixture = weighed(q, k, option) @ v if option % 5 else F.scaled_dot_product_attention(q, k, v)
        return x + m.a(mixture.transpose(1, 2).flatten(2))

    inner = heads * 4
    layers = {name: nn.Linear(shape[1], inner) for name in "qkv"}
    return Block(forward, shape, n=nn.LayerNorm(shape[1]), a=nn.Linear(inner, shape[1]), **layers)


@block(2)
def fused_attention(shape, width, option):
    heads, size = 1 + option % 3, 2 + option % 4

    def forward(m, x):
        n, length, _ = x.shape
        qkv = m.b(x).reshape(n, length, 3, heads, size).permute(2, 0, 3, 1, 4)
        q, k, v = qkv if option % 2 else qkv.unbind(0)
        scores = q @ k.transpose(-2, -1) * size**-0.5 + m.t.permute(2, 0, 1).unsqueeze(0)
        return m.a((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, length, heads * size))

    layers = {"b": nn.Linear(shape[1], 3 * heads * size), "a": nn.Linear(heads * size, width)}
    return Block(forward, (shape[0], width), t=param(shape[0], shape[0], heads), **layers)


@block(2, divisible=2)
def multi_head(shape, width, option):
    layer = nn.MultiheadAttention(shape[1], 2, batch_first=True)
    return Block(lambda m, x: x + m.a(x, x, x, need_weights=option % 2 == 0)[0], shape, a=layer)


@block(2)
def perceptron(shape, width, option):
    layers = nn.Sequential(nn.Linear(shape[1], width), activation(option), nn.Linear(width, shape[1]))
    normalization = (nn.LayerNorm(shape[1]), nn.RMSNorm(shape[1]), nn.Identity())[option % 3]
    return Block(lambda m, x: x + m.a(m.n(x)), shape, a=layers, n=normalization)


@block(2)
def gated_perceptron(shape, width, option):
    layers = {"a": nn.Linear(shape[1], 2 * width), "b": nn.Linear(width, shape[1])}
    return Block(lambda m, x: m.b(F.glu(m.a(x), -1)), shape, **layers)


@block(2)
def with_class_token(shape, width, option):
    if shape[0] > 20:
        return perceptron(shape, width, option)

    def forward(m, x):
        return torch.cat([m.t.expand(x.shape[0], -1, -1), x], 1) + m.p

    return Block(forward, (shape[0] + 1, shape[1]), t=param(1, 1, shape[1]), p=param(1, shape[0] + 1, shape[1]))


@block(2)
def mixed_tokens(shape, width, option):
    """A layer along the tokens, as in MLP-Mixer."""
    layer = nn.Linear(shape[0], shape[0])
    return Block(lambda m, x: x + m.a(x.transpose(1, 2)).transpose(1, 2), shape, a=layer)


@block(2)
def one_token(shape, width, option):
    return Block(lambda m, x: x[:, 0] if option % 2 else x.mean(1), shape[1:])


@block(2)
def to_image(shape, width, option):
    if shape[0] != 16:
        return one_token(shape, width, option)
    return Block(lambda m, x: x.transpose(1, 2).reshape(x.shape[0], -1, 4, 4), (shape[1], 4, 4))


@block(1)
def hidden(shape, width, option):
    normalization = (nn.BatchNorm1d(width), nn.LayerNorm(width), nn.Identity())[option % 3]
    return Block(lambda m, x: F.relu(m.n(m.a(x))), (width,), a=nn.Linear(shape[0], width), n=normalization)


@block(1, divisible=2)
def bilinear(shape, width, option):
    def forward(m, x):
        left, right = m.a(x).chunk(2, 1)
        return left * right + x

    return Block(forward, shape, a=nn.Linear(shape[0], 2 * shape[0]))
