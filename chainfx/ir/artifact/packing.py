"""Integer codes of 1..8 bits packed into bytes without gaps."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["array_of", "pack", "tensor_of", "unpack"]

# types of torch alone, and the type of numpy that has as many bits
_UNKNOWN_TO_NUMPY = {torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.uint8, torch.float8_e5m2: torch.uint8}


def array_of(tensor: Tensor) -> NDArray[Any]:
    """The elements of a tensor of any type on the CPU as an array; what numpy does not know goes by its bytes."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype in _UNKNOWN_TO_NUMPY:
        return tensor.view(_UNKNOWN_TO_NUMPY[tensor.dtype]).numpy()
    return tensor.numpy()


def tensor_of(array: NDArray[Any], dtype: torch.dtype) -> Tensor:
    """The tensor of a type that :func:`array_of` gave the elements of."""
    tensor = torch.from_numpy(array)
    return tensor.view(dtype) if dtype in _UNKNOWN_TO_NUMPY else tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (uint8 or bool, each below ``2**bits``) as ``ceil(numel * bits / 8)`` bytes, lowest bit first."""
    flat = codes.flatten().numpy().astype(np.uint8)
    digits = np.unpackbits(flat[:, None], axis=1, bitorder="little", count=bits)
    return torch.from_numpy(np.packbits(digits.reshape(-1), bitorder="little"))


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """The codes that :func:`pack` packed: uint8, of the given shape."""
    if bits == 8:
        return packed.view(shape)
    size = math.prod(shape)
    digits = np.unpackbits(packed.numpy(), bitorder="little", count=size * bits).reshape(size, bits)
    return torch.from_numpy(np.packbits(digits, axis=1, bitorder="little").reshape(shape))
