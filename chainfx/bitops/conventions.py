"""What a multiply-accumulate costs: named conventions, each a small pure function of the facts of one layer.

A number of bit operations means nothing without its convention, so every report carries the name. All conventions
agree that element-wise work, normalization, pooling and softmax cost nothing; they stand in a column of their own.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

from chainfx.errors import CostError, InputError
from chainfx.ir.formats import FLOAT32, Format

__all__ = ["Convention", "LayerFacts", "convention_names", "get_convention", "nominal_formats", "register_convention"]


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What a convention may know of one layer (a node with MACs).

    ``macs``: of one sample. ``fan_in``: products summed for one output, C_in / groups * kernel size. ``weight``,
    ``activation``: formats of the two operands. ``nominal``: (weight, activation) formats of the whole network, see
    :func:`nominal_formats`. ``kept_outputs``, ``kept_inputs``: shares of the channels that are left, 1 when channels
    were really removed. ``nonzero``: share of the weights that are not zero. ``first``, ``last``: whether this is the
    first or the last layer with a weight of its own.
    """

    macs: int
    fan_in: Fraction
    weight: Format
    activation: Format
    nominal: tuple[Format, Format]
    kept_outputs: Fraction = Fraction(1)
    kept_inputs: Fraction = Fraction(1)
    nonzero: Fraction = Fraction(1)
    first: bool = False
    last: bool = False

    @property
    def quantized_network(self) -> bool:
        """Whether any layer of the network has an operand that is not a 32-bit float."""
        return self.nominal != (FLOAT32, FLOAT32)


Convention = Callable[[LayerFacts], int | Fraction]

_CONVENTIONS: dict[str, Convention] = {}


def register_convention(name: str) -> Callable[[Convention], Convention]:
    """Add a convention under a name of its own; raises :class:`InputError` if the name is taken.

    >>> @register_convention("weights_only")
    ... def weights_only(layer: LayerFacts) -> int:
    ...     return layer.macs * layer.weight.bits
    """

    def add(convention: Convention) -> Convention:
        if name in _CONVENTIONS:
            raise InputError(f"the convention {name!r} is registered already; give yours another name.")
        _CONVENTIONS[name] = convention
        return convention

    return add


def convention_names() -> tuple[str, ...]:
    """The names of all conventions, sorted."""
    return tuple(sorted(_CONVENTIONS))


def get_convention(name: str) -> Convention:
    """The convention of that name; raises :class:`CostError` with the names there are."""
    if name not in _CONVENTIONS:
        raise CostError(f"there is no convention named {name!r}; use one of {', '.join(convention_names())}.")
    return _CONVENTIONS[name]


def nominal_formats(layers: Iterable[tuple[int, Format, Format]]) -> tuple[Format, Format]:
    """The one (weight, activation) pair that stands for a network, given (MACs, weight, activation) of its layers.

    It is the pair that carries the most MACs among the layers with an operand that is not a 32-bit float; of pairs with
    equal MACs the wider one; (float32, float32) if there is no such layer.
    """
    carried: dict[tuple[Format, Format], int] = {}
    for macs, weight, activation in layers:
        if (weight, activation) != (FLOAT32, FLOAT32):
            carried[weight, activation] = carried.get((weight, activation), 0) + macs
    if not carried:
        return FLOAT32, FLOAT32
    return max(carried, key=lambda pair: (carried[pair], pair[0].bits * pair[1].bits))


@register_convention("mac_bw_ba")
def mac_bw_ba(layer: LayerFacts) -> int:
    """MACs * b_w * b_a with one nominal (w, a) for the whole network, 32 * 32 = 1024 if nothing is quantized.

    Nothing is exempt: the first and last layer count at the nominal widths too, whatever they really have. This is how
    the paper (arXiv 2403.17447) counts, as far as its numbers and its authors' later code (NAC, ``cost * weight *
    activation / 32 / 32``) tell. Check: its ResNet-34/CIFAR-10 student, pruned, at 1w8a costs 1/413.6 of the original.
    """
    weight, activation = layer.nominal
    return layer.macs * weight.bits * activation.bits


@register_convention("strict")
def strict(layer: LayerFacts) -> int:
    """MACs * b_w * b_a with the formats each layer really has; a float operand counts its width. Nothing is nominal."""
    return layer.macs * layer.weight.bits * layer.activation.bits


@register_convention("hawq_v3")
def hawq_v3(layer: LayerFacts) -> int | Fraction:
    """MACs * b_w * b_a per layer, first and last layer at 8 x 8 bits in a quantized network (HAWQ-V3, sec. 3.4).

    Check: ResNet-18 at 224 px 1858 G (float), 116 G (w8a8), 34.7 G (w4a4).
    """
    if layer.quantized_network and (layer.first or layer.last):
        return layer.macs * 8 * 8
    return strict(layer)


@register_convention("bayesian_bits")
def bayesian_bits(layer: LayerFacts) -> int | Fraction:
    """kept outputs * kept inputs * MACs * b_w * b_a, the network's input counted as 8 bit (van Baalen et al. 2020).

    The rule for the input holds for quantized networks only; the float baseline is 32 * 32 everywhere.
    """
    activation = layer.activation.bits
    if layer.quantized_network and layer.first:
        activation = min(activation, 8)
    return layer.kept_outputs * layer.kept_inputs * layer.macs * layer.weight.bits * activation


@register_convention("uniq_bops")
def uniq_bops(layer: LayerFacts) -> Fraction:
    """MACs * (b_a b_w + b_a + b_w + log2 fan_in): the additions count too (Baskin et al., UNIQ, arXiv 1804.10969)."""
    return _uniq(layer, Fraction(1))


@register_convention("uniq_bops_sparse")
def uniq_bops_sparse(layer: LayerFacts) -> Fraction:
    """MACs * (nonzero b_a b_w + b_a + b_w + log2 fan_in) (Hawks et al., arXiv 2102.11289, eq. 8)."""
    return _uniq(layer, layer.nonzero)


def _uniq(layer: LayerFacts, nonzero: Fraction) -> Fraction:
    weight, activation = layer.weight.bits, layer.activation.bits
    return layer.macs * (nonzero * activation * weight + activation + weight + Fraction(math.log2(layer.fan_in)))


@register_convention("fixops64")
def fixops64(layer: LayerFacts) -> int | Fraction:
    """MACs * b_w * b_a / 64: the unit is one 8 x 8 bit MAC (APoT, Li et al. 2020).

    The first and last layer of a quantized network count 1 per MAC, and so does a MAC with a 32-bit float operand
    (there a float model is printed as plain MACs). Check: ResNet-18 at 224 px 781 M (w5a5), 542 M (w4a4).
    """
    ends = layer.quantized_network and (layer.first or layer.last)
    if ends or FLOAT32 in (layer.weight, layer.activation):
        return layer.macs
    return Fraction(layer.macs * layer.weight.bits * layer.activation.bits, 64)
