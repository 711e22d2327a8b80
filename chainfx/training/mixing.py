"""Mixup and cutout: what is done to a batch on its way into the network, on the device."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from chainfx.training.data import Batch

__all__ = ["Mixing"]


class Mixing:
    """Mixup with a parameter ``alpha`` (Zhang et al. 2018), and a square of zeros of ``side`` pixels in every image.

    Each is left out at 0. Mixed are inputs of floating point: a share of every sample and the rest of another one of
    the batch, with a share drawn from Beta(alpha, alpha) once a batch.
    """

    def __init__(self, alpha: float, side: int, generator: torch.Generator) -> None:
        self.alpha, self.side, self.generator = alpha, side, generator

    def __bool__(self) -> bool:
        return self.alpha > 0 or self.side > 0

    def __call__(self, batch: Batch) -> tuple[tuple[Tensor, ...], Any, Any, float]:
        """The inputs, the targets, the targets of what was mixed in (or ``None``), and the share of the first."""
        inputs, targets = batch
        if self.side:
            inputs = tuple(self._cut(tensor) if tensor.dim() == 4 else tensor for tensor in inputs)
        if not self.alpha:
            return inputs, targets, None, 1.0
        share = self._share()
        order = torch.randperm(len(inputs[0]), generator=self.generator, device="cpu").to(
            inputs[0].device, non_blocking=True
        )
        mixed = tuple(x * share + x[order] * (1 - share) if x.is_floating_point() else x for x in inputs)
        return mixed, targets, tree_map_only(Tensor, lambda tensor: tensor[order], targets), share

    def _share(self) -> float:
        """From Beta(alpha, alpha), as the quotient of two gamma variables of one's own generator."""
        shape = torch.full((2,), self.alpha, device="cpu")
        first, second = torch._standard_gamma(shape, generator=self.generator).clamp_min(1e-9).tolist()
        return float(first / (first + second))

    def _cut(self, images: Tensor) -> Tensor:
        count, _, height, width = images.shape
        drawn = torch.rand(2, count, 1, generator=self.generator, device="cpu").to(images.device, non_blocking=True)
        inside = []
        for place, size in zip(drawn, (height, width), strict=True):
            start = (place * size - self.side / 2).round()
            steps = torch.arange(size, device=images.device)
            inside.append((steps >= start) & (steps < start + self.side))
        return images.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.0)
