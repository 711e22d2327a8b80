"""Quantized numbers as integers: codes, and the grid of values that they stand for."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from chainfx.ir.graph import get_tensor, ops

__all__ = ["Decode", "Encode", "Grid", "decode_weights", "grid_of", "weight_unit"]

_LEAST_CLIP = 1e-8  # that of ops.quantize_activation


@dataclass(frozen=True, slots=True)
class Grid:
    """The values ``(code - zero_point) * scale`` for the codes 0 to ``greatest`` (at most 255, stored as uint8).

    ``signs``: only the codes 0 and 2 are used, for minus and plus the scale (an activation of one signed bit).
    """

    scale: float
    zero_point: int
    greatest: int
    signs: bool = False

    def bounds(self) -> tuple[float, float]:
        """The least and the greatest value."""
        return -self.zero_point * self.scale, (self.greatest - self.zero_point) * self.scale

    def encode(self, values: Tensor, *, overwrite: bool = False) -> Tensor:
        """The codes (uint8, same shape) of the values that lie nearest to those of a float tensor.

        ``overwrite``: whether the work may be done in the tensor itself. A new one takes most of the time where it is
        large, since the system hands out its memory page by page.

        Computed as :func:`chainfx.ir.graph.ops.quantize_activation` does, so that ties fall to the same side: images
        often have values that are exactly between two codes. Four-dimensional codes lie in memory channels-last, which
        the kernels want.
        """
        if values.dim() == 4:
            values = values.contiguous(memory_format=torch.channels_last)
        if self.signs:
            return (values >= 0).to(torch.uint8) * 2
        levels = self.greatest - self.zero_point
        step = self.scale * levels
        shares = (values.div_(step) if overwrite else values / step).mul_(levels).round_()
        if self.zero_point:
            shares.add_(self.zero_point)
        return shares.clamp_(0, self.greatest).to(torch.uint8)

    def decode(self, codes: Tensor) -> Tensor:
        """The values (float32, same shape) of codes."""
        values = codes.float()
        return (values.sub_(self.zero_point) if self.zero_point else values).mul_(self.scale)


class Encode(nn.Module):
    """A float tensor in, its codes on a grid out.

    ``overwrites``: whether the float tensor may be written over, because nobody else reads it.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.overwrites = False

    def forward(self, values: Tensor) -> Tensor:
        """See :meth:`Grid.encode`."""
        return self.grid.encode(values, overwrite=self.overwrites and not torch.compiler.is_compiling())


class Decode(nn.Module):
    """Codes on a grid in, their values out."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, codes: Tensor) -> Tensor:
        """See :meth:`Grid.decode`."""
        return self.grid.decode(codes)


def grid_of(graph_module: GraphModule, quantizer: Node) -> Grid:
    """The grid of a ``quantize_activation`` node: its codes decode to what the node gives."""
    literals: tuple[Any, ...] = quantizer.args[1:]
    clip, bits, signed = literals
    greatest = max(float(get_tensor(graph_module, str(clip.target)).detach()), _LEAST_CLIP)
    if signed and bits == 1:
        return Grid(greatest, 1, 2, signs=True)
    levels = 2 ** (bits - signed) - 1
    return Grid(greatest / levels, levels * signed, levels * (1 + signed))


def decode_weights(codes: Tensor, bits: int, scheme: str) -> Tensor:
    """Weights as integers (int8, shape of ``codes``), from minus to plus :func:`~chainfx.ir.graph.ops.weight_range`.

    Times :func:`weight_unit` they are :func:`chainfx.ir.graph.ops.decode_weight` of the codes. Those of ``dorefa`` are
    odd: it has no zero.

    >>> decode_weights(torch.tensor([0, 1, 2, 3]), 2, "dorefa")
    tensor([-3, -1,  1,  3], dtype=torch.int8)
    """
    greatest = ops.weight_range(bits, scheme)
    wide = codes.to(torch.int16)
    if bits > 1 and scheme == "exponential":
        places = wide - (2 ** (bits - 1) - 1)
        powers: Tensor = 2 ** (places.abs() - 1).clamp_min(0)
        signed: Tensor = places.sign() * powers
        return signed.to(torch.int8)
    integers = wide * 2 - greatest if bits == 1 or scheme == "dorefa" else wide - greatest
    return integers.to(torch.int8)


def weight_unit(scale: Tensor, bits: int, scheme: str) -> Tensor:
    """What weights as integers are multiples of (float64), for the ``scale`` that is stored with them (same shape)."""
    return ops.at_least_float32(scale).double() / ops.weight_range(bits, scheme)
