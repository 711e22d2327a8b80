"""Random crops and flips of a batch of images, on tensors, by an own generator."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from chainfx.errors import InputError

__all__ = ["Augment"]


@dataclass(frozen=True)
class Augment:
    """Pad by ``padding`` pixels of zero (the mean, after normalisation), crop at random, and flip half of the images.

    The usual augmentation for 32x32 images (He et al. 2016, sec. 4.2): 4 pixels and flips. Sizes do not change.

    >>> images = torch.rand(2, 3, 8, 8)
    >>> Augment(padding=1)(images, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 8, 8])
    """

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise InputError(f"augment: padding={self.padding} is negative; use 0 for no crop.")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Images (N, C, H, W) in, as many of the same shape out; each sample has its own crop and flip."""
        if images.dim() != 4:
            raise InputError(
                f"augment: inputs of shape {tuple(images.shape)} are not images (N, C, H, W); train with augment=None."
            )
        if self.padding:
            images = self._crop(images, generator)
        if self.flip:
            flipped = torch.rand(len(images), generator=generator, device="cpu") < 0.5
            images = torch.where(
                flipped[:, None, None, None].to(images.device, non_blocking=True), images.flip(3), images
            )
        return images

    def _crop(self, images: Tensor, generator: torch.Generator) -> Tensor:
        count, _, height, width = images.shape
        corners = torch.randint(0, 2 * self.padding + 1, (2, count, 1), generator=generator, device="cpu")
        rows = (corners[0] + torch.arange(height, device="cpu"))[:, None, :, None].to(images.device, non_blocking=True)
        columns = (corners[1] + torch.arange(width, device="cpu"))[:, None, None, :].to(
            images.device, non_blocking=True
        )
        samples = torch.arange(count, device=images.device)[:, None, None, None]
        channels = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
        return F.pad(images, [self.padding] * 4)[samples, channels, rows, columns]
