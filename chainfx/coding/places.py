"""Sparse forms: which elements of a tensor are there, as bytes, in the form that takes the fewest.

``bitmap``: a bit for each element. ``rows``: for each row the number of elements and their columns (CSR), in fixed
widths. ``gaps``: the number of zeros before each element in 4, 5 or 8 bits, with a filler symbol for ``2**bits - 1``
zeros and no element (Han et al. 2016, arXiv 1510.00149, sec. 2), the symbols coded. ``runs``: the lengths of runs of
zeros and of elements in turn. ``shares``: an arithmetic code by how full the row and the column of an element are, and
by its neighbours. ``stripped``: without the rows and columns of nothing but zeros, the rest in one of the forms.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from chainfx.coding import arithmetic
from chainfx.coding.reading import Reader, packed, unpacked, varint
from chainfx.coding.symbols import decode_symbols, encode_symbols
from chainfx.errors import ArtifactError

__all__ = ["FORMS", "decode_places", "encode_places", "places_by_form"]

Kept = NDArray[np.bool_]

GAP_BITS = (4, 5, 8)
FORMS = ("bitmap", "rows", *(f"gaps-{bits}" for bits in GAP_BITS), "runs", "shares", "stripped")
_DAMAGED = "the places of a sparse tensor are not as they were written; save the model again."


def places_by_form(kept: Kept, *, adaptive: bool) -> dict[str, bytes]:
    """The bytes of every form, by its name; ``kept`` has the shape of the tensor."""
    flat, matrix = kept.reshape(-1), _as_matrix(kept)
    places = np.flatnonzero(flat)
    found = {"bitmap": np.packbits(flat).tobytes(), "rows": _rows(matrix)}
    for bits in GAP_BITS:
        found[f"gaps-{bits}"] = _escaped(np.diff(places, prepend=-1) - 1, 2**bits - 1, adaptive)
    found["runs"] = _escaped(_run_lengths(flat), 255, adaptive)
    if adaptive and arithmetic.has_few_diagonals(*matrix.shape):
        found["shares"] = arithmetic.encode_places(matrix)
    filled = [np.asarray(matrix.any(axis)) for axis in (1, 0)]
    if kept.any() and not all(each.all() for each in filled):
        lines = b"".join(encode_symbols(each.astype(np.uint8), adaptive=adaptive) for each in filled)
        found["stripped"] = lines + encode_places(matrix[np.ix_(*filled)], adaptive=adaptive)
    return found


def encode_places(kept: Kept, *, adaptive: bool) -> bytes:
    """A byte that names the form, the number of elements that are there, and the form of the fewest bytes."""
    found = places_by_form(kept, adaptive=adaptive)
    best = min(found, key=lambda form: len(found[form]))
    return bytes([FORMS.index(best)]) + varint(int(kept.sum())) + found[best]


def decode_places(reader: Reader, shape: Sequence[int]) -> Kept:
    """What :func:`encode_places` wrote, of the given shape."""
    form, count = reader.byte(), reader.varint()
    if form >= len(FORMS):
        raise ArtifactError(
            f"a tensor has its places in form {form}, which this chainfx does not know; load it with a newer one."
        )
    size = math.prod(shape)
    if count > size:
        raise ArtifactError(_DAMAGED)
    kept = _DECODERS[FORMS[form]](reader, tuple(shape), count)
    if int(kept.sum()) != count:
        raise ArtifactError(_DAMAGED)
    return kept.reshape(shape)


def _as_matrix(kept: Kept) -> Kept:
    """A tensor as rows along its first dimension."""
    return kept.reshape(_matrix_shape(kept.shape))


def _matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    return (1, math.prod(shape)) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))


def _bitmap(reader: Reader, shape: Sequence[int], count: int) -> Kept:
    size = math.prod(shape)
    return np.unpackbits(np.frombuffer(reader.take(-(-size // 8)), np.uint8), count=size).astype(np.bool_)


def _rows(matrix: Kept) -> bytes:
    counts, columns = matrix.sum(1), np.nonzero(matrix)[1]
    width = _width(matrix.shape[1])
    return packed(counts, _width(matrix.shape[1] + 1)) + packed(columns, width)


def _width(values: int) -> int:
    """The bits of a number below ``values``, at least 1."""
    return max((values - 1).bit_length(), 1)


def _read_rows(reader: Reader, shape: Sequence[int], count: int) -> Kept:
    rows, columns = _matrix_shape(shape)
    counts = unpacked(reader, _width(columns + 1), rows)
    if int(counts.sum()) != count:
        raise ArtifactError(_DAMAGED)
    read = unpacked(reader, _width(columns), count)
    kept = np.zeros((rows, columns), np.bool_)
    if count and int(read.max()) >= columns:
        raise ArtifactError(_DAMAGED)
    kept[np.repeat(np.arange(rows), counts), read] = True
    return kept


def _escaped(numbers: NDArray[np.int64], filler: int, adaptive: bool) -> bytes:
    """Numbers as symbols: ``filler`` for as many that are to be added to the next, and the rest below it."""
    fillers = numbers // filler
    symbols = np.full(int(fillers.sum()) + len(numbers), filler, np.uint8)
    symbols[np.cumsum(fillers + 1) - 1] = numbers % filler
    return varint(len(symbols)) + encode_symbols(symbols, adaptive=adaptive)


def _unescaped(reader: Reader, filler: int, size: int) -> NDArray[np.int64]:
    count = reader.varint()
    if count > size + size // filler + 2:
        raise ArtifactError(_DAMAGED)
    symbols = decode_symbols(reader, count)
    ends = np.flatnonzero(symbols != filler)
    if count and (not len(ends) or ends[-1] != count - 1):
        raise ArtifactError(_DAMAGED)
    fillers: NDArray[np.int64] = np.diff(ends, prepend=-1) - 1
    return symbols[ends].astype(np.int64) + filler * fillers


def _run_lengths(flat: Kept) -> NDArray[np.int64]:
    """The lengths of the runs in turn, the first of zeros, which may be of length 0."""
    changes = np.flatnonzero(np.diff(flat.astype(np.int8), prepend=np.int8(0)))
    return np.diff(changes, prepend=0, append=len(flat))


def _read_gaps(bits: int) -> "Callable[[Reader, Sequence[int], int], Kept]":
    def read(reader: Reader, shape: Sequence[int], count: int) -> Kept:
        size = math.prod(shape)
        places = np.cumsum(_unescaped(reader, 2**bits - 1, size) + 1) - 1
        kept = np.zeros(size, np.bool_)
        if len(places) and int(places[-1]) >= size:
            raise ArtifactError(_DAMAGED)
        kept[places] = True
        return kept

    return read


def _read_runs(reader: Reader, shape: Sequence[int], count: int) -> Kept:
    size = math.prod(shape)
    lengths = _unescaped(reader, 255, 2 * size + 2)
    if int(lengths.sum()) != size:
        raise ArtifactError(_DAMAGED)
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)


def _read_shares(reader: Reader, shape: Sequence[int], count: int) -> Kept:
    return arithmetic.decode_places(reader, *_matrix_shape(shape))


def _read_stripped(reader: Reader, shape: Sequence[int], count: int) -> Kept:
    filled = [decode_symbols(reader, size).astype(np.bool_) for size in _matrix_shape(shape)]
    inner = tuple(int(each.sum()) for each in filled)
    if inner == _matrix_shape(shape):
        raise ArtifactError(_DAMAGED)  # so that what is stripped gets smaller each time
    kept = np.zeros(_matrix_shape(shape), np.bool_)
    kept[np.ix_(*filled)] = decode_places(reader, inner)
    return kept


_DECODERS: Mapping[str, Callable[[Reader, Sequence[int], int], Kept]] = dict(
    zip(
        FORMS,
        (_bitmap, _read_rows, *(_read_gaps(bits) for bits in GAP_BITS), _read_runs, _read_shares, _read_stripped),
        strict=True,
    )
)
