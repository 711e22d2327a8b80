"""The rows of a cost report: what one node costs for one sample, in exact numbers, as frozen values."""

from dataclasses import dataclass
from fractions import Fraction

from chainfx.bitops.conventions import LayerFacts

__all__ = ["CostRow", "Uncounted"]


@dataclass(frozen=True, slots=True)
class CostRow:
    """The work of one node for one sample.

    ``module``: path of the module it comes from, empty if unknown. ``shape``: of the output, batch included.
    ``elementwise``: elements of the largest tensor read or written by an operator without MACs. ``bitops``: under the
    report's convention. ``segment``: i for what exit i needs beyond the exits before it, the number of exits for the
    rest. ``branch``: path of the branch of a ``torch.cond`` it is in, such as ``cond.true``, empty for what always
    runs. ``facts``: what conventions price, ``None`` without MACs. ``pattern``: how the zeros of a masked weight lie,
    empty without a mask. ``weight``: path of the weight of a convolution or linear layer with one of its own, of
    ``weight_elements`` elements. ``read_elements``: how many elements of the weight, or of the second factor of a
    product, and how many of the activation a node with MACs reads for one sample.
    """

    node: str
    operator: str
    module: str
    shape: tuple[int, ...]
    elementwise: int
    bitops: int | Fraction
    segment: int
    branch: str = ""
    facts: LayerFacts | None = None
    pattern: str = ""
    weight: str = ""
    weight_elements: int = 0
    read_elements: tuple[int, int] = (0, 0)

    @property
    def macs(self) -> int:
        """The multiply-accumulates of the node, those with a weight of zero included."""
        return self.facts.macs if self.facts else 0

    @property
    def nonzero_macs(self) -> int | Fraction:
        """The MACs whose weight is not masked to zero."""
        return self.facts.macs * self.facts.nonzero if self.facts else 0

    @property
    def moved_bits(self) -> int | Fraction:
        """The bits that a node with MACs reads and writes for one sample: every operand once, and its result.

        The result has the width of the activation, as where the next layer reads it. Element-wise work moves nothing of
        its own: compilers and kernels do it on the result of the layer before, which they hold.
        """
        if self.facts is None:
            return 0
        weights, activations = self.read_elements
        written = self.facts.macs / self.facts.fan_in if self.facts.fan_in else 0
        bits = weights * self.facts.weight.bits + (activations + written) * self.facts.activation.bits
        return bits.numerator if isinstance(bits, Fraction) and bits.denominator == 1 else bits

    @property
    def weight_bits(self) -> int | None:
        """The bits of the weight, or of the second factor of a product; ``None`` without MACs."""
        return self.facts.weight.bits if self.facts else None

    @property
    def activation_bits(self) -> int | None:
        """The bits of the activation; ``None`` without MACs."""
        return self.facts.activation.bits if self.facts else None


@dataclass(frozen=True, slots=True)
class Uncounted:
    """A node that does arithmetic of an amount that chainfx does not know, and the reason why it does not."""

    node: str
    operator: str
    module: str
    reason: str
