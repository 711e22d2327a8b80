"""What a BatchNorm in eval mode computes: a scale and a shift for each channel."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["BATCH_NORMS", "affine_of"]

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""The classes that are a BatchNorm and nothing else; one that derives from them may do more."""


def affine_of(norm: _BatchNorm) -> tuple[Tensor, Tensor, Tensor]:
    """The scale ``gamma / sqrt(var + eps)``, the mean and ``beta`` of a BatchNorm, in float64, each of shape (C,).

    In eval mode it gives ``scale * (x - mean) + beta``. It must have running statistics.
    """
    state = {name: value.detach().double() for name, value in norm.state_dict().items()}
    mean, variance = state["running_mean"], state["running_var"]
    gamma, beta = state.get("weight", torch.ones_like(mean)), state.get("bias", torch.zeros_like(mean))
    return gamma / torch.sqrt(variance + norm.eps), mean, beta
