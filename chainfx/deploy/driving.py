"""The segments of a network, run one after another on the samples that have not left, whether compiled or not.

A segment that ``torch.compile`` compiles becomes one graph for small batches and one for large ones. Three things see
to that. Only the code of segments is compiled, not the code between them, which hands over batches of any size. Inputs
are marked, so that the size of their first batch is not taken for the only one. And torch is told not to take one
sample for a case of its own; what is left is that it chooses kernels for convolutions on a CPU anew from 16 on.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._C._dynamo.eval_frame import (
    _FrameAction,
    _FrameExecStrategy,
    get_eval_frame_callback,
    set_code_exec_strategy,
)

from chainfx.ir.graph import leaving

__all__ = ["run_segments"]

_F = TypeVar("_F", bound=Callable[..., Any])


def _outside(function: _F, inner: _FrameAction = _FrameAction.DEFAULT) -> _F:
    """Keep the code of a function out of what ``torch.compile`` compiles; ``inner`` says what holds for what it calls.

    This is ``torch.compiler.disable(function, recursive=False)``, which would load the whole compiler for it.
    """
    set_code_exec_strategy(function.__code__, _FrameExecStrategy(_FrameAction.SKIP, inner))
    function._torchdynamo_disable = True  # type: ignore[attr-defined]  # what torch looks at
    return function


def run_segments(segments: nn.ModuleList, thresholds: Sequence[float], inputs: Sequence[Tensor]) -> Any:
    """What a network gives that was cut into segments: one more than it has thresholds, at which samples leave."""
    if thresholds:
        return _run_staged(segments, thresholds, inputs)
    return segments[0](*inputs) if torch.compiler.is_compiling() else _run(segments[0], inputs)


@_outside
def _run_staged(segments: nn.ModuleList, thresholds: Sequence[float], inputs: Sequence[Tensor]) -> Tensor:
    """Logits (N, classes): those of the first exit that is sure enough of a sample, or of the last segment."""
    rows, values = torch.arange(len(inputs[0]), device=inputs[0].device), list(inputs)
    answers: Tensor | None = None
    for segment, threshold in zip(segments, thresholds, strict=False):
        logits, sure, *values = _run(segment, values)
        answers = _written(answers, rows, logits)
        rows, values = _staying(rows, values, sure, threshold)
        if len(rows) == 0:
            return answers
    return _written(answers, rows, _run(segments[-1], values))


@_outside
def _run(segment: nn.Module, values: Sequence[Tensor]) -> Any:
    """What a segment gives; one that is compiled is told that the batch varies."""
    if segment._compiled_call_impl is None and not callable(get_eval_frame_callback()):
        return nn.Module.__call__(segment, *values)
    from torch._dynamo import maybe_mark_dynamic  # heavy, and loaded by now

    for value in values:
        if value.dim():
            maybe_mark_dynamic(value, 0)
    with _any_batch():
        return nn.Module.__call__(segment, *values)


def _any_batch() -> AbstractContextManager[object]:
    """Let graphs that are made meanwhile take single samples too, if other batches are as free."""
    from torch.fx.experimental import _config

    found: AbstractContextManager[object] = _config.patch(  # type: ignore[attr-defined]  # torch puts it there
        backed_size_oblivious=True
    )
    return found


def _staying(rows: Tensor, values: list[Tensor], sure: Tensor, threshold: float) -> tuple[Tensor, list[Tensor]]:
    """The rows and values of the samples that do not leave; the same tensors where none does."""
    stay = leaving(sure, threshold).logical_not().nonzero().squeeze(1)
    if len(stay) == len(rows):
        return rows, values
    return rows[stay], [value.index_select(0, stay) for value in values]


def _written(answers: Tensor | None, rows: Tensor, logits: Tensor) -> Tensor:
    """``answers`` (N, classes) with ``logits`` in the given rows; the logits themselves if they are for all rows."""
    if answers is None or len(rows) == len(answers):
        return logits
    return answers.index_copy(0, rows, logits)


for _each in (_any_batch, _staying, _written):
    _outside(_each, inner=_FrameAction.SKIP)
