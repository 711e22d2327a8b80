"""Random crops, flips, turns and sizes of a batch of images, on tensors, by an own generator."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from chainfx.errors import InputError
from chainfx.passes import is_number

__all__ = ["Augment"]

_HALF_TURN = 180


@dataclass(frozen=True)
class Augment:
    """Pad by ``padding`` pixels of zero (the mean, after normalisation), crop at random, and flip half of the images.

    The usual augmentation for 32x32 images (He et al. 2016, sec. 4.2): 4 pixels and flips. ``degrees``: images are also
    turned by up to so many, either way. ``scale``: they are stretched by up to this share, in width and height apart,
    as 0.1 for 0.9 to 1.1 times. Both as Simard et al. 2003 do with digits; what comes in at the edges is zero.
    The shape does not change.

    >>> images = torch.rand(2, 3, 8, 8)
    >>> Augment(padding=1)(images, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 8, 8])
    """

    padding: int = 4
    flip: bool = True
    degrees: float = 0.0
    scale: float = 0.0

    def __post_init__(self) -> None:
        if type(self.padding) is not int:
            raise InputError(f"augment: padding={self.padding!r} is no whole number of pixels; use 0 for no crop.")
        if self.padding < 0:
            raise InputError(f"augment: padding={self.padding} is negative; use 0 for no crop.")
        if not is_number(self.degrees, 0) or self.degrees > _HALF_TURN:
            raise InputError(f"augment: degrees={self.degrees!r} is not from 0 to 180; use 0 to turn no image.")
        if not is_number(self.scale, 0) or self.scale >= 1:
            raise InputError(f"augment: scale={self.scale!r} is not from 0 to below 1; use 0 to stretch no image.")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Images (N, C, H, W) in, as many of the same shape out; each sample has its own crop, flip, turn and size."""
        if images.dim() != 4:
            raise InputError(
                f"augment: inputs of shape {tuple(images.shape)} are not images (N, C, H, W); train with augment=None."
            )
        if self.degrees or self.scale:
            images = self._warp(images, generator)
        if self.padding:
            images = self._crop(images, generator)
        if self.flip:
            flipped = torch.rand(len(images), generator=generator, device="cpu") < 0.5
            images = torch.where(
                flipped[:, None, None, None].to(images.device, non_blocking=True), images.flip(3), images
            )
        return images

    def _warp(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Turned and stretched about the middle, each pixel the mean of the four nearest, by how near they are."""
        count, _, height, width = images.shape
        drawn = 2 * torch.rand(3, count, generator=generator, device="cpu") - 1
        angles, (wide, high) = drawn[0] * math.radians(self.degrees), 1 + drawn[1:] * self.scale
        cosines, sines, zeros = angles.cos(), angles.sin(), torch.zeros(count, device="cpu")
        # where in the image a place of the result comes from, in units of half the width and half the height
        across = torch.stack([cosines / wide, sines * height / width / wide, zeros], 1)
        down = torch.stack([-sines * width / height / high, cosines / high, zeros], 1)
        places = torch.stack([across, down], 1).to(images, non_blocking=True)
        return F.grid_sample(
            images, F.affine_grid(places, list(images.shape), align_corners=False), align_corners=False
        )

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
