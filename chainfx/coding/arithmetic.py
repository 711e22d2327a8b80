"""Adaptive arithmetic coding by the package ``constriction``: probabilities are learnt from what went before.

There is no table to store, and a probability need not be a power of a half. What a step learns from are whole blocks,
so that each is one call: blocks of symbols that grow by half, and rows of a matrix of places.
"""

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chainfx.coding.reading import Bytes, Reader, varint
from chainfx.errors import ArtifactError

__all__ = ["decode_places", "decode_symbols", "encode_places", "encode_symbols"]

_FIRST_BLOCK = 16
_PARTS_OF_A_ROW = 8
_TRUST = 2.0  # how many rows the density of the whole counts beside those of a column


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
    """Which elements of a matrix are there, each with a probability that its column and its row so far give."""
    encoder = _constriction().stream.queue.RangeEncoder()
    for part, row, shares in _shares(kept):
        encoder.encode(kept[row, part].astype(np.int32), _bernoulli(), shares)
    return _words(encoder)


def decode_places(reader: Reader, rows: int, columns: int) -> NDArray[np.bool_]:
    """The matrix that :func:`encode_places` wrote."""
    decoder = _decoder(reader)
    kept = np.zeros((rows, columns), np.bool_)
    for part, row, shares in _shares(kept):
        kept[row, part] = decoder.decode(_bernoulli(), shares)
    return kept


def _shares(kept: NDArray[np.bool_]) -> Any:
    """For each part of each row the probabilities of its elements, from the elements before it alone.

    An element's is (ones of its column + 2 d) / (rows so far + 2), d the density of all so far, times how much denser
    this row has been so far than such probabilities said.
    """
    rows, columns = kept.shape
    ones, total = np.zeros(columns), 0.5
    edges = np.linspace(0, columns, min(_PARTS_OF_A_ROW, columns) + 1).astype(int)
    for row in range(rows):
        density = total / (row * columns + 1.0)
        expected_of = (ones + _TRUST * density) / (row + _TRUST)
        seen = expected = 1.0
        for begin, end in pairwise(edges):
            part = slice(begin, end)
            yield part, row, np.clip(expected_of[part] * (seen / expected), 1e-4, 1 - 1e-4)
            seen += float(kept[row, part].sum())
            expected += float(expected_of[part].sum())
        ones += kept[row]
        total += float(kept[row].sum())


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
