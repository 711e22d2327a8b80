"""Number formats: in how many bits one element of a tensor is held, and as what kind of number."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["FLOAT32", "Format"]


@dataclass(frozen=True, slots=True)
class Format:
    """How one element of a tensor is held: in ``bits`` bits, as a float, an integer, or a power of two and a sign.

    >>> print(Format(4), FLOAT32, Format(4, "shift"))
    int4 float32 shift4
    """

    bits: int
    kind: Literal["float", "int", "shift"] = "int"

    @property
    def factor_bits(self) -> int:
        """The bits that count in a product: ``bits``, or 1 for a power of two, by which a product is a shift.

        A shift of an operand of b bits is b bit operations, and the sign is free, as for the terms of APoT
        (Li et al. 2020).
        """
        return 1 if self.kind == "shift" else self.bits

    @property
    def spread(self) -> int:
        """By how many bits a product with it is wider than the other operand: ``bits``, or the longest shift."""
        return 2 ** (self.bits - 1) - 2 if self.kind == "shift" else self.bits

    def __str__(self) -> str:
        return f"{self.kind}{self.bits}"


FLOAT32 = Format(32, "float")
"""The format of everything that is not quantized."""
