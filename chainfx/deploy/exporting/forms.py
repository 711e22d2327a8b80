"""What an exported graph calls for quantized weights and activations: torch arithmetic, or nodes of ONNX."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["INDUCTOR", "ONNX", "PLAIN", "Form"]

_GREATEST = 255  # of uint8, where QuantizeLinear stops by itself


@dataclass(frozen=True, slots=True)
class Form:
    """The functions that a format has for quantized numbers.

    ``decode``: codes of a weight (int8), a scale for each slice of an axis (or one, of shape ()), and the axis in; the
    values out. ``round``: an activation, the scale (shape ()) and the zero point (uint8, shape ()) of its codes, the
    greatest code, and whether it keeps nothing but the sign in; the values of the nearest codes out. ``literal``: scale
    and zero point of an activation are numbers in the graph, and a weight has a zero point (int32, 0) stored for each
    slice of the axis, which ``decode`` takes as a fourth argument.
    """

    decode: Callable[..., Tensor]
    round: Callable[..., Tensor]
    literal: bool = False


def _decode_plain(codes: Tensor, scale: Tensor, axis: int) -> Tensor:
    return codes.to(scale.dtype) * _along(scale, axis, codes.dim())


def _round_plain(values: Tensor, scale: Tensor, zero_point: Tensor, greatest: int, signs: bool) -> Tensor:
    if signs:
        return torch.where(values >= 0, scale, -scale).to(values.dtype)
    codes = torch.clamp(torch.round(values / scale) + zero_point, 0, greatest)
    return ((codes - zero_point) * scale).to(values.dtype)


def _decode_onnx(codes: Tensor, scale: Tensor, axis: int) -> Tensor:
    zero_points = torch.zeros_like(scale, dtype=torch.int8)
    return _node("DequantizeLinear", (codes, scale, zero_points), scale.dtype, codes, {"axis": axis})


def _round_onnx(values: Tensor, scale: Tensor, zero_point: Tensor, greatest: int, signs: bool) -> Tensor:
    if signs:
        codes = (values >= 0).to(torch.uint8) * 2
    else:
        codes = _node("QuantizeLinear", (values, scale, zero_point), torch.uint8, values)
        if greatest < _GREATEST:  # on the codes and not before: a runtime joins a layer with what quantizes its result
            codes = _node(
                "Clip",
                (codes, None, torch.tensor(greatest, dtype=torch.uint8, device=values.device)),
                torch.uint8,
                values,
            )
    return _node("DequantizeLinear", (codes, scale, zero_point), values.dtype, values)


def _decode_inductor(codes: Tensor, scale: Tensor, axis: int, zero_points: Tensor) -> Tensor:
    made: Tensor = torch.ops.quantized_decomposed.dequantize_per_channel.default(
        codes, scale, zero_points, axis, -128, 127, torch.int8
    )
    return made


def _round_inductor(values: Tensor, scale: float, zero_point: int, greatest: int, signs: bool) -> Tensor:
    if signs:
        codes = (values >= 0).to(torch.uint8) * 2
    else:
        codes = torch.ops.quantized_decomposed.quantize_per_tensor.default(
            values, scale, zero_point, 0, _GREATEST, torch.uint8
        )
        if greatest < _GREATEST:  # the kernel of the layer before takes the quantizer over, and stops at 255
            codes = codes.clamp(max=greatest)
    made: Tensor = torch.ops.quantized_decomposed.dequantize_per_tensor.default(
        codes, scale, zero_point, 0, _GREATEST, torch.uint8
    )
    return made


def _node(
    name: str,
    inputs: tuple[Tensor | None, ...],
    dtype: torch.dtype,
    like: Tensor,
    attributes: dict[str, Any] | None = None,
) -> Tensor:
    """One node of ONNX, whose result has the shape of ``like``."""
    made: Tensor = torch.onnx.ops.symbolic(name, inputs, attributes, dtype=dtype, shape=like.shape)
    return made


def _along(scale: Tensor, axis: int, dims: int) -> Tensor:
    """A scale (C,) in the shape that multiplies the slices of an axis; one of shape () as it is."""
    return scale.reshape([-1 if dim == axis else 1 for dim in range(dims)]) if scale.dim() else scale


PLAIN = Form(_decode_plain, _round_plain)
ONNX = Form(_decode_onnx, _round_onnx)
INDUCTOR = Form(_decode_inductor, _round_inductor, literal=True)
"""The operators that Inductor's passes for x86 look for, which :mod:`chainfx.deploy.exporting.inductor` loads."""
