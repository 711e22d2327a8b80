"""What commands share: options that several of them take, and how a text is written."""

from pathlib import Path
from typing import Annotated

import typer

from chainfx.errors import InputError, why_no_file

__all__ = ["MODEL", "Json", "Shape", "write"]

MODEL = "A torchvision or chainfx.zoo name, package.module:factory, or the folder of a saved CompressedModel"
"""What the argument MODEL of a command may be."""

Shape = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="An input's shape with the batch, e.g. 1,3,224,224, or 1,16:int; once for each input. "
        "A saved model knows its own.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def write(text: str, output: Path | None = None) -> None:
    """Print a text, or write it to a file."""
    if output is None:
        typer.echo(text.rstrip("\n"))
        return
    try:
        output.write_text(text.rstrip("\n") + "\n")
    except OSError as error:
        raise InputError(
            f"--output {str(output)!r} cannot be written: {why_no_file(error)}; name a file in a folder that exists."
        ) from error
