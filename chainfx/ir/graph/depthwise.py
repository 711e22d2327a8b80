"""Depthwise convolution: one filter for each channel, without a number of groups among the arguments.

``F.conv2d`` takes the number of groups as an argument, which would have to change whenever a pass removes channels. The
functions here take that number from the shape of the weight, so that the call in the graph stays as it is.
"""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from chainfx.ir.graph.tracing import one_node

__all__ = ["DEPTHWISE", "depthwise_conv1d", "depthwise_conv2d", "depthwise_conv3d"]

Sizes = Sequence[int]


@one_node
def depthwise_conv1d(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sizes, padding: Sizes, dilation: Sizes
) -> Tensor:
    """``F.conv1d`` of (N, C, L) with as many groups as the weight (C, 1, k) has filters."""
    return F.conv1d(input, weight, bias, stride, padding, dilation, weight.shape[0])


@one_node
def depthwise_conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sizes, padding: Sizes, dilation: Sizes
) -> Tensor:
    """``F.conv2d`` of (N, C, H, W) with as many groups as the weight (C, 1, k, k) has filters."""
    return F.conv2d(input, weight, bias, stride, padding, dilation, weight.shape[0])


@one_node
def depthwise_conv3d(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sizes, padding: Sizes, dilation: Sizes
) -> Tensor:
    """``F.conv3d`` of (N, C, D, H, W) with as many groups as the weight (C, 1, k, k, k) has filters."""
    return F.conv3d(input, weight, bias, stride, padding, dilation, weight.shape[0])


DEPTHWISE: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    F.conv1d: depthwise_conv1d,
    F.conv2d: depthwise_conv2d,
    F.conv3d: depthwise_conv3d,
}
"""For each convolution of torch the function of this file that a graph in train form calls in its place.

It does so where the number of groups is that of the channels.
"""
