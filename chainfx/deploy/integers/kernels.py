"""One layer in integers: the call of oneDNN's operator for it, and the cache of weights packed for that operator.

A packed weight is an opaque tensor of oneDNN that can be neither copied, moved, pickled nor saved. So it stands in no
module: a cache beside the weights it was made of has it for as long as these live, and it is made when first needed.
"""

import json
import threading
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from chainfx.deploy.integers.grids import Grid, decode_weights

__all__ = ["PLAIN", "Activation", "BoundLayer", "Geometry", "LayerCall", "run_layer"]

Activation = Literal["none", "relu", "hardtanh", "hardswish", "swish"]
PLAIN: tuple[Activation, tuple[float, ...]] = ("none", ())
"""No activation, and no numbers that it needs."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a convolution over two axes slides: two numbers each, and the number of groups."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


@dataclass(frozen=True, slots=True)
class LayerCall:
    """All that one layer computes in integers, but for its tensors.

    ``bits`` and ``scheme`` say what codes of the weight mean; ``geometry`` is ``None`` for a linear layer. The layer
    reads codes on the grid ``read`` and writes codes on ``written``, or float32 values if that is ``None``. Before it
    writes it adds a second input, codes on ``added`` or float32 values if that is ``None``, and applies an activation
    with its numbers.
    """

    read: Grid
    bits: int
    scheme: str
    geometry: Geometry | None
    written: Grid | None = None
    added: Grid | None = None
    activation: Activation = "none"
    numbers: tuple[float, ...] = ()

    def to_text(self) -> str:
        """The call as a text, which an operator of torch can take as an argument."""
        return json.dumps(asdict(self))

    @classmethod
    @lru_cache(4096)
    def of_text(cls, text: str) -> Self:
        """The call that :meth:`to_text` wrote."""
        fields = json.loads(text)
        grids = {name: fields[name] and Grid(**fields[name]) for name in ("read", "written", "added")}
        sliding: dict[str, Any] | None = fields["geometry"]
        pairs = ("stride", "padding", "dilation")
        geometry = sliding and Geometry(**{**sliding, **{name: tuple(sliding[name]) for name in pairs}})
        return cls(**{**fields, **grids, "geometry": geometry, "numbers": tuple(fields["numbers"])})


@dataclass(frozen=True, slots=True)
class _Arguments:
    """What oneDNN's operator takes for a call beside tensors, worked out once.

    ``most``: the greatest code, where the operator, which stops at 0 and 255, may give greater ones. Without another
    activation it is told to stop at the ends of the grid, as if that were one; a sum cannot be told so
    (``most_of_sum``). ``operators``: for a layer alone, and with a sum; kept here, since to find them takes a tenth of
    the time of a small layer. ``sparse``: whether a kernel of one pixel would leave some out.
    """

    read: tuple[float, int]
    written: tuple[float, int, torch.dtype]
    sliding: tuple[Any, ...]
    activation: tuple[str, list[float], str]
    summing: tuple[Any, ...]
    most: int | None
    most_of_sum: int | None
    operators: tuple[Any, Any]
    sparse: bool

    @classmethod
    @lru_cache(4096)
    def of_text(cls, text: str) -> Self:
        """The arguments for the call that a text stands for."""
        call, onednn = LayerCall.of_text(text), torch.ops.onednn
        grid, added, at = call.written, call.added or Grid(1.0, 0, 255), call.geometry
        most = most_of_sum = None if grid is None or grid.greatest == 255 else grid.greatest
        activation: tuple[str, list[float], str] = (call.activation, list(call.numbers), "")
        summing = (added.scale, added.zero_point, "sum", 1.0, *activation)
        if grid is not None and most is not None and call.activation == "none":
            activation, most = ("hardtanh", list(grid.bounds()), ""), None
        return cls(
            (call.read.scale, call.read.zero_point),
            (1.0, 0, torch.float32) if grid is None else (grid.scale, grid.zero_point, torch.uint8),
            () if at is None else (list(at.stride), list(at.padding), list(at.dilation), at.groups),
            activation,
            summing,
            most,
            most_of_sum,
            (onednn.qlinear_pointwise.default, None)
            if at is None
            else (onednn.qconv2d_pointwise.default, onednn.qconv2d_pointwise.binary),
            at is not None and _leaves_out(at.stride, at.padding),
        )


@dataclass(frozen=True, slots=True)
class BoundLayer:
    """A layer bound to its tensors: its weight is packed and its arguments are in order, so that calls find them ready.

    ``run``: gives codes or float32 values for codes, and for the second input where the layer adds one, which is
    written over.
    """

    version: int
    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    run: Callable[..., Tensor]

    @classmethod
    def of(cls, text: str, codes: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Self:
        """The layer of a :class:`LayerCall`, by its text; see :func:`run_layer`. The ``codes`` are an example."""
        given, version = _Arguments.of_text(text), _version(weight)
        packed, zeros = _packed(text, codes, weight, scale)
        before = (*given.read, packed, scale, zeros)
        if not given.sliding:
            return cls(version, weight, scale, bias, _linear(given, before, bias))
        return cls(version, weight, scale, bias, _convolution(given, before, bias, weight.shape[2:] == (1, 1)))

    def is_of(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> bool:
        """Whether it is bound to these tensors, and to the codes that the weight has now."""
        return self.weight is weight and self.scale is scale and self.bias is bias and self.version == _version(weight)


def run_layer(
    text: str, codes: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, added: Tensor | None = None
) -> Tensor:
    """One layer: codes (N, in, H, W), or (..., in) for a linear layer, in; codes or float32 values out.

    ``text``: that of its :class:`LayerCall`. ``weight``: codes as the network stores them (uint8), or integers (int8);
    ``scale`` and ``bias`` (out,) are float32. ``added``, of the shape of the result, is written over.
    """
    made = _PACKED.get(weight)
    known = made.runs.get(text) if made is not None and made.version == _version(weight) else None
    if known is None or known[0] is not scale or known[1] is not bias:
        known = scale, bias, BoundLayer.of(text, codes, weight, scale, bias).run
        _PACKED[weight].runs[text] = known
    return known[2](codes) if added is None else known[2](codes, added)


def _linear(given: _Arguments, before: tuple[Any, ...], bias: Tensor | None) -> Callable[..., Tensor]:
    operator, rest, most = given.operators[0], (*before, bias, *given.written, *given.activation), given.most

    def run(codes: Tensor) -> Tensor:
        if codes.dim() == 2:
            return _clamped(operator(codes, *rest), most)
        flat: Tensor = operator(codes.reshape(-1, codes.shape[-1]), *rest)
        return _clamped(flat.view(*codes.shape[:-1], flat.shape[-1]), most)

    return run


def _convolution(
    given: _Arguments, before: tuple[Any, ...], bias: Tensor | None, single: bool
) -> Callable[..., Tensor]:
    """A call of the operator for a convolution, which reads ``single`` pixels or more, alone or with a sum."""
    sliding, steps = given.sliding, None
    if given.sparse and single:
        # oneDNN's own way to skip pixels is wrong with several threads: it writes past its workspace
        steps, sliding = tuple(sliding[0]), ([1, 1], *sliding[1:])
    alone, with_sum = given.operators
    rest = (*before, bias, *sliding, *given.written, *given.activation)
    after_sum = (bias, *sliding, *given.written, *given.summing)

    def run(codes: Tensor, added: Tensor | None = None) -> Tensor:
        if steps is not None:
            codes = _every(codes, *steps)
        if added is None:
            return _clamped(alone(codes, *rest), given.most)
        added = added.contiguous(memory_format=torch.channels_last)
        return _clamped(with_sum(codes, *before, added, *after_sum), given.most_of_sum)

    return run


def _every(codes: Tensor, down: int, right: int) -> Tensor:
    """The pixels in every row and column of so many; by strides, in one call in place of four slices."""
    (count, channels, height, width), (image, channel, row, column) = codes.shape, codes.stride()
    kept = (count, channels, -(-height // down), -(-width // right))
    strided = codes.as_strided(kept, (image, channel, row * down, column * right), codes.storage_offset())
    return strided.contiguous(memory_format=torch.channels_last)


def _leaves_out(stride: Sequence[int], padding: Sequence[int]) -> bool:
    """Whether a convolution that reads single pixels does not read all of them."""
    return max(stride) > 1 and not any(padding)


def _clamped(codes: Tensor, most: int | None) -> Tensor:
    return codes if most is None else codes.clamp_(max=most)


def _version(weight: Tensor) -> int:
    """How often a tensor was changed in place, which one made in inference mode does not count."""
    return 0 if weight.is_inference() else weight._version


@dataclass(frozen=True, slots=True)
class _Made:
    """What was made of a weight, by the texts of the calls that read it; nothing in it may hold the weight itself.

    ``packed``: the packed weight, and the zero points of its channels. ``runs``: the call, for a scale and a bias.
    """

    version: int
    packed: dict[str, tuple[Tensor, Tensor]]
    runs: dict[str, tuple[Tensor, Tensor | None, Callable[..., Tensor]]]


_PACKED: MutableMapping[Tensor, _Made] = WeakTensorKeyDictionary()
_PACKING = threading.Lock()


def _packed(text: str, codes: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The weight packed for a call, and the zero points of its channels; made once, and again if the codes change."""
    version = _version(weight)
    made = _PACKED.get(weight)
    if made is not None and made.version == version and text in made.packed:
        return made.packed[text]
    with _PACKING:
        made = _PACKED.get(weight)
        if made is None or made.version != version:
            made = _PACKED[weight] = _Made(version, {}, {})
        if text not in made.packed:
            zeros = torch.zeros(len(scale), dtype=torch.long, device="cpu")
            made.packed[text] = _pack(LayerCall.of_text(text), codes, weight, scale), zeros
        return made.packed[text]


def _pack(call: LayerCall, codes: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    integers = weight
    if weight.dtype is torch.uint8:
        integers = decode_weights(weight, call.bits, call.scheme)
    integers, shape = integers.contiguous(), [max(size, 1) for size in codes.shape]
    if call.geometry is None:
        linear: Tensor = torch.ops.onednn.qlinear_prepack(integers, [shape[0], shape[-1]])
        return linear
    geometry = call.geometry
    skips = integers.shape[2:] == (1, 1) and _leaves_out(geometry.stride, geometry.padding)
    stride = (1, 1) if skips else geometry.stride
    convolution: Tensor = torch.ops.onednn.qconv_prepack(
        *(integers, scale, call.read.scale, call.read.zero_point, list(stride), list(geometry.padding)),
        *(list(geometry.dilation), geometry.groups, shape),
    )
    return convolution


# what torch.compile sees of a layer: one operator over plain tensors, which leaves its inputs as they are
_LIBRARY = torch.library.Library("chainfx", "DEF")
_LIBRARY.define(
    "integer_layer(Tensor codes, Tensor weight, Tensor scale, Tensor? bias, Tensor? added, str call) -> Tensor"
)


def _operator(
    codes: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, added: Tensor | None, call: str
) -> Tensor:
    copied = None if added is None else added.clone(memory_format=torch.channels_last)
    return run_layer(call, codes, weight, scale, bias, copied)


_LIBRARY.impl("integer_layer", _operator, "CPU")


@torch.library.register_fake("chainfx::integer_layer")  # type: ignore[untyped-decorator]  # of torch
def _shape(
    codes: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, added: Tensor | None, call: str
) -> Tensor:
    geometry, written = LayerCall.of_text(call).geometry, LayerCall.of_text(call).written
    dtype = torch.float32 if written is None else torch.uint8
    if geometry is None:
        return codes.new_empty((*codes.shape[:-1], weight.shape[0]), dtype=dtype)
    sizes: list[Any] = [
        (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for size, pad, dilation, kernel, stride in zip(
            codes.shape[2:], geometry.padding, geometry.dilation, weight.shape[2:], geometry.stride, strict=True
        )
    ]
    shape = (codes.shape[0], weight.shape[0], *sizes)
    return torch.empty(shape, dtype=dtype, device=codes.device, memory_format=torch.channels_last)
