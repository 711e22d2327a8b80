"""The command ``chainfx export``: a saved network as files that run without chainfx."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["export_artefact"]


def export_artefact(
    artefact: Annotated[Path, typer.Argument(help="The folder of a saved CompressedModel.")],
    path: Annotated[Path, typer.Argument(help="The folder to write to.")],
    file_format: Annotated[str, typer.Option("--format", help="onnx or pt2.")] = "onnx",
) -> None:
    """Write a compressed network as ONNX or torch.export files, which run without chainfx."""
    from chainfx.deploy import load

    load(artefact, engine="float").export(path, format=file_format)  # type: ignore[arg-type]  # export refuses other words itself
    typer.echo(f"exported to {path}")
