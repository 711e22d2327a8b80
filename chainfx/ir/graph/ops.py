"""Dialect ops: what a compressed network computes, as plain functions with literal arguments.

A tracer of FX records each call of them as one node, so a graph that calls them survives ``deepcopy``, pickling and
being captured again, and ``torch.compile`` sees through them. Gradients are straight-through in the form
``q.detach() + (x - x.detach())``: the forward value is exactly ``q`` (``x - x`` is 0), the gradient that of ``x``,
and, unlike an ``autograd.Function``, the form keeps its gradient under ``torch.export``.
"""

import math
import re
from collections.abc import Callable

import torch
from torch import Tensor

from chainfx.ir.graph.tracing import one_node

__all__ = [
    "CRITERIA",
    "DIALECT",
    "SCHEMES",
    "WIDTHS",
    "at_least_float32",
    "coded_weight",
    "confidence",
    "decode_weight",
    "dequantize_weight",
    "dims_read",
    "encode_weight",
    "exit_point",
    "is_pattern",
    "look_up",
    "mask_weight",
    "quantize_activation",
    "quantize_weight",
    "round_activation",
    "weight_range",
]

SCHEMES = ("dorefa", "tanh", "uniform", "exponential")
CRITERIA = (
    "entropy",
    "margin",
    "max-sigmoid",
    "max-softmax",
    "pixel-entropy",
    "pixel-margin",
    "pixel-max-softmax",
    "token-entropy",
    "token-margin",
    "token-max-softmax",
)
"""The confidences by which a sample may leave at an exit; see :func:`confidence`."""

WIDTHS = range(1, 9)
"""The bits that a quantizer may have; :func:`~chainfx.ir.graph.check_rules` holds every graph to it."""

_SMALLEST_SCALE = 1e-8


def _steps(bits: int) -> int:
    """The steps between the ``2**bits`` values of a width."""
    return (1 << bits) - 1


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32 if it is in half precision, where codes of eight bits run together; else the tensor itself.

    Quantizers compute in it, and give back what they were given: under autocast layers hand over half precision.
    """
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _straight_through(quantized: Tensor, differentiable: Tensor) -> Tensor:
    """The value of ``quantized`` with the gradient of ``differentiable`` (same shape)."""
    return quantized.detach() + (differentiable - differentiable.detach())


def _reduce(weight: Tensor, axis: int | None, reduction: Callable[..., Tensor]) -> Tensor:
    """``weight`` reduced over everything (shape ()), or over all axes but ``axis`` (the others are kept as 1)."""
    if axis is None:
        return reduction(weight, list(range(weight.dim())))
    return reduction(weight, [dim for dim in range(weight.dim()) if dim != axis], keepdim=True)


def encode_weight(weight: Tensor, bits: int, scheme: str, axis: int | None) -> tuple[Tensor, Tensor]:
    """The integer codes (0 .. 2**bits - 1, float tensor, shape of ``weight``) and the scale of a quantized weight.

    ``bits == 1`` is ``sign(w) * mean|w|`` with ``sign(0) = +1`` in all schemes (Zhou et al. 2016, sec. 2.3).
    ``dorefa``, 2..8 bits: ``2 * round((tanh(w) / (2 m) + 1/2) n) / n - 1`` with ``n = 2**bits - 1`` and
    ``m = max|tanh(w)|`` kept as the scale (Zhou et al. 2016, eq. 9). ``uniform``, 2..8 bits: symmetric,
    ``round(w / m * n)`` with ``n = 2**(bits-1) - 1`` and ``m = max|w|``. ``tanh``, 2..8 bits: ``uniform`` of
    ``tanh(w)``; at 8 bits, where the values of ``dorefa`` are odd multiples of 1/255 and so no int8, it stands for it.
    ``exponential``, 2..8 bits: the nearest of 0 and the ``2**(bits-1) - 1`` powers of two ``m, m / 2, ...`` of either
    sign, where m is the one nearest to ``max|w|`` (Zhou et al. 2017, arXiv 1702.03044, eq. 1 to 4).
    The scale has shape () for ``axis=None``, else the size of ``axis`` there and 1 elsewhere, and the dtype of
    ``weight``; codes are computed in float32 (float64 for a float64 weight).
    """
    exact = at_least_float32(weight)
    if bits == 1:
        return (exact >= 0).to(exact.dtype), _reduce(exact.abs(), axis, torch.mean).to(weight.dtype)
    if scheme == "dorefa":
        squashed = torch.tanh(exact)
        scale = _reduce(squashed.abs(), axis, torch.amax).clamp_min(_SMALLEST_SCALE)
        return torch.round((squashed / (2 * scale) + 0.5) * _steps(bits)), scale.to(weight.dtype)
    if scheme == "exponential":
        scale = _nearest_power(_reduce(exact.abs(), axis, torch.amax).clamp_min(_SMALLEST_SCALE))
        return _exponents(exact / scale, _steps(bits - 1)), scale.to(weight.dtype)
    exact = torch.tanh(exact) if scheme == "tanh" else exact
    levels = _steps(bits - 1)
    scale = _reduce(exact.abs(), axis, torch.amax).clamp_min(_SMALLEST_SCALE)
    return torch.round(exact / scale * levels) + levels, scale.to(weight.dtype)


def _nearest_power(values: Tensor) -> Tensor:
    """The nearest power of two of each positive number, of two that are as near the greater."""
    return torch.exp2(_exponent(values).to(values.dtype))


def _exponent(values: Tensor) -> Tensor:
    """The exponent of the nearest power of two, as an integer: 2**e is nearest from 3/4 to 3/2 of itself."""
    return torch.frexp(values / 0.75).exponent - 1


def _exponents(shares: Tensor, levels: int) -> Tensor:
    """Codes of shares of the scale: ``levels`` for 0, and from there up and down the powers of two, least first."""
    size = shares.abs()
    place = (_exponent(size) + levels).clamp(1, levels)
    place = torch.where(size >= 2.0**-levels, place, 0)
    return levels + torch.sign(shares) * place


def decode_weight(codes: Tensor, scale: Tensor, bits: int, scheme: str) -> Tensor:
    """The values that :func:`encode_weight` stands for: same shape as ``codes``, dtype of ``scale``."""
    exact = at_least_float32(scale)
    codes = codes.to(exact.dtype)
    if bits == 1:
        return codes.mul(2).sub(1).mul(exact).to(scale.dtype)
    if scheme == "dorefa":
        return codes.mul(2).div(_steps(bits)).sub(1).mul(exact).to(scale.dtype)
    levels = _steps(bits - 1)
    if scheme == "exponential":
        places = codes.sub(levels)
        return torch.exp2(places.abs().sub(levels)).mul(places.sign()).mul(exact).to(scale.dtype)
    return codes.sub(levels).div(levels).mul(exact).to(scale.dtype)


def weight_range(bits: int, scheme: str) -> int:
    """The greatest integer that the code of a weight stands for, as a multiple of one unit.

    >>> weight_range(8, "uniform"), weight_range(6, "dorefa"), weight_range(1, "uniform")
    (127, 63, 1)
    >>> weight_range(4, "exponential")
    64
    """
    if bits == 1:
        return 1
    if scheme == "exponential":
        return int(2 ** (2 ** (bits - 1) - 2))
    return int(2**bits - 1 if scheme == "dorefa" else 2 ** (bits - 1) - 1)


@one_node
def quantize_weight(weight: Tensor, bits: int, scheme: str, axis: int | None) -> Tensor:
    """Fake-quantize a weight to at most ``2**bits`` values (per slice of ``axis``); see :func:`encode_weight`.

    The gradient passes straight through the rounding (for ``dorefa`` and ``tanh`` it is that of ``tanh``).
    """
    quantized = decode_weight(*encode_weight(weight, bits, scheme, axis), bits, scheme)
    return _straight_through(quantized, torch.tanh(weight) if scheme in ("dorefa", "tanh") and bits > 1 else weight)


@one_node
def quantize_activation(activation: Tensor, clip: Tensor, bits: int, signed: bool) -> Tensor:
    """Fake-quantize an activation to at most ``2**bits`` values between ``-clip`` (0 if unsigned) and ``clip``.

    ``round(clamp(x / clip) n) / n * clip`` with ``n = 2**bits - 1``, signed ``n = 2**(bits-1) - 1`` (Zhou et al. 2016,
    eq. 5, with the range [0, 1] replaced by a clip of shape (), learnt as in PACT, Choi et al. 2018).
    One signed bit is ``sign(x) * clip``, with ``sign(0) = +1``. Computed in float32 (float64 for a float64 activation);
    the result has the dtype of ``activation``.
    """
    exact, clip, share = _clipped(activation, clip, signed)
    return _straight_through(_rounded(exact, clip, share, bits, signed), share * clip).to(activation.dtype)


@one_node
def round_activation(activation: Tensor, clip: Tensor, bits: int, signed: bool) -> Tensor:
    """The value of :func:`quantize_activation` without its gradient: what the deploy form computes in float."""
    exact, clip, share = _clipped(activation, clip, signed)
    return _rounded(exact, clip, share, bits, signed).to(activation.dtype)


def _clipped(activation: Tensor, clip: Tensor, signed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The activation and the clip in the type they are computed in, and their clamped quotient."""
    exact = at_least_float32(activation)
    clip = at_least_float32(clip).clamp_min(_SMALLEST_SCALE)
    return exact, clip, torch.clamp(exact / clip, -1.0 if signed else 0.0, 1.0)


def _rounded(exact: Tensor, clip: Tensor, share: Tensor, bits: int, signed: bool) -> Tensor:
    if signed and bits == 1:
        return torch.where(exact >= 0, clip, -clip)
    levels = _steps(bits - 1) if signed else _steps(bits)
    return torch.round(share * levels) / levels * clip


@one_node
def dequantize_weight(codes: Tensor, scale: Tensor, bits: int, scheme: str) -> Tensor:
    """The weight of the deploy form: ``codes`` (uint8, one code an element) and ``scale`` as stored.

    Equal to :func:`quantize_weight` of the weight they were encoded from, bit for bit.
    """
    return decode_weight(codes, scale, bits, scheme)


@one_node
def mask_weight(weight: Tensor, mask: Tensor, pattern: str) -> Tensor:
    """``weight`` with zeros where ``mask`` (bool, same shape) is False; what is masked gets no gradient.

    ``pattern`` says how the zeros lie: ``unstructured``, or ``N:M``, of which ``2:4`` is one: at most N of every M
    neighbours along dimension 1 (input channels) are kept. The mask is always the last op before the layer, so that
    what a quantizer makes of a zero does not matter.
    """
    return weight * mask


def is_pattern(value: object) -> bool:
    """Whether ``value`` is a pattern of :func:`mask_weight`: ``unstructured``, or ``N:M`` with 1 <= N < M."""
    if not isinstance(value, str):
        return False
    numbers = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", value)
    return value == "unstructured" or (numbers is not None and int(numbers[1]) < int(numbers[2]))


@one_node
def look_up(codes: Tensor, codebook: Tensor) -> Tensor:
    """A shared weight: entry ``codes`` (integers, shape of the weight) of ``codebook`` (k,).

    The gradient of an entry is the sum over all weights that share it (Han et al. 2016, sec. 3.3).
    """
    return codebook[codes.long()]


@one_node
def coded_weight(weight: Tensor, coder: str) -> Tensor:
    """Mark a weight whose stored parts (values or codes, and the mask) an artefact holds coded; the identity.

    ``coder`` is one of :data:`chainfx.coding.CODERS`. The mark is what the layer reads, on top of the mask.
    """
    return weight


@one_node
def exit_point(logits: Tensor, name: str, threshold: float, criterion: str) -> Tensor:
    """Mark ``logits``, a tensor of the shape that ``criterion`` reads, as the answer of exit ``name``; the identity.

    A sample leaves here if :func:`confidence` of its logits is at least ``threshold``
    (:func:`chainfx.ir.graph.leaving` decides).
    """
    return logits


def confidence(logits: Tensor, criterion: str) -> Tensor:
    """How sure a network is of its answer to each sample: shape (N,), higher is surer, at most 1.

    Of ``logits`` (N, classes), ``max-softmax`` is the largest probability, ``margin`` the largest minus the second
    largest, and ``entropy`` 1 minus the entropy over its maximum log(classes), so that a threshold means the same
    direction. ``max-sigmoid``, of logits that each answer yes or no: the mean over them of the larger of ``p`` and
    ``1 - p``.

    ``token-...`` of logits (N, length, classes) and ``pixel-...`` of logits (N, classes, height, width) are the mean
    of the same over all tokens or pixels of a sample, since a sample leaves as a whole. (Schuster et al. 2022,
    "Confident adaptive language modeling", sec. 3.5, read the margin of each token.) Padding counts as any other token.
    """
    if criterion == "max-sigmoid":
        yes = torch.sigmoid(logits.float())
        return torch.maximum(yes, 1 - yes).mean(dim=1)
    axis = 2 if criterion.startswith("token-") else 1
    measure = criterion.removeprefix("token-").removeprefix("pixel-")
    sure = _sureness(torch.softmax(logits.float(), dim=axis), measure, axis)
    return sure if measure == criterion else sure.flatten(1).mean(dim=1)


def _sureness(probabilities: Tensor, measure: str, axis: int) -> Tensor:
    """How sure the probabilities along ``axis`` are, which the result lacks."""
    if measure == "max-softmax":
        return probabilities.amax(dim=axis)
    if measure == "margin":
        top = probabilities.topk(2, dim=axis).values
        return top.select(axis, 0) - top.select(axis, 1)
    entropy = -(probabilities * torch.log(probabilities.clamp_min(1e-12))).sum(dim=axis)
    return 1 - entropy / math.log(probabilities.shape[axis])


def dims_read(criterion: str) -> int:
    """How many dimensions the logits have that a criterion reads: 2, 3 for tokens, 4 for pixels."""
    return {"token": 3, "pixel": 4}.get(criterion.partition("-")[0], 2)


DIALECT = (quantize_weight, quantize_activation, dequantize_weight, mask_weight, look_up, coded_weight, exit_point)
"""The functions that chainfx adds to those of torch: all that a graph may call beside torch's own."""
