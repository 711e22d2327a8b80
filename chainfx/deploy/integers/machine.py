"""What the processor can compute with integers, as a value, so that the rule that follows from it can be tested."""

import functools
from dataclasses import dataclass
from typing import Self

import torch

from chainfx.processor import fit_into_16_bits, has_vnni

__all__ = ["Machine"]

_OPERATORS = ("qconv_prepack", "qconv2d_pointwise", "qlinear_prepack", "qlinear_pointwise")
_NAMES = {"AVX2": "AVX2", "AVX512": "AVX-512"}


@dataclass(frozen=True, slots=True)
class Machine:
    """A processor: the name of its ``instructions``, and what torch's integer kernels can do on it.

    ``kernels``: whether oneDNN's integer operators are there. ``saturates``: whether they add the products of two
    neighbouring codes in 16 bits, where too large ones are cut off; processors with VNNI instructions add in 32.
    ``sparse``: whether torch was built with the sparse products of MKL.
    """

    instructions: str
    kernels: bool
    saturates: bool
    sparse: bool = True

    @classmethod
    def here(cls) -> Self:
        """The processor that this runs on, found once in a process."""
        return cls(*_found())

    def obstacle(self, greatest_input: int, greatest_weight: int) -> str:
        """Why a layer cannot be exact in integers here, for codes of at most these sizes; empty if it can be.

        Without VNNI the sum of two products must fit into 16 bits (:func:`~chainfx.processor.fit_into_16_bits`).

        >>> Machine("AVX2", kernels=True, saturates=True).obstacle(255, 63)
        ''
        >>> Machine("AVX-512 VNNI", kernels=True, saturates=False).obstacle(255, 127)
        ''
        """
        if not self.kernels:
            return f"this machine ({self.instructions}) has no integer kernels of oneDNN"
        if self.saturates and not fit_into_16_bits(greatest_input, greatest_weight):
            return (
                f"sums of two products of input codes up to {greatest_input} and weight codes up to {greatest_weight} "
                f"do not fit into 16 bits, which {self.instructions} without VNNI adds them in; "
                f"quantize its input to 7 bits, or its weight to 7 bits with scheme='uniform'"
            )
        return ""


@functools.cache
def _found() -> tuple[str, bool, bool, bool]:
    capability = torch.backends.cpu.get_cpu_capability()
    known = capability in _NAMES and torch.backends.mkldnn.is_available()
    kernels = known and all(hasattr(torch.ops.onednn, name) for name in _OPERATORS)
    vnni = has_vnni()
    instructions = f"{_NAMES.get(capability, capability)}{' VNNI' if vnni else ''}"
    return instructions, kernels, not vnni, torch.backends.mkl.is_available()
