"""What this machine has kernels for."""

from dataclasses import dataclass
from typing import Self

import torch

__all__ = ["Machine"]

_INTEGER_ENGINES = frozenset({"onednn", "x86", "fbgemm", "qnnpack"})
_SPARSE_TENSOR_CORES = (8, 0)  # the compute capability of the first GPUs that have them, of 2020


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine computes faster than in float32.

    ``integers``: products of 8-bit integers. ``sparse``: products with weights of the pattern 2:4.
    """

    integers: bool
    sparse: bool

    @classmethod
    def here(cls) -> Self:
        """What the torch of this process can use on this machine."""
        gpu = torch.cuda.is_available()
        return cls(
            integers=gpu or bool(_INTEGER_ENGINES & set(torch.backends.quantized.supported_engines)),
            sparse=gpu and torch.cuda.get_device_capability() >= _SPARSE_TENSOR_CORES,
        )
