"""Tensors as bytes, and integer codes of 1..8 bits packed into bytes without gaps."""

import hashlib
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["bytes_of", "content_hash", "pack", "unpack"]


def bytes_of(tensor: Tensor) -> memoryview:
    """The elements of a tensor row by row, without a copy if it is contiguous and on the CPU."""
    array: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return memoryview(array)


def content_hash(tensors: Iterable[Tensor]) -> str:
    """A hash of the types, shapes and elements of tensors in their order; read one after the other."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


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
