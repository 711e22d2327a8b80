"""Huffman's code for symbols of a byte: lengths within a limit, canonical codewords, and many streams read at once.

A Huffman code is read one symbol after the other, for a codeword begins where the one before ends. To be fast in plain
numpy, long sequences are cut into up to 4,096 equal parts, and one symbol of every part is read at a time, by a table
of all that the next 12 bits can be.
"""

import heapq
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chainfx.coding.reading import Bytes, Reader, packed, unpacked, varint
from chainfx.errors import ArtifactError

__all__ = ["code_lengths", "decode", "encode"]

_LIMIT = 12  # bits of the longest codeword, so that a table of all of them stays small
_MOST_LANES = 4096
_BITS_A_LANE = 3000  # below that the lengths of the parts cost more than half a percent
_NIBBLE = 4
_WINDOW = (1 << _LIMIT) - 1
_DAMAGED = "a Huffman code is not as it was written; save the model again."


def code_lengths(counts: NDArray[Any], limit: int = _LIMIT) -> Bytes:
    """The lengths of the codewords of the best prefix code for symbols with these ``counts``, 0 for those of count 0.

    No length is above ``limit``: package-merge (Larmore and Hirschberg 1990), which gives Huffman's code where that is
    within the limit. Needs at least two symbols, and at most ``2**limit``.

    >>> code_lengths(np.array([5, 1, 1, 0, 2])).tolist()
    [1, 3, 3, 0, 2]
    """
    symbols = np.flatnonzero(counts)
    items = sorted((int(counts[symbol]), (int(symbol),)) for symbol in symbols)
    packages: list[tuple[int, tuple[int, ...]]] = []
    for _ in range(limit):
        merged = list(heapq.merge(items, packages))
        pairs = zip(merged[::2], merged[1::2], strict=False)
        packages = [(first[0] + second[0], first[1] + second[1]) for first, second in pairs]
    chosen = [symbol for _, members in packages[: len(symbols) - 1] for symbol in members]
    return np.bincount(chosen, minlength=len(counts)).astype(np.uint8)


def _codewords(lengths: Bytes) -> NDArray[np.uint32]:
    """The canonical codewords: of equal lengths the smaller symbol has the smaller one, shorter ones are smaller."""
    words = np.zeros(len(lengths), np.uint32)
    word = before = 0
    for symbol in np.lexsort((np.arange(len(lengths)), lengths)):
        length = int(lengths[symbol])
        if length:
            word <<= length - before
            words[symbol], before = word, length
            word += 1
    return words


def encode(symbols: Bytes) -> bytes:
    """Symbols (n,) of at least two kinds: the lengths of the codewords, those of the parts, and the parts."""
    counts = np.bincount(symbols)
    lengths = code_lengths(counts)
    widths = lengths[symbols]
    lanes = _lanes(int((counts * lengths).sum()), len(symbols))
    ends = _ends(len(symbols), lanes)
    sizes = np.diff(np.concatenate([[0], np.cumsum(widths, dtype=np.int64)])[ends])
    head = varint(len(counts)) + packed(lengths, _NIBBLE) + varint(lanes)
    least, width = int(sizes.min()), int(sizes.max() - sizes.min()).bit_length()
    head += varint(least) + bytes([width]) + (packed(sizes - least, width) if width else b"")
    return head + packed(_codewords(lengths)[symbols], widths)


def decode(reader: Reader, count: int) -> Bytes:
    """The ``count`` symbols that :func:`encode` wrote."""
    kinds = reader.varint()
    if not 2 <= kinds <= 256:
        raise ArtifactError(_DAMAGED)
    lengths = unpacked(reader, _NIBBLE, kinds).astype(np.uint8)
    if lengths.max() > _LIMIT or (2.0 ** -lengths[lengths > 0].astype(np.float64)).sum() != 1:
        raise ArtifactError(_DAMAGED)
    lanes = reader.varint()
    if not 1 <= lanes <= min(_MOST_LANES, count):
        raise ArtifactError(_DAMAGED)
    least, width = reader.varint(), reader.byte()
    if width > 32 or least > 8 * reader.left:
        raise ArtifactError(_DAMAGED)
    sizes = (unpacked(reader, width, lanes) if width else np.zeros(lanes, np.int64)) + least
    data = reader.take(-(-int(sizes.sum()) // 8))
    ends = np.cumsum(sizes)
    symbols, reached = _read(data, ends - sizes, _table(lengths), np.diff(_ends(count, lanes)))
    if not np.array_equal(reached, ends):
        raise ArtifactError(_DAMAGED)
    return symbols


def _lanes(bits: int, count: int) -> int:
    return max(1, min(_MOST_LANES, bits // _BITS_A_LANE, count))


def _ends(count: int, lanes: int) -> NDArray[np.int64]:
    """Where the parts begin and end (lanes + 1,): the first ones are longer by one symbol, if some are."""
    return np.arange(lanes + 1, dtype=np.int64) * (count // lanes) + np.minimum(np.arange(lanes + 1), count % lanes)


def _table(lengths: Bytes) -> NDArray[np.int32]:
    """For each of the ``2**12`` values of the next bits the symbol, and above its byte the length of its codeword."""
    table = np.zeros(1 << _LIMIT, np.int32)
    for symbol, word in enumerate(_codewords(lengths)):
        length = int(lengths[symbol])
        if length:
            begin = int(word) << (_LIMIT - length)
            table[begin : begin + (1 << (_LIMIT - length))] = symbol | length << 8
    return table


def _read(
    data: bytes, begins: NDArray[np.int64], table: NDArray[np.int32], counts: NDArray[np.int64]
) -> tuple[Bytes, NDArray[np.int64]]:
    """The symbols of all parts, and the bit at which each part ended; one symbol of every part is read at a time."""
    padded = np.frombuffer(data + b"\0\0\0\0", np.uint8).astype(np.int32)
    ahead = padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]  # 24 bits from each byte on, of which 7 may be read
    place, last = begins.copy(), np.int64(8 * len(data))
    steps, lanes = int(counts.max()), len(begins)
    found = np.empty((steps, lanes), np.uint8)
    longer = int((counts == steps).sum())  # the parts that have a symbol in the last step come first
    byte, bit = np.empty(lanes, np.int64), np.empty(lanes, np.int64)
    bits, entry = np.empty(lanes, np.int32), np.empty(lanes, np.int32)
    for step in range(steps):
        if step == counts[-1]:
            byte, bit, bits, entry = byte[:longer], bit[:longer], bits[:longer], entry[:longer]
        here = place[: len(byte)]
        np.right_shift(here, 3, out=byte)
        np.take(ahead, byte, out=bits, mode="clip")
        np.subtract(24 - _LIMIT, np.bitwise_and(here, 7, out=bit), out=bit)
        np.right_shift(bits, bit, out=bits, casting="unsafe")
        np.take(table, np.bitwise_and(bits, _WINDOW, out=bits), out=entry, mode="clip")
        found[step, : len(entry)] = entry
        np.add(here, np.right_shift(entry, 8, out=entry), out=here)
    place = np.minimum(place, last)
    if longer == lanes:
        return found.T.reshape(-1), place
    return found.T[np.arange(steps) < counts[:, None]], place
