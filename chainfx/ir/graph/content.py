"""The hash of a content: what names graphs, data and options wherever chainfx has to tell whether they are the same."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["content_hash"]


def content_hash(*parts: Any) -> str:
    """The SHA-256 of ``parts`` as 64 hexadecimal digits: equal for equal contents, in every process.

    A part is a tensor (its type, shape and elements count, not its device), a text, a number, a truth value, ``None``,
    a mapping with texts as keys (in any order), or an iterable of parts; lists, tuples and generators of equal parts
    have one hash. Raises :class:`TypeError` for anything else, whose content nobody could know.

    >>> content_hash("seed", 0)[:8], content_hash(["seed", 0]) == content_hash(("seed", 0))
    ('a2b6a7bc', True)
    """
    digest = hashlib.sha256()
    for part in parts:
        _feed(digest, part)
    return digest.hexdigest()


def _feed(digest: "hashlib._Hash", part: Any) -> None:
    """Add a part so that no two lists of parts give the same bytes: texts say their length, the others their end."""
    if isinstance(part, Tensor):
        digest.update(b"t")
        _feed(digest, f"{part.dtype} {tuple(part.shape)}")
        digest.update(_bytes_of(part))
    elif part is None or isinstance(part, str | int | float):
        text = repr(part).encode()
        digest.update(b"%d:" % len(text) + text)
    elif isinstance(part, Mapping):
        digest.update(b"{")
        for key in sorted(part):
            _feed(digest, key)
            _feed(digest, part[key])
        digest.update(b"}")
    elif isinstance(part, Iterable):
        digest.update(b"(")
        for item in part:
            _feed(digest, item)
        digest.update(b")")
    else:
        raise TypeError(f"{part!r} of type {type(part).__name__} has no content to hash; give tensors and plain values")


def _bytes_of(tensor: Tensor) -> memoryview:
    """The elements of a tensor row by row, without a copy if it is contiguous and on the CPU."""
    array: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return memoryview(array)
