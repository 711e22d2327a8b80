"""What a multiply-accumulate costs: named conventions, each a small pure function of the facts of one layer.

A number of bit operations means nothing without its convention, so every report carries the name. All conventions
agree that element-wise work, normalization, pooling and softmax cost nothing; they stand in a column of their own.

How much the choice matters: the pruned student of the paper (arXiv 2403.17447) for ResNet-34/CIFAR-10, every layer at
1 x 8 bits, costs 1/413.6 of its float original under ``mac_bw_ba``, 1/405.3 under ``hawq_v3`` and 1/132.0 under
``uniq_bops``; 1/301.2 under ``strict`` if its first and last layer stay in float.

A weight that is a power of two costs what a weight of one bit does: b_w is 1 in every product below, since a shift of
an activation of b_a bits is b_a bit operations (:attr:`chainfx.ir.graph.Format.factor_bits`).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

from chainfx.errors import CostError, InputError
from chainfx.ir.graph import FLOAT32, Format

__all__ = ["Convention", "LayerFacts", "convention_names", "get_convention", "nominal_formats", "register_convention"]


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What a convention may know of one layer (a node with MACs).

    ``macs``: of one sample. ``fan_in``: products summed for one output, C_in / groups * kernel size. ``weight``,
    ``activation``: formats of the two operands. ``nominal``: (weight, activation) formats of the whole network, see
    :func:`nominal_formats`. ``nonzero``: share of the weights that no mask sets to zero; ``kept_outputs``,
    ``kept_inputs``: shares of the channels of the weight that are not wholly masked (all three are 1 when channels were
    really removed). ``first``, ``last``: whether this is the first or the last layer with a weight of its own.
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
"""The bit operations of one layer for one sample, from what is known of it; see :func:`register_convention`."""

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
    """The names of all registered conventions, sorted."""
    return tuple(sorted(_CONVENTIONS))


def get_convention(name: str) -> Convention:
    """The convention of a name; raises :class:`CostError`, which lists the names, if there is none."""
    if name not in _CONVENTIONS:
        raise CostError(f"there is no convention named {name!r}; use one of {', '.join(convention_names())}.")
    return _CONVENTIONS[name]


def nominal_formats(layers: Iterable[tuple[int, Format, Format]]) -> tuple[Format, Format]:
    """The one pair of formats, (weight, activation), that stands for a whole network.

    ``layers`` has (MACs, weight format, activation format) of each layer. The pair is the one that carries the most
    MACs among the layers with an operand that is not a 32-bit float; of pairs with equal MACs it is the wider one. If
    there is no such layer it is (float32, float32).
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
    activation / 32 / 32``) tell. Check: its ResNet-34/CIFAR-10 student, pruned, at 1w8a costs 1/413.6 of the original;
    at 1w8a, 4w8a and 8w8a any network alone 1/128, 1/32 and 1/16.
    """
    weight, activation = layer.nominal
    return layer.macs * weight.factor_bits * activation.bits


@register_convention("strict")
def strict(layer: LayerFacts) -> int:
    """MACs * b_w * b_a with the formats each layer really has; a float operand counts its width. Nothing is nominal.

    The product that all other conventions start from (DoReFa, Zhou et al. 2016, sec. 2.1, for integers of M and K bits
    M * K), without an exemption. Check: as ``mac_bw_ba`` where all layers are equal; of the paper's ResNet-34/CIFAR-10
    student at 1w8a with float ends 1/301.2 of the original.
    """
    return layer.macs * layer.weight.factor_bits * layer.activation.bits


@register_convention("hawq_v3")
def hawq_v3(layer: LayerFacts) -> int | Fraction:
    """MACs * b_w * b_a per layer, first and last layer at 8 x 8 bits in a quantized network (HAWQ-V3, sec. 3.4).

    Check: ResNet-18 at 224 px 1858 G (float), 116 G (w8a8), 34.7 G (w4a4), as HAWQ's model zoo prints them.
    """
    if layer.quantized_network and (layer.first or layer.last):
        return layer.macs * 8 * 8
    return strict(layer)


@register_convention("bayesian_bits")
def bayesian_bits(layer: LayerFacts) -> int | Fraction:
    """kept outputs * kept inputs * MACs * b_w * b_a, the network's input counted as 8 bit (van Baalen et al. 2020).

    The rule for the input holds for quantized networks only; the float baseline is 32 * 32 everywhere. Bayesian Bits
    (arXiv 2005.07093, ``print_bitops`` of its code) prunes whole channels by a zero gate, so zeros inside of a channel
    that is kept earn nothing. Check: half of the outputs of every layer masked costs half, 1/4 with half of its inputs.
    """
    activation = layer.activation.bits
    if layer.quantized_network and layer.first:
        activation = min(activation, 8)
    return layer.kept_outputs * layer.kept_inputs * layer.macs * layer.weight.factor_bits * activation


@register_convention("uniq_bops")
def uniq_bops(layer: LayerFacts) -> Fraction:
    """MACs * (b_a b_w + b_a + b_w + log2 fan_in): the additions count too (Baskin et al., UNIQ, arXiv 1804.10969).

    An accumulator has b_a + b_w + log2 fan_in bits, fan_in = C_in / groups * kernel size; its b_w is the longest shift
    where weights are powers of two (:attr:`chainfx.ir.graph.Format.spread`). Check: ResNet-34 for 32 x 32 pixels costs
    1/39.8 of float at 1w8a, 1/20.1 at 4w8a and 1/12.1 at 8w8a.
    """
    return _uniq(layer, Fraction(1))


@register_convention("uniq_bops_sparse")
def uniq_bops_sparse(layer: LayerFacts) -> Fraction:
    """MACs * (nonzero b_a b_w + b_a + b_w + log2 fan_in): zeros save the product (Hawks et al., arXiv 2102.11289).

    That is eq. 8 there, of unstructured and N:M zeros alike; the additions stay, as in the source. Check: without
    zeros as ``uniq_bops``; at 4w8a, fan_in 64 and half of the weights zero 34 a MAC instead of 50.
    """
    return _uniq(layer, layer.nonzero)


def _uniq(layer: LayerFacts, nonzero: Fraction) -> Fraction:
    weight, activation = layer.weight, layer.activation.bits
    product = nonzero * activation * weight.factor_bits
    return layer.macs * (product + activation + weight.spread + Fraction(math.log2(layer.fan_in)))


@register_convention("fixops64")
def fixops64(layer: LayerFacts) -> int | Fraction:
    """MACs * b_w * b_a / 64: the unit is one 8 x 8 bit MAC (APoT, Li et al. 2020).

    The first and last layer of a quantized network count 1 per MAC, and so does a MAC with a 32-bit float operand
    (there a float model is printed as plain MACs). Check: ResNet-18 at 224 px 781 M (w5a5), 542 M (w4a4).
    """
    ends = layer.quantized_network and (layer.first or layer.last)
    if ends or FLOAT32 in (layer.weight, layer.activation):
        return layer.macs
    return Fraction(layer.macs * layer.weight.factor_bits * layer.activation.bits, 64)
