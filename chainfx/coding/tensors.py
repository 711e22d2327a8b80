"""Tensors as bytes: where their elements are, and what they are, each coded in the smallest way."""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from chainfx.coding.places import decode_places, encode_places
from chainfx.coding.reading import Reader
from chainfx.coding.symbols import decode_symbols, encode_symbols
from chainfx.errors import ArtifactError

__all__ = ["CODERS", "Coder", "coded_bytes", "decode_tensor", "encode_tensor"]

Coder = Literal["static", "adaptive"]
"""Which codes may be taken: those that any chainfx reads, or also arithmetic coding by the package constriction."""

CODERS: tuple[Coder, ...] = get_args(Coder)
"""The names of the coders."""

_RAW, _PLANES, _SPARSE, _ZERO_SYMBOL, _SHORT = range(5)


def encode_tensor(values: NDArray[Any], kept: NDArray[np.bool_] | None = None, coder: Coder = "static") -> bytes:
    """The bytes of a tensor, whose shape and type the reader has to know, and of its mask if there is one.

    ``kept``: which elements a mask leaves (bool, the same shape); the others are not stored, and are 0 when they are
    read. Numbers of several bytes are split into planes, the first bytes of all, the second ones, and so on, so that
    what is alike among floats, their exponents, lies together.

    >>> import numpy as np
    >>> codes = np.zeros((100, 100), np.uint8)
    >>> codes[0] = 7
    >>> len(codes.tobytes()), len(encode_tensor(codes)) < 1300  # about a bit for each
    (10000, True)
    """
    adaptive = coder == "adaptive"
    values = np.ascontiguousarray(values)
    if kept is None:
        tried = [bytes([_RAW]) + values.tobytes()] if values.size else [bytes([_RAW])]
        if values.size:
            tried.append(bytes([_PLANES]) + _planes(values.reshape(-1), adaptive))
            zeros = _zero_bytes(values)
            tried.append(bytes([_SHORT, zeros]) + _bytewise(values)[:, zeros:].tobytes())
        return min(tried, key=len)
    stored = values[kept]
    tried = [bytes([_SPARSE]) + encode_places(kept, adaptive=adaptive) + _planes(stored, adaptive)]
    if values.dtype == np.uint8 and stored.size and int(stored.max()) < 255:
        symbols = np.where(kept, values + 1, 0).reshape(-1).astype(np.uint8)
        tried.append(bytes([_ZERO_SYMBOL]) + encode_symbols(symbols, adaptive=adaptive))
    return min(tried, key=len)


def decode_tensor(
    reader: Reader, shape: Sequence[int], dtype: "np.dtype[Any]", *, masked: bool
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """The tensor that :func:`encode_tensor` wrote, and the mask if it was given one."""
    form, size = reader.byte(), math.prod(shape)
    if form in (_RAW, _PLANES) and not masked:
        if form == _RAW:
            return np.frombuffer(reader.take(size * dtype.itemsize), dtype).reshape(shape).copy(), None
        return _read_planes(reader, size, dtype).reshape(shape), None
    if form == _SHORT and not masked:
        return _read_short(reader, size, dtype).reshape(shape), None
    if form == _SPARSE and masked:
        kept = decode_places(reader, shape)
        values = np.zeros(shape, dtype)
        values[kept] = _read_planes(reader, int(kept.sum()), dtype)
        return values, kept
    if form == _ZERO_SYMBOL and masked and dtype == np.uint8:
        symbols = decode_symbols(reader, size).reshape(shape)
        return np.where(symbols > 0, symbols - 1, 0).astype(np.uint8), symbols > 0
    raise ArtifactError(
        f"a tensor is stored in form {form}, which this chainfx does not know; load it with a newer one."
    )


def coded_bytes(values: NDArray[Any], kept: NDArray[np.bool_] | None = None, coder: Coder = "static") -> int:
    """How many bytes :func:`encode_tensor` gives."""
    return len(encode_tensor(values, kept, coder))


def _bytewise(values: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of each number, the lowest first (n, size of a number)."""
    flat = values.reshape(-1)
    return flat.astype(values.dtype.newbyteorder("<")).view(np.uint8).reshape(len(flat), values.itemsize)


def _zero_bytes(values: NDArray[Any]) -> int:
    """How many of the lowest bytes are 0 in every number, as in floats that were rounded to a shorter type."""
    used = _bytewise(values).any(0)
    return int(used.argmax()) if used.any() else values.itemsize


def _read_short(reader: Reader, count: int, dtype: "np.dtype[Any]") -> NDArray[Any]:
    zeros = reader.byte()
    if zeros > dtype.itemsize:
        raise ArtifactError(f"a tensor leaves {zeros} bytes of each number out, which has fewer; save the model again.")
    found = np.zeros((count, dtype.itemsize), np.uint8)
    stored = dtype.itemsize - zeros
    found[:, zeros:] = np.frombuffer(reader.take(count * stored), np.uint8).reshape(count, stored)
    return found.view(dtype.newbyteorder("<")).reshape(count).astype(dtype)


def _planes(values: NDArray[Any], adaptive: bool) -> bytes:
    """Each byte of the numbers (n,) as a sequence of symbols, one sequence after the other."""
    planes = _bytewise(values).T
    return b"".join(encode_symbols(np.ascontiguousarray(plane), adaptive=adaptive) for plane in planes)


def _read_planes(reader: Reader, count: int, dtype: "np.dtype[Any]") -> NDArray[Any]:
    planes = [decode_symbols(reader, count) for _ in range(dtype.itemsize)]
    return np.ascontiguousarray(np.stack(planes, axis=1)).view(dtype.newbyteorder("<")).reshape(count).astype(dtype)
