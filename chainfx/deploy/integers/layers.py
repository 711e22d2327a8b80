"""Modules of a graph in integers: what its nodes call, with codes of the network between them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chainfx.deploy.integers.kernels import BoundLayer, LayerCall

__all__ = ["IntegerLayer", "IntegerMaxPool"]


class IntegerLayer(nn.Module):
    """A convolution or linear layer with the BatchNorm, the addition, the activation and the quantizer behind it.

    ``weight``: codes as the network stores them (uint8, shared with it), or integers (int8); ``scale`` and ``bias``
    (out,) are float32. ``overwrites``: whether the second input, which is added, may be written over, because nobody
    reads it any more.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, call: LayerCall, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.call = call
        self.overwrites = False
        self._text = call.to_text()
        self._bound: BoundLayer | None = None
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, codes: Tensor, added: Tensor | None = None) -> Tensor:
        """Codes in, and codes or float32 values out, as :attr:`call` says."""
        if torch.compiler.is_compiling():
            result: Tensor = torch.ops.chainfx.integer_layer(
                codes, self.weight, self.scale, self.bias, added, self._text
            )
            return result
        tensors: Any = self._buffers.values()
        bound = self._bound
        if bound is None or not bound.is_of(*tensors):
            bound = self._bound = BoundLayer.of(self._text, codes, *tensors)
        if added is None:
            return bound.run(codes)
        return bound.run(codes, added if self.overwrites else added.clone())

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles are made of: a packed weight can be neither."""
        return {**self.__dict__, "_bound": None}


class IntegerMaxPool(nn.Module):
    """Max pooling of codes (N, C, H, W), which is max pooling of the values that they stand for.

    ``window``: the kernel's size, stride, padding and dilation, as lists.
    """

    def __init__(self, window: tuple[list[int], ...], ceil_mode: bool) -> None:
        super().__init__()
        self.window = window
        self.ceil_mode = ceil_mode

    def forward(self, codes: Tensor) -> Tensor:
        """Codes in, codes out."""
        if torch.compiler.is_compiling():  # the operator below has no form that it could compile
            options: Any = dict(zip(("kernel_size", "stride", "padding", "dilation"), self.window, strict=True))
            values: Tensor = F.max_pool2d(codes.float(), **options, ceil_mode=self.ceil_mode)
            return values.to(codes.dtype)
        pooled: Tensor = torch.ops.quantized.max_pool2d(
            codes.contiguous(memory_format=torch.channels_last), *self.window, self.ceil_mode
        )
        return pooled
