"""Integer codes of 1..8 bits packed into bytes without gaps."""

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["pack", "unpack"]


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (uint8 or bool, each below ``2**bits``) as ``ceil(numel * bits / 8)`` bytes, lowest bit first."""
    flat = codes.flatten().numpy().astype(np.uint8)
    digits = np.unpackbits(flat[:, None], axis=1, bitorder="little", count=bits)
    return torch.from_numpy(np.packbits(digits.reshape(-1), bitorder="little"))


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """The codes that :func:`pack` packed: uint8, of the given shape."""
    size = math.prod(shape)
    digits = np.unpackbits(packed.numpy(), bitorder="little", count=size * bits).reshape(size, bits)
    return torch.from_numpy(np.packbits(digits, axis=1, bitorder="little").reshape(shape))
