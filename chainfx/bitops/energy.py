"""Energy of one sample, estimated from a table: picojoules of a multiply-accumulate by its widths, and of a moved byte.

Such an estimate ranks networks. It is no measurement: real devices differ by factors, and caches are not modelled.
"""

from dataclasses import dataclass

from chainfx.bitops.rows import CostRow
from chainfx.ir.graph import Format

__all__ = ["HOROWITZ_2014", "EnergyTable"]


@dataclass(frozen=True, slots=True)
class EnergyTable:
    """Picojoules (pJ) of arithmetic and of memory, under a name that says where they are from.

    ``float32`` and ``float16``: a floating point multiplication and addition. ``multiply8``: an 8-bit integer
    multiplication; other widths scale with the product of both, as the area of a multiplier does, and a power of two
    counts as one bit. ``add32``: the addition into a 32-bit sum. ``byte``: a byte read from or written to main memory.
    """

    name: str
    float32: float
    float16: float
    multiply8: float
    add32: float
    byte: float

    def mac(self, weight: Format, activation: Format) -> float:
        """The pJ of a multiply-accumulate of these formats; a float on either side makes it one of floats."""
        floats = [each.bits for each in (weight, activation) if each.kind == "float"]
        if floats:
            return self.float16 if max(floats) <= 16 else self.float32
        return self.multiply8 * weight.factor_bits * activation.bits / 64 + self.add32

    def of(self, row: CostRow) -> float:
        """The pJ of one row of a cost report: its MACs, and the bytes that it moves."""
        if row.facts is None:
            return 0.0
        return row.macs * self.mac(row.facts.weight, row.facts.activation) + float(row.moved_bits) / 8 * self.byte


HOROWITZ_2014 = EnergyTable("Horowitz 2014, 45 nm", float32=4.6, float16=1.5, multiply8=0.2, add32=0.1, byte=162.5)
"""M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, figure 1.1.9: 45 nm, 0.9 V.

Multiplications of 32 and 16 bit floats 3.7 and 1.1 pJ, additions 0.9 and 0.4; of 8-bit integers 0.2 pJ, an addition of
32 bits 0.1; 1.3 nJ, the lower of two figures, for 64 bits from DRAM.
"""
