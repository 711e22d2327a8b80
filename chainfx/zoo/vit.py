"""A Vision Transformer (Dosovitskiy et al. 2021) of any size; with patches of one row an image is a sequence."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ViT", "vit"]

_DEVIATION = 0.02  # of the position embedding, as in the paper's code


class _Attention(nn.Module):
    """Self-attention of several heads: (N, tokens, width) -> (N, tokens, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Each token becomes a mixture of all."""
        query, key, value = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        """(N, tokens, width) -> (N, heads, tokens, width / heads)."""
        heads: Tensor = x.unflatten(2, (self.heads, -1))
        return heads.transpose(1, 2)


class _Block(nn.Module):
    """Attention and a perceptron of twice the width, each behind a LayerNorm and added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, width) -> (N, tokens, width)."""
        x = x + self.attention(self.norm1(x))
        mixed: Tensor = self.mlp(self.norm2(x))
        return x + mixed


class ViT(nn.Module):
    """Patches as tokens with a learnt position each, blocks of attention, and the mean of all tokens classified."""

    def __init__(
        self, size: tuple[int, int], patch: tuple[int, int], width: int, depth: int, heads: int, ends: tuple[int, int]
    ) -> None:
        super().__init__()
        in_channels, num_classes = ends
        tokens = (size[0] // patch[0]) * (size[1] // patch[1])
        self.embed = nn.Conv2d(in_channels, width, patch, patch)
        self.position = nn.Parameter(torch.randn(1, tokens, width) * _DEVIATION)
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, height, width) of the images -> (N, num_classes)."""
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


def vit(
    size: tuple[int, int] = (32, 32),
    patch: tuple[int, int] = (4, 4),
    width: int = 64,
    depth: int = 6,
    heads: int = 4,
    num_classes: int = 10,
    in_channels: int = 3,
) -> ViT:
    """A Vision Transformer for images of ``size`` (height, width), which ``patch`` divides.

    ``width``: features of a token, which ``heads`` divides; ``depth``: blocks. No class token: all are averaged.

    >>> sum(p.numel() for p in vit((8, 8), (2, 2), width=16, depth=2, heads=2, in_channels=1).parameters())
    4986
    """
    return ViT((size[0], size[1]), (patch[0], patch[1]), width, depth, heads, (in_channels, num_classes))
