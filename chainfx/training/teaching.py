"""A teacher that answers while a network is tuned, and remembers what it answered where that stays the same."""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Teacher"]

_MOST = 2**28  # bytes of remembered answers


class Teacher:
    """A network in eval mode that gives no gradients: what it answers to a batch.

    With ``caches`` the answers to the samples of data in memory are kept, up to 256 MB, so that it answers each sample
    once; for training data that are the same in every epoch. With ``tapped`` it gives the values of some
    nodes beside.
    """

    def __init__(self, network: nn.Module, samples: int, *, caches: bool, tapped: bool) -> None:
        self.network, self.samples, self.tapped = network.eval(), samples, tapped
        self.caches = caches and not tapped
        self._kept: tuple[Tensor, ...] = ()
        self._known = torch.zeros(samples, dtype=torch.bool, device="cpu")

    @torch.no_grad()
    def __call__(self, inputs: tuple[Tensor, ...], index: Tensor | None) -> tuple[Any, tuple[Tensor, ...]]:
        """What the teacher answers, and the values of its nodes."""
        if self.tapped:
            output, values = self.network(*inputs)
            return output, values
        if index is None or not self.caches:
            return self.network(*inputs), ()
        new = (~self._known[index]).nonzero()[:, 0]
        if len(new) == len(index):
            answer = self.network(*inputs)
            self._keep(answer, index)
            return answer, ()
        if len(new):
            here = new.to(inputs[0].device, non_blocking=True)
            self._keep(self.network(*(tensor[here] for tensor in inputs)), index[new])
        found = tuple(kept[index.to(kept.device, non_blocking=True)] for kept in self._kept)
        return (found if len(found) > 1 else found[0]), ()

    def _keep(self, answer: Any, index: Tensor) -> None:
        parts = tuple(answer) if isinstance(answer, tuple | list) else (answer,)
        fit = all(isinstance(part, Tensor) and len(part) == len(index) for part in parts)
        if not fit or sum(part[0].nbytes for part in parts) * self.samples > _MOST:
            self.caches = False
            return
        if not self._kept:
            self._kept = tuple(part.new_zeros((self.samples, *part.shape[1:])) for part in parts)
        for kept, part in zip(self._kept, parts, strict=True):
            kept[index.to(kept.device)] = part.to(kept.dtype)
        self._known[index] = True
