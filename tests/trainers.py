"""A trainer that does no work but the least that counts as training, and data on which a real one takes no time."""

import numpy as np
import torch
from torch import Tensor

from chainfx.errors import TuningError
from chainfx.passes.base import Epoch
from chainfx.training import Data, from_arrays


def few_digits() -> Data:
    """240 of scikit-learn's digits: 172 for training, 20 for validation and 48 for testing."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return from_arrays(found.images[:240].astype(np.uint8), found.target[:240])


class FakeTrainer:
    """Nudges the trainable parameters once; fails in the ``fail_at``-th tuning (from 1) with ``failure``."""

    def __init__(self, x: Tensor, *, fail_at: int = 0, failure: BaseException | None = None, name: str = "fake"):
        self.x, self.fail_at = x, fail_at
        self.failure = failure or TuningError("epoch 1, step 3: the loss is nan; lower the learning rate.")
        self.fingerprint = name
        self.requests = []

    def tune(self, graph_module, request, *, seed, on_epoch):
        self.requests.append(request)
        if len(self.requests) == self.fail_at:
            raise self.failure
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in graph_module.named_parameters():
                if request.parameters is None or name in request.parameters:
                    parameter.add_(0.001 * torch.randn(parameter.shape, generator=generator))
        on_epoch(Epoch(1, 1, 0.5, 0.9))

    def evaluate(self, graph_module):
        with torch.no_grad():
            return float((graph_module(self.x).argmax(1) == torch.arange(len(self.x)) % 10).float().mean())

    @property
    def calibration(self):
        return [(self.x,)]

    @property
    def validation(self):
        return [((self.x,), torch.arange(len(self.x)) % 10)]
