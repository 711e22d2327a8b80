"""Number formats: what one element of a tensor costs."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["FLOAT32", "Format"]


@dataclass(frozen=True, slots=True)
class Format:
    """The width in bits of one element, and whether it is a float or an integer code."""

    bits: int
    kind: Literal["float", "int"] = "int"

    def __str__(self) -> str:
        return f"{self.kind}{self.bits}"


FLOAT32 = Format(32, "float")
"""The format of everything that is not quantized."""
