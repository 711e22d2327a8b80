"""Random small networks out of everything that channels travel through, as a hypothesis strategy.

A network is a chain of blocks (and blocks of blocks) that each take one tensor and give one: an image (N, C, H, W),
tokens (N, L, C) or a vector (N, C). A ``Plan`` prints as the code that makes it again.
"""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import nn

from tests import image_blocks, sequence_blocks  # noqa: F401 (importing them registers their blocks)
from tests.blocks import BLOCKS, channels_of, conv

WIDTHS = (4, 6, 8, 12)


@dataclass(frozen=True)
class Plan:
    """How to build a network: blocks as (name, width, option) or (nested blocks, join, option); ``build`` does."""

    kind: str
    blocks: tuple
    second_input: bool = False

    def build(self):
        return Network(self)

    def inputs(self):
        """Random inputs of batch 2, from torch's global generator."""
        first = (
            torch.randint(7, (2, 5)) if self.kind == "words" else torch.randn(2, *STEMS[self.kind], dtype=torch.float64)
        )
        return (first, torch.randn(2, 3, dtype=torch.float64)) if self.second_input else (first,)


STEMS = {"image": (3, 4, 4), "tokens": (5, 6), "words": (5,)}


class Network(nn.Module):
    """A stem that makes 8 channels, the blocks, and a classifier; a block named ``exit`` answers beside."""

    def __init__(self, plan):
        super().__init__()
        stems = {"image": conv(3, 8), "tokens": nn.Linear(6, 8), "words": nn.Embedding(7, 8)}
        shapes = {"image": (8, 4, 4), "tokens": (5, 8), "words": (5, 8)}
        self.stem = stems[plan.kind]
        self.blocks = Chain(plan.blocks, shapes[plan.kind])
        self.shape = self.blocks.shape
        self.head = nn.Linear(channels_of(self.shape), 3)
        self.side = nn.Linear(3, 8) if plan.second_input else None

    def forward(self, x, y=None):
        x = self.stem(x)
        if self.side is not None:
            side = self.side(y)
            x = x + (side[:, :, None, None] if x.dim() == 4 else side[:, None])
        answers = []
        x = self.blocks(x, answers)
        x = x.mean((2, 3)) if x.dim() == 4 else x
        return (self.head(x), *answers)


class Chain(nn.Module):
    """Blocks one after the other."""

    def __init__(self, blocks, shape):
        super().__init__()
        self.layers = nn.ModuleList()
        for name, width, option in blocks:
            layer = made(name, width, option, shape)
            self.layers.append(layer)
            shape = layer.shape
        self.shape = shape

    def forward(self, x, answers):
        for layer in self.layers:
            if isinstance(layer, Exit):
                answers.append(layer(x))
            else:
                x = layer(x, answers) if isinstance(layer, Joined) else layer(x)
        return x


class Exit(nn.Module):
    """An answer on the way."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.a = shape, nn.Linear(channels_of(shape), 3)

    def forward(self, x):
        return self.a(x.mean((2, 3)) if x.dim() == 4 else x)


class Joined(nn.Module):
    """A chain of blocks and a connection around it: added if the shapes agree, else concatenated or left out."""

    def __init__(self, blocks, shape):
        super().__init__()
        self.chain = Chain(blocks, shape)
        inner = self.chain.shape
        self.join = "add" if inner == shape else "cat" if len(shape) == 3 and inner[1:] == shape[1:] else ""
        self.shape = (inner[0] + shape[0], *shape[1:]) if self.join == "cat" else inner

    def forward(self, x, answers):
        y = self.chain(x, answers)
        return y + x if self.join == "add" else torch.cat([y, x], 1) if self.join == "cat" else y


def made(name, width, option, shape):
    if name == "exit":
        return Exit(shape)
    return BLOCKS[name][0](shape, width, option) if isinstance(name, str) else Joined(name, shape)


def plan_of(name):
    """The smallest network with a block of that name."""
    if name in ("exit", "joined"):
        block = ("plain", 8, 0)
        return Plan("image", (block, ("exit", 8, 0)) if name == "exit" else (((block,), 8, 0),))
    fits = BLOCKS[name][1]
    of_image, of_tokens = fits((8, 4, 4)), fits((5, 8))
    before = () if of_image or of_tokens else (("to_vector", 8, 1),)
    return Plan("tokens" if of_tokens else "image", (*before, (name, 8, 0)))


@st.composite
def chains(draw, shape, nested=1, most=5):
    """Blocks that fit one after the other, and the shape at the end."""
    blocks = []
    for _ in range(draw(st.integers(1, most))):
        names = [name for name, (_, fits) in BLOCKS.items() if fits(shape)]
        name = draw(st.sampled_from([*names, "exit", *["joined"] * nested]))
        if name == "joined":
            name, _ = draw(chains(shape, nested - 1, 3))
        blocks.append((name, draw(st.sampled_from(WIDTHS)), draw(st.integers(0, 11))))
        with torch.device("meta"):
            shape = made(*blocks[-1], shape).shape
    return tuple(blocks), shape


@st.composite
def plans(draw):
    """A random network."""
    kind = draw(st.sampled_from(("image", "image", "image", "tokens", "words")))
    blocks, _ = draw(chains((8, 4, 4) if kind == "image" else (5, 8)))
    return Plan(kind, blocks, draw(st.integers(0, 5)) == 0)
