"""Why a way of capture failed, in one sentence: where in the user's code, why, and the ways out."""

import traceback
from pathlib import Path

import torch
from torch import nn

from chainfx.errors import CaptureError
from chainfx.ir.capture.compare import Difference, source_of
from chainfx.ir.capture.sizes import BATCH, DATA

__all__ = ["Differs", "Failure", "explained", "first_line", "user_frame"]


class Differs(Exception):  # noqa: N818
    """The graph computes something else than the model."""

    def __init__(self, difference: Difference) -> None:
        super().__init__(difference)
        self.difference = difference


class Failure(Exception):  # noqa: N818
    """One way that did not work: the path of the innermost module entered, and what was raised there."""

    def __init__(self, path: str, cause: Exception) -> None:
        super().__init__(path, cause)
        self.path = path
        self.cause = cause


def first_line(error: Exception) -> str:
    """The first line of what an exception says, or its name if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


_REASONS = {
    DATA: "needs a value that only the data give",
    BATCH: "needs a value that changes with the batch size",
}


def explained(model: nn.Module, failure: Failure) -> CaptureError:
    """The error that says where a model cannot be captured, why, and the ways out."""
    if isinstance(failure.cause, Differs):
        return _told(model, failure.cause.difference)
    reason = first_line(failure.cause)
    why = _REASONS.get(reason, f"raises {type(failure.cause).__name__} ({reason})")
    frame = user_frame(failure.cause)
    where = type(model).__name__ if frame is None else f"{type(model).__name__} at {frame.filename}:{frame.lineno}"
    code = "its forward" if frame is None else f"`{frame.line}`"
    instead = _way_out(reason, (frame and frame.line) or "")
    return CaptureError(
        f"cannot capture {where}: {code} {why}; {instead}move these lines into a submodule without parameters, which "
        "then stays one opaque node."
    )


def _way_out(reason: str, line: str) -> str:
    """What the code could do instead, by what stands in the way."""
    word = line.split(maxsplit=1)[0] if line else ""
    if reason == DATA and word == "while":
        return "run a number of steps that does not depend on the data, or "
    if reason == DATA and (word in ("if", "elif", "assert") or " if " in line):
        return "replace the branch by torch.where, or "
    if reason == DATA:
        return "compute it with tensors, without .item() and Python numbers, or "
    return "compute all samples at once, without a loop over the batch, or " if reason == BATCH else ""


def _told(model: nn.Module, found: Difference) -> CaptureError:
    """The one sentence on a graph that computes something else."""
    module = model.get_submodule(found.path)
    which = f"module {found.path!r} ({source_of(module)})" if found.path else source_of(module)
    does = f"raises {found.error} in place of the answer of " if found.error else "gives another answer than "
    return CaptureError(
        f"cannot capture {type(model).__name__} faithfully: {found.what}, its graph {does}{which}; tracing does not "
        "see code that changes views in place, keeps a state in attributes or draws random numbers of its own: write "
        "it without, or move it into a submodule without parameters, which then stays one opaque node."
    )


def user_frame(error: Exception) -> traceback.FrameSummary | None:
    """The innermost line of the traceback that belongs neither to torch nor to what captures."""
    rooms = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(rooms)]
    return frames[-1] if frames else None
