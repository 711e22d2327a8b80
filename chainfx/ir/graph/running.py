"""Running a network whatever goes on around it: autograd modes of the caller, tensors made in them, full memory.

And in silence: of a call that fails torch writes on the error stream before it raises; what it raises says enough.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

__all__ = ["called", "has_inference_tensors", "lacks_memory", "ordinary", "recording", "unlogged"]


def called(network: nn.Module, *inputs: Any) -> Any:
    """What a network gives for inputs, by position, as a plain call gives it.

    A graph that fails raises and prints nothing: a plain call of a ``GraphModule`` goes through a wrapper of torch.fx,
    which prints the traceback and the line of the generated code.
    """
    if isinstance(network, GraphModule) and not torch.compiler.is_compiling():
        return nn.Module.__call__(network, *inputs)
    return network(*inputs)


@contextmanager
def unlogged(logger: str) -> Iterator[None]:
    """Drop what this thread logs with the logger of that name; what other threads log passes."""
    thread = threading.get_ident()

    def passes(record: logging.LogRecord) -> bool:
        return record.thread != thread

    found = logging.getLogger(logger)
    found.addFilter(passes)
    try:
        yield
    finally:
        found.removeFilter(passes)


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
