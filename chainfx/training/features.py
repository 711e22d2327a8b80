"""Feature matching: hints through a learnt 1x1 convolution (FitNets), and attention maps."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Hints", "attention_loss"]


class Hints(nn.Module):
    """The mean squares between feature maps (Romero et al. 2015, eq. 3), the own ones behind a learnt 1x1 layer.

    Maps of other heights and widths are averaged to the smaller of both.
    """

    def __init__(self, own: Sequence[torch.Size], taught: Sequence[torch.Size], device: torch.device) -> None:
        super().__init__()
        pairs = zip(own, taught, strict=True)
        self.regressors = nn.ModuleList(nn.Linear(mine[1], theirs[1], device=device) for mine, theirs in pairs)

    def forward(self, own: Sequence[Tensor], taught: Sequence[Tensor]) -> Tensor:
        """The loss, summed over the pairs; maps (N, C, ...)."""
        losses = []
        for regressor, mine, theirs in zip(self.regressors, own, taught, strict=True):
            small, wanted = _alike(mine.float(), theirs.float())
            losses.append(F.mse_loss(regressor(small.movedim(1, -1)).movedim(-1, 1), wanted))
        return torch.stack(losses).sum()


def attention_loss(own: Sequence[Tensor], taught: Sequence[Tensor]) -> Tensor:
    """The squared distance between attention maps, summed over the pairs (Zagoruyko, Komodakis 2017, eq. 2, p = 2).

    The attention map of a feature map (N, C, ...) is the mean square over its channels, as a vector of length 1.
    """
    pairs = (_alike(mine.float(), theirs.float()) for mine, theirs in zip(own, taught, strict=True))
    return torch.stack([(_attention(mine) - _attention(theirs)).square().mean() for mine, theirs in pairs]).sum()


def _attention(features: Tensor) -> Tensor:
    return F.normalize(features.square().mean(1).flatten(1), dim=1)


def _alike(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two batches of images of the same height and width, the smaller of both; other tensors as they are."""
    if first.dim() != 4 or second.dim() != 4:
        return first, second
    size = (min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3]))
    return F.adaptive_avg_pool2d(first, size), F.adaptive_avg_pool2d(second, size)
