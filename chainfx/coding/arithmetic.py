"""Adaptive arithmetic coding by the package ``constriction``: probabilities are learnt from what went before.

There is no table to store, and a probability need not be a power of a half. What a step learns from are whole blocks,
so that each is one call: blocks of symbols that grow by half, and diagonals of a matrix of places.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chainfx.coding.reading import Bytes, Reader, varint
from chainfx.errors import ArtifactError

__all__ = ["decode_places", "decode_symbols", "encode_places", "encode_symbols", "has_few_diagonals"]

_FIRST_BLOCK = 16
_TRUSTS = (4, 16, 64)  # how many elements the density of the whole counts beside those of a row or column
_TRUST_OF_A_PAIR = 2.0
_LEAST = 1e-4  # of a probability
_MOST_DIAGONALS = 4096
_SMALL = 1 << 20


def encode_symbols(symbols: Bytes) -> bytes:
    """Symbols (n,) of a byte, learnt block by block from the counts of those before (half a count more for each)."""
    kinds = int(symbols.max()) + 1
    encoder = _constriction().stream.queue.RangeEncoder()
    for block in _blocks(len(symbols)):
        encoder.encode(symbols[block].astype(np.int32), _categorical(symbols[: block.start], kinds))
    return varint(kinds) + _words(encoder)


def decode_symbols(reader: Reader, count: int) -> Bytes:
    """The ``count`` symbols that :func:`encode_symbols` wrote."""
    kinds = reader.varint()
    if not 2 <= kinds <= 256:
        raise ArtifactError("an arithmetic code is not as it was written; save the model again.")
    decoder = _decoder(reader)
    symbols = np.empty(count, np.uint8)
    for block in _blocks(count):
        model = _categorical(symbols[: block.start], kinds)
        symbols[block] = decoder.decode(model, block.stop - block.start)
    return symbols


def encode_places(kept: NDArray[np.bool_]) -> bytes:
    """Which elements of a matrix are there, each with a probability that its surroundings so far give.

    The trust that takes the fewest bytes comes first; for large matrices, whose shares are soon known, one is tried.
    """
    tried = _TRUSTS if kept.size <= _SMALL else _TRUSTS[-1:]
    return min((bytes([trust]) + _coded_places(kept, trust) for trust in tried), key=len)


def decode_places(reader: Reader, rows: int, columns: int) -> NDArray[np.bool_]:
    """The matrix that :func:`encode_places` wrote."""
    trust = reader.byte()
    if trust not in _TRUSTS or not has_few_diagonals(rows, columns):
        raise ArtifactError("an arithmetic code is not as it was written; save the model again.")
    decoder = _decoder(reader)
    padded = np.zeros((rows + 1, columns + 1), np.bool_)
    for places, shares in _shares(padded, trust):
        padded.reshape(-1)[places] = decoder.decode(_bernoulli(), shares)
    return padded[1:, 1:].copy()


def has_few_diagonals(rows: int, columns: int) -> bool:
    """Whether a matrix is not so narrow that it takes many steps, each of them for few elements."""
    return rows + columns < _MOST_DIAGONALS + 64 * min(rows, columns)


def _coded_places(kept: NDArray[np.bool_], trust: int) -> bytes:
    encoder = _constriction().stream.queue.RangeEncoder()
    padded = np.pad(kept, ((1, 0), (1, 0)))
    for places, shares in _shares(padded, trust):
        encoder.encode(padded.reshape(-1)[places].astype(np.int32), _bernoulli(), shares)
    return _words(encoder)


def _shares(padded: NDArray[np.bool_], trust: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """For each diagonal the places of its elements and their probabilities, from the elements of those before alone.

    ``padded`` has a row and a column of zeros before the matrix. On a diagonal, from the lower left to the upper right,
    no element is beside another one, so that all of it is one step. The odds of an element are those of its column so
    far times those of its row so far, over those of all so far; the share of a column of which r elements are known is
    (ones + t d) / (r + t) with the ``trust`` t and the share d of all, and likewise of a row. How often there was more
    than such odds say, beside the same two neighbours (the one on the left and the one above), corrects them.

    Every number is made by steps that each machine rounds in the same way: a reader has to find the same ones.
    """
    rows, columns = padded.shape[0] - 1, padded.shape[1] - 1
    flat, width = padded.reshape(-1), columns + 1
    of_row, of_column = np.zeros(rows), np.zeros(columns)
    ones, known = 0.5, 1.0
    seen, expected = np.full(4, _TRUST_OF_A_PAIR), np.full(4, _TRUST_OF_A_PAIR)
    for diagonal in range(rows + columns - 1):
        row = np.arange(max(0, diagonal - columns + 1), min(rows - 1, diagonal) + 1)
        column = diagonal - row
        places = (row + 1) * width + column + 1
        share = ones / known
        odds = _odds((of_column[column] + trust * share) / (row + trust))
        odds *= _odds((of_row[row] + trust * share) / (column + trust)) / _odds(share)
        pair = flat[places - 1] + 2 * flat[places - width]
        corrected = odds * (seen[pair] / expected[pair])
        yield places, np.clip(corrected / (1 + corrected), _LEAST, 1 - _LEAST)
        found = flat[places]
        seen += np.bincount(pair, found, 4)
        expected += np.bincount(pair, odds / (1 + odds), 4)
        of_row[row] += found
        of_column[column] += found
        ones += int(found.sum())
        known += len(found)


def _odds(share: Any) -> Any:
    inside = np.clip(share, _LEAST, 1 - _LEAST)
    return inside / (1 - inside)


def _blocks(count: int) -> list[slice]:
    """Blocks that grow by half, so that few are needed and each learns from many."""
    blocks, begin, size = [], 0, _FIRST_BLOCK
    while begin < count:
        blocks.append(slice(begin, min(begin + size, count)))
        begin, size = begin + size, size + size // 2
    return blocks


def _categorical(before: Bytes, kinds: int) -> Any:
    counts = np.bincount(before, minlength=kinds).astype(np.float64)[:kinds] + 0.5
    return _constriction().stream.model.Categorical((counts / counts.sum()).astype(np.float32), perfect=False)


def _bernoulli() -> Any:
    return _constriction().stream.model.Bernoulli(perfect=False)


def _words(encoder: Any) -> bytes:
    """The compressed words, after their number; the bytes of the last one that are 0 are left out."""
    data: bytes = encoder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")
    return varint(len(data)) + data


def _decoder(reader: Reader) -> Any:
    data = reader.take(reader.varint())
    words = np.frombuffer(data + b"\0" * (-len(data) % 4), "<u4").astype(np.uint32)
    return _constriction().stream.queue.RangeDecoder(words)


def _constriction() -> Any:
    """The package; raises :class:`ArtifactError`, which says how to get it, where it is not installed."""
    try:
        import constriction
    except ImportError as error:
        raise ArtifactError(
            "adaptive arithmetic codes need the package constriction, which is not installed; "
            "run pip install 'chainfx[coding]', or save with Encode(coder='static')."
        ) from error
    return constriction
