"""Running a network whatever goes on around it: autograd modes of the caller, tensors made in them, full memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["has_inference_tensors", "lacks_memory", "ordinary", "recording"]


@contextmanager
def recording() -> Iterator[None]:
    """Leave ``torch.no_grad()`` and ``torch.inference_mode()`` of the caller: gradients are recorded inside.

    >>> with torch.inference_mode(), recording():
    ...     torch.ones(2).is_inference()
    False
    """
    with torch.inference_mode(False), torch.enable_grad():
        yield


def ordinary(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy that gradients can go through of one that was made in ``torch.inference_mode()``.

    To be called outside of that mode.
    """
    return tensor.clone() if tensor.is_inference() else tensor


def has_inference_tensors(model: nn.Module) -> bool:
    """Whether a parameter or buffer was made in ``torch.inference_mode()``; a ``deepcopy`` outside has none."""
    return any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers()))


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, which on a CPU torch raises as a plain ``RuntimeError``."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
