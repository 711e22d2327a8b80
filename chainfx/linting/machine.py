"""What this machine has kernels for."""

from dataclasses import dataclass
from typing import Self

import torch

from chainfx.processor import computes_in_bfloat16, has_vnni

__all__ = ["Machine"]

_INTEGER_ENGINES = frozenset({"onednn", "x86", "fbgemm", "qnnpack"})
_X86 = ("AVX2", "AVX512")
_SPARSE_TENSOR_CORES = (8, 0)  # the compute capability of the first GPUs that have them, of 2020


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine computes faster than in float32.

    ``integers``: products of 8-bit integers. ``sparse``: products with weights of the pattern 2:4. ``saturates``:
    whether the CPU adds two products of 8-bit integers in 16 bits, which 8-bit weights and 8-bit activations do not fit
    into, so that the ``int8`` engine leaves such layers in float. ``bfloat16``: products in bfloat16.
    """

    integers: bool
    sparse: bool
    saturates: bool = False
    bfloat16: bool = True

    @classmethod
    def here(cls) -> Self:
        """What the torch of this process can use on this machine."""
        gpu = torch.cuda.is_available()
        return cls(
            integers=gpu or bool(_INTEGER_ENGINES & set(torch.backends.quantized.supported_engines)),
            sparse=gpu and torch.cuda.get_device_capability() >= _SPARSE_TENSOR_CORES,
            saturates=torch.backends.cpu.get_cpu_capability() in _X86 and not has_vnni(),
            bfloat16=gpu or computes_in_bfloat16(),
        )
