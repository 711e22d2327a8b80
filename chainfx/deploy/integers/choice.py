"""Which layers of a network run in integers: a rule of what they are and what the machine can do, never a timing."""

from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node

from chainfx.deploy.integers.grids import grid_of
from chainfx.deploy.integers.kernels import Geometry
from chainfx.deploy.integers.machine import Machine
from chainfx.ir.graph import DEPTHWISE, Layer, input_of, operator_of, ops

__all__ = ["geometry_of", "obstacle", "weight_codes", "width_of"]

_FLAT = (F.linear,)
_SLIDING = (F.conv2d, DEPTHWISE[F.conv2d])


def obstacle(layer: Layer, machine: Machine, *, at_end: bool = False) -> str:
    """Why a layer of a graph with codes of weights cannot run in integers on a machine; empty if it can.

    ``at_end``: whether it is one of the first or last layers, whose widths passes set by options of their own.
    """
    if layer.node.target not in (*_FLAT, *_SLIDING):
        return f"{operator_of(layer.node).spelling} has no integer kernel"
    if _value_type(layer) is not torch.float32:
        return f"integer kernels give float32, and it computes in {_value_type(layer)}"
    coded = weight_codes(layer)
    if coded is None:
        return "its weight is not quantized"
    if layer.input_quantizer is None:
        return "its input is not quantized"
    bits, scheme = width_of(coded)
    if scheme == "dorefa" and bits == 8:
        return "the values of dorefa at 8 bits are no int8; quantize with 7 bits or scheme='tanh'"
    if scheme == "exponential" and bits > 4:
        return f"the powers of two of {bits} bits are no int8; quantize with 4 bits or fewer"
    if layer.bias is None and layer.bias_read is not None:
        return "its bias is computed"
    if layer.tensor.device.type != "cpu":
        return f"integer kernels are there for the CPU, and it is on {layer.tensor.device.type}"
    read = grid_of(layer.graph_module, layer.input_quantizer)
    reason = machine.obstacle(read.greatest, ops.weight_range(bits, scheme))
    return f"{reason} (Quantize(first=7, last=7) does both)" if reason and machine.kernels and at_end else reason


def weight_codes(layer: Layer) -> Node | None:
    """The ``dequantize_weight`` node that gives a layer its weight; ``None`` if that is not stored as such codes."""
    beneath = layer.weight_beneath_mask
    return beneath if beneath.target is ops.dequantize_weight and input_of(beneath).op == "get_attr" else None


def geometry_of(layer: Layer) -> Geometry | None:
    """How a convolution slides; ``None`` for a linear layer."""
    if layer.node.target in _FLAT:
        return None
    stride, padding, dilation = layer.options[:3]
    return Geometry(_pair(stride), _pair(padding), _pair(dilation), layer.groups)


def _pair(option: tuple[int, ...] | int) -> tuple[int, int]:
    return (option, option) if isinstance(option, int) else (option[0], option[-1])


def width_of(coded: Node) -> tuple[int, str]:
    """The bits and the scheme of a ``dequantize_weight`` node."""
    literals: tuple[Any, ...] = coded.args[2:]
    bits, scheme = literals
    return bits, scheme


def _value_type(layer: Layer) -> torch.dtype:
    dtype: torch.dtype = layer.node.meta["val"].dtype
    return dtype
