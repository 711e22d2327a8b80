"""Blocks that take an image (N, C, H, W)."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.blocks import Block, activation, block, conv, param


def norm(width, option):
    norms = (
        nn.BatchNorm2d(width),
        nn.GroupNorm(2, width),
        nn.GroupNorm(1, width),
        nn.InstanceNorm2d(width, affine=True),
    )
    return (*norms, nn.Identity(), nn.GroupNorm(width // 2, width))[option % 6]


@block(3)
def plain(shape, width, option):
    layers = nn.Sequential(conv(shape[0], width, bias=option % 2 == 0), norm(width, option), activation(option))
    return Block(lambda m, x: m.a(x), (width, *shape[1:]), a=layers)


@block(3, largest=24)
def depthwise(shape, width, option):
    out = shape[0] * (1 + option % 2)
    return Block(lambda m, x: F.relu(m.a(x)), (out, *shape[1:]), a=conv(shape[0], out, groups=shape[0]))


@block(3, divisible=2)
def grouped(shape, width, option):
    return Block(lambda m, x: m.a(x), (width, *shape[1:]), a=conv(shape[0], width, groups=2))


@block(3, divisible=2)
def transposed(shape, width, option):
    layer = nn.ConvTranspose2d(shape[0], width, 3, padding=1, groups=1 + option % 2)
    return Block(lambda m, x: m.a(x), (width, *shape[1:]), a=layer)


@block(3)
def transposed_depthwise(shape, width, option):
    layer = nn.ConvTranspose2d(shape[0], shape[0], 3, padding=1, groups=shape[0])
    return Block(lambda m, x: m.a(x), shape, a=layer)


@block(3, even=True)
def pooled_and_resized(shape, width, option):
    pool = (F.avg_pool2d, F.max_pool2d)[option % 2]
    return Block(lambda m, x: x - F.interpolate(pool(x, 2), scale_factor=2), shape)


@block(3)
def residual(shape, width, option):
    layers = nn.Sequential(conv(shape[0], width), norm(width, option), activation(option), conv(width, shape[0]))
    return Block(lambda m, x: x + m.a(x), shape, a=layers)


@block(3)
def projected(shape, width, option):
    layers = {"a": conv(shape[0], width, 1), "b": conv(shape[0], width), "n": norm(width, option)}
    return Block(lambda m, x: m.a(x) + m.n(m.b(x)), (width, *shape[1:]), **layers)


@block(3, largest=24)
def dense(shape, width, option):
    def forward(m, x):
        return torch.cat([x, m.a(x)] if option % 2 else [m.a(x), x], 1)

    return Block(forward, (shape[0] + width, *shape[1:]), a=conv(shape[0], width))


@block(3, largest=16)
def beside_itself(shape, width, option):
    return Block(lambda m, x: torch.cat([x, F.relu(x)], 1), (2 * shape[0], *shape[1:]))


@block(3)
def split_apart(shape, width, option):
    first = 1 + option % (shape[0] - 1)

    def forward(m, x):
        left, right = torch.split(x, [first, shape[0] - first], 1)
        return torch.cat([m.a(left), right], 1)

    return Block(forward, (width + shape[0] - first, *shape[1:]), a=conv(first, width))


@block(3, divisible=2)
def halves(shape, width, option):
    def forward(m, x):
        left, right = x.chunk(2, 1)
        return left * torch.sigmoid(right) if option % 2 else torch.cat([right, F.relu(m.a(left))], 1)

    half = shape[0] // 2
    return Block(forward, (half if option % 2 else shape[0], *shape[1:]), a=conv(half, half))


@block(3)
def sliced(shape, width, option):
    cut = 1 + option % (shape[0] - 1)
    return Block(lambda m, x: torch.cat([x[:, cut:], m.a(x[:, :cut])], 1), shape, a=conv(cut, cut))


@block(3, divisible=2)
def shuffled(shape, width, option):
    def forward(m, x):
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)

    return Block(forward, shape)


@block(3)
def gated(shape, width, option):
    def forward(m, x):
        return x * torch.sigmoid(m.b(F.relu(m.a(F.adaptive_avg_pool2d(x, 1)))))

    return Block(forward, shape, a=conv(shape[0], width, 1), b=conv(width, shape[0], 1))


@block(3)
def gated_in_space(shape, width, option):
    return Block(lambda m, x: x * torch.sigmoid(m.a(x)), shape, a=conv(shape[0], 1))


@block(3)
def scaled(shape, width, option):
    layers = {"a": conv(shape[0], shape[0]), "s": param(shape[0], 1, 1), "p": param(*shape)}
    return Block(lambda m, x: x + m.s * (m.a(x) + m.p), shape, **layers)


@block(3, divisible=4)
def pixel_shuffled(shape, width, option):
    layer = conv(shape[0] // 4, width)
    return Block(lambda m, x: F.avg_pool2d(m.a(F.pixel_shuffle(x, 2)), 2), (width, *shape[1:]), a=layer)


@block(3, even=True, largest=12)
def pixel_unshuffled(shape, width, option):
    def forward(m, x):
        return F.interpolate(m.a(F.pixel_unshuffle(x, 2)), scale_factor=2)

    return Block(forward, (width, *shape[1:]), a=conv(4 * shape[0], width))


@block(3)
def normalized(shape, width, option):
    """ConvNeXt's: LayerNorm and linear layers with channels last."""
    layer = (nn.LayerNorm, nn.RMSNorm)[option % 2](shape[0])

    def forward(m, x):
        return x + m.a(m.n(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)

    return Block(forward, shape, n=layer, a=nn.Linear(shape[0], shape[0]))


@block(3)
def twice(shape, width, option):
    return Block(lambda m, x: m.a(F.relu(m.a(x))), shape, a=conv(shape[0], shape[0]))


@block(3, largest=24)
def padded(shape, width, option):
    def forward(m, x):
        return F.pad(x, (0, 0, 0, 0, 2, option % 3)) + m.a(x)

    return Block(forward, (shape[0] + 2 + option % 3, *shape[1:]), a=conv(shape[0], shape[0] + 2 + option % 3))


@block(3)
def moved(shape, width, option):
    def forward(m, x):
        y = torch.roll(x, (1, 1), (2, 3)).flip(2)
        return torch.stack([x, y], 1).sum(1) if option % 2 else torch.maximum(y, x)

    return Block(forward, shape)


@block(3, even=True)
def windows(shape, width, option):
    def forward(m, x):
        n, c, h, w = x.shape
        y = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)
        y = m.a(y).view(n, h // 2, w // 2, 2, 2, -1)
        return y.permute(0, 5, 1, 3, 2, 4).reshape(n, -1, h, w)

    return Block(forward, (width, *shape[1:]), a=nn.Linear(shape[0], width))


@block(3, even=True, largest=12)
def merged(shape, width, option):
    """Swin's patch merging."""

    def forward(m, x):
        x = x.permute(0, 2, 3, 1)
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return F.interpolate(m.a(m.n(torch.cat(parts, -1))).permute(0, 3, 1, 2), scale_factor=2)

    return Block(forward, (width, *shape[1:]), n=nn.LayerNorm(4 * shape[0]), a=nn.Linear(4 * shape[0], width))


@block(3)
def reordered(shape, width, option):
    order = torch.arange(shape[0] - 1, -1, -1)

    def forward(m, x):
        return m.a(x[:, m.order] if option % 2 else x.index_select(1, m.order))

    layer = Block(forward, (width, *shape[1:]), a=conv(shape[0], width))
    layer.register_buffer("order", order)
    return layer


@block(3, divisible=2)
def unfolded(shape, width, option):
    """A view into two halves, which are taken apart, as literal and as computed sizes."""
    half = shape[0] // 2

    def forward(m, x):
        y = x.unflatten(1, (2, half)) if option % 2 else x.reshape(x.shape[0], 2, x.shape[1] // 2, *x.shape[2:])
        left, right = y.unbind(1)
        return m.a(left) - right if option % 3 else torch.cat([right, m.a(left)], 1)

    return Block(forward, (half if option % 3 else shape[0], *shape[1:]), a=conv(half, half))


@block(3)
def pairwise(shape, width, option):
    """Products of two activations: second-order statistics over space, or over channels."""

    def forward(m, x):
        y, z = m.a(x).flatten(2), x.flatten(2)
        if option % 3 == 0:
            return (torch.bmm(y, z.transpose(1, 2)) @ z / 16).unflatten(2, x.shape[2:])
        if option % 3 == 1:
            weights = torch.einsum("ncp,ncq->npq", y, F.relu(y)) / 16
            return torch.einsum("npq,nkq->nkp", weights, z).unflatten(2, x.shape[2:])
        return torch.einsum("nchw,ndhw->ncd", m.a(x), x)[..., None].mean(2, True).expand(-1, -1, 4, 4)

    made = shape[0] if option % 3 == 1 else width
    return Block(forward, (made, *shape[1:]), a=conv(shape[0], width))


@block(3)
def mixed(shape, width, option):
    """Channels that must stay."""

    def forward(m, x):
        return (x.softmax(1), x - x.mean(1, True), x.flip(1) + x, x.roll(1, 1))[option % 4]

    return Block(forward, shape)


@block(3)
def to_tokens(shape, width, option):
    return Block(lambda m, x: x.flatten(2).transpose(1, 2), (shape[1] * shape[2], shape[0]))


@block(3)
def to_vector(shape, width, option):
    if option % 2:
        return Block(lambda m, x: x.mean((2, 3)), shape[:1])
    size = shape[0] * shape[1] * shape[2]
    return Block(lambda m, x: F.relu(m.a(x.flatten(1))), (width,), a=nn.Linear(size, width))
