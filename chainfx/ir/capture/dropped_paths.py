"""Modules that drop whole samples of a branch in train mode, as timm's ``DropPath`` does (Huang et al. 2016).

They do other operations in train mode than in eval mode, so that no graph can show what is inside. One that does what
torchvision's ``stochastic_depth`` does becomes a call of it, which all passes know.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from chainfx.ir.capture.hooks import watched_by
from chainfx.ir.graph import seeded

__all__ = ["dropping"]

_SAMPLES = 64


def dropping(module: nn.Module) -> partial[Any] | None:
    """The call of ``stochastic_depth`` that gives what a module gives in its current mode; ``None`` for any other.

    Both are tried in both modes on a few samples, from the same state of the random generator.
    """
    rate = vars(module).get("drop_prob")
    if type(rate) is not float or not 0 < rate <= 1 or len(module._modules) or len(module._parameters):
        return None
    from torchvision.ops.stochastic_depth import stochastic_depth

    function = inspect.unwrap(stochastic_depth)  # while a model is traced, calls of it by name are recorded
    mode = module.training
    try:
        for module.training in (False, True):
            known = partial(function, p=rate, mode="row", training=module.training)
            if not torch.equal(_tried(module), _tried(known)):
                return None
    except Exception:  # whatever a module raises that takes other inputs
        return None
    finally:
        module.training = mode
    return partial(function, p=rate, mode="row", training=mode)


def _tried(function: Callable[[Tensor], Any]) -> Any:
    with watched_by(None), torch.no_grad(), seeded(0):
        return function(torch.ones(_SAMPLES, 2, device="cpu"))
