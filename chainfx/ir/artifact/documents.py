"""JSON files that show when they were changed or cut short: each carries the SHA-256 sum of its own content."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chainfx.errors import ArtifactError

__all__ = ["FORMAT", "digest_of", "make_folder", "read_document", "write_document"]

FORMAT = 1
"""The number of the file format that this chainfx writes and reads; every JSON file carries it."""


def make_folder(folder: Path) -> None:
    """Make a folder to save in, and those above it; raises :class:`~chainfx.errors.ArtifactError` if it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ArtifactError(f"{folder} is or lies in a file; give a folder to save in.") from error
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be made a folder: {error.strerror}; give another.") from error


def write_document(path: Path, body: Mapping[str, Any]) -> str:
    """Write plain JSON with its format and SHA-256 sum, and return the sum; a reader sees all of it or nothing."""
    content = {"format": FORMAT, **body}
    digest = digest_of(content)
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(json.dumps({"sha256": digest, **content}, separators=(",", ":")))
    temporary.replace(path)
    return digest


def read_document(path: Path, expected: str | None = None) -> dict[str, Any]:
    """The content that :func:`write_document` wrote, with its format.

    ``expected``: the sum that :func:`write_document` returned, where it was noted elsewhere. Raises
    :class:`~chainfx.errors.ArtifactError` if the file is missing, of another format, or not as it was written.
    """
    try:
        body = dict(json.loads(path.read_text()))
        claimed = body.pop("sha256")
    except NotADirectoryError as error:
        raise ArtifactError(f"{path.parent} is a file; give the folder that save() wrote.") from error
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist; give the folder that save() wrote.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path} is not a chainfx {path.stem} or is cut short; save the model again.") from error
    if body.get("format") != FORMAT:
        raise ArtifactError(f"{path} has format {body.get('format')!r}, this chainfx reads {FORMAT}; save it again.")
    if digest_of(body) != claimed or expected not in (None, claimed):
        raise ArtifactError(f"{path} was changed after it was saved (its SHA-256 differs); save the model again.")
    return body


def digest_of(body: Mapping[str, Any]) -> str:
    """The SHA-256 sum of plain JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
