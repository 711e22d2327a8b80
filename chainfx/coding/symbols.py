"""Sequences of symbols of a byte as bytes: each code that fits is tried, and the smallest result is kept."""

from collections.abc import Callable, Mapping

import numpy as np

from chainfx.coding import arithmetic, huffman
from chainfx.coding.reading import Bytes, Reader, packed, unpacked
from chainfx.errors import ArtifactError

__all__ = ["decode_symbols", "encode_symbols"]

_CONSTANT, _FIXED, _HUFFMAN, _ARITHMETIC = range(4)


def encode_symbols(symbols: Bytes, *, adaptive: bool) -> bytes:
    """Symbols (n,) as a byte that names the code, and what the code makes of them; nothing for no symbols.

    ``adaptive``: arithmetic coding is tried too.
    """
    if not len(symbols):
        return b""
    greatest = int(symbols.max())
    if greatest == int(symbols.min()):
        return bytes([_CONSTANT, greatest])
    width = greatest.bit_length()
    tried = [bytes([_FIXED, width]) + packed(symbols, width), bytes([_HUFFMAN]) + huffman.encode(symbols)]
    if adaptive:
        tried.append(bytes([_ARITHMETIC]) + arithmetic.encode_symbols(symbols))
    return min(tried, key=len)


def decode_symbols(reader: Reader, count: int) -> Bytes:
    """The ``count`` symbols that :func:`encode_symbols` wrote."""
    if not count:
        return np.empty(0, np.uint8)
    code = reader.byte()
    if code not in _DECODERS:
        raise ArtifactError(
            f"a tensor has code {code} for its symbols, which this chainfx does not know; load it with a newer one."
        )
    return _DECODERS[code](reader, count)


def _constant(reader: Reader, count: int) -> Bytes:
    return np.full(count, reader.byte(), np.uint8)


def _fixed(reader: Reader, count: int) -> Bytes:
    width = reader.byte()
    if not 1 <= width <= 8:
        raise ArtifactError(f"a tensor has symbols of {width} bits, which are not of a byte; save the model again.")
    return unpacked(reader, width, count).astype(np.uint8)


_DECODERS: Mapping[int, Callable[[Reader, int], Bytes]] = {
    _CONSTANT: _constant,
    _FIXED: _fixed,
    _HUFFMAN: huffman.decode,
    _ARITHMETIC: arithmetic.decode_symbols,
}
