"""Number formats: in how many bits one element of a tensor is held, and as what kind of number."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["FLOAT32", "Format"]


@dataclass(frozen=True, slots=True)
class Format:
    """How one element of a tensor is held: in ``bits`` bits, as a float or as an integer code.

    >>> print(Format(4), FLOAT32)
    int4 float32
    """

    bits: int
    kind: Literal["float", "int"] = "int"

    def __str__(self) -> str:
        return f"{self.kind}{self.bits}"


FLOAT32 = Format(32, "float")
"""The format of everything that is not quantized."""
