"""Contrastive representation distillation (CRD) with its two memory banks (Tian, Krishnan, Isola, ICLR 2020)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chainfx.training.machine import averaged, gathered

__all__ = ["Contrast"]

_TEMPERATURE, _MOMENTUM, _SIZE, _TINY = 0.07, 0.5, 128, 1e-7


class Contrast(nn.Module):
    """The loss between what the last layers of a network and its teacher read, against samples of other classes.

    Both features go through a learnt linear layer to 128 numbers of length 1. Of every training sample two banks keep a
    running mean of these, with momentum 0.5. For each sample the positive is its own entry in the bank of the other
    network, and ``negatives`` entries of other classes are drawn, with replacement. With the score ``P = exp(<a, b> /
    0.07) / Z`` (``Z`` is the mean of the first batch times the number of samples, then fixed), ``Pn = 1 / samples`` and
    ``K`` negatives a side's loss is ``-mean(log(P / (P + K Pn)) + sum over negatives of log(K Pn / (P + K Pn)))`` (eq.
    18 and 19 there); :meth:`forward` gives the sum of both sides. ``classes``: those of all training samples (N,).
    In several processes the banks remember the samples of all of them, and so are the same everywhere.
    """

    classes: Tensor
    bank_own: Tensor
    bank_taught: Tensor
    scale_own: Tensor
    scale_taught: Tensor

    def __init__(self, own: int, taught: int, classes: Tensor, negatives: int, generator: torch.Generator) -> None:
        super().__init__()
        self.negatives, count, device = negatives, len(classes), classes.device
        self.embed_own = nn.Linear(own, _SIZE, device=device)
        self.embed_taught = nn.Linear(taught, _SIZE, device=device)
        self.generator = generator
        bound = 1 / math.sqrt(_SIZE / 3)
        self.register_buffer("classes", classes)
        for name in ("own", "taught"):
            drawn = torch.rand(count, _SIZE, generator=generator, device="cpu").to(device)
            self.register_buffer(f"bank_{name}", (2 * drawn - 1) * bound)
            self.register_buffer(f"scale_{name}", torch.zeros((), device=device))

    def forward(self, own: Tensor, taught: Tensor, index: Tensor) -> Tensor:
        """The loss of a batch: features (N, ...) of both networks, and the indices (N,) of the samples."""
        a = F.normalize(self.embed_own(own.flatten(1).float()), dim=1)
        b = F.normalize(self.embed_taught(taught.flatten(1).float()), dim=1)
        others = self._others(index)
        loss = self._side(a, self.bank_taught, index, others, self.scale_taught)
        loss = loss + self._side(b, self.bank_own, index, others, self.scale_own)
        places = gathered(index)
        self._remember(self.bank_own, gathered(a.detach()), places)
        self._remember(self.bank_taught, gathered(b.detach()), places)
        return loss

    def _others(self, index: Tensor) -> Tensor:
        """Indices (N, K) of samples of other classes than each of these; drawn anew where the class is the same."""
        shape, count = (len(index), self.negatives), len(self.classes)
        drawn = torch.randint(count, shape, generator=self.generator, device="cpu").to(index.device, non_blocking=True)
        for _ in range(4):  # a sample that is still of the same class then is one of 10,000 with ten classes
            again = torch.randint(count, shape, generator=self.generator, device="cpu").to(
                index.device, non_blocking=True
            )
            drawn = torch.where(self.classes[drawn] == self.classes[index][:, None], again, drawn)
        return drawn

    def _side(self, anchors: Tensor, bank: Tensor, index: Tensor, others: Tensor, scale: Tensor) -> Tensor:
        entries = bank[torch.cat([index[:, None], others], 1)]
        raw = torch.exp(torch.einsum("nd,nkd->nk", anchors, entries) / _TEMPERATURE)
        scale.copy_(torch.where(scale == 0, averaged(raw.detach().mean()) * len(bank), scale))
        scores = raw / scale
        noise = self.negatives / len(bank)
        positive = torch.log(scores[:, 0] / (scores[:, 0] + noise + _TINY))
        negative = torch.log(noise / (scores[:, 1:] + noise + _TINY)).sum(1)
        return -(positive + negative).mean()

    @staticmethod
    @torch.no_grad()
    def _remember(bank: Tensor, features: Tensor, index: Tensor) -> None:
        mixed = _MOMENTUM * bank[index] + (1 - _MOMENTUM) * features
        bank[index] = F.normalize(mixed, dim=1)
