"""The command ``chainfx export``: a saved network as files that run without chainfx."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["export_artefact"]


def export_artefact(
    artefact: Annotated[Path, typer.Argument(help="The folder of a saved CompressedModel.")],
    path: Annotated[Path, typer.Argument(help="The folder to write to.")],
    file_format: Annotated[str, typer.Option("--format", help="onnx, pt2 or aoti.")] = "onnx",
    calibration: Annotated[
        Path | None,
        typer.Option(help="A batch of inputs, .npy or .npz by name: additions run in integers too in ONNX."),
    ] = None,
) -> None:
    """Write a compressed network as ONNX or torch.export files, which run without chainfx."""
    from chainfx.deploy import load

    batches = None if calibration is None else [_batch(calibration)]
    load(artefact, engine="float").export(path, format=file_format, calibration=batches)  # type: ignore[arg-type]  # export refuses other words itself
    typer.echo(f"exported to {path}")


def _batch(path: Path) -> "Tensor | dict[str, Tensor]":
    """One batch of inputs from a file of numpy."""
    import numpy as np
    import torch

    from chainfx.errors import InputError, why_no_file

    try:
        held = np.load(path, allow_pickle=False)
        return torch.from_numpy(held) if isinstance(held, np.ndarray) else {k: torch.from_numpy(held[k]) for k in held}
    except (OSError, ValueError, TypeError, EOFError) as error:
        why = why_no_file(error) if isinstance(error, OSError) else "it is no .npy or .npz file of numbers"
        raise InputError(f"the calibration {path} cannot be read: {why}; save a batch with numpy.save.") from error
