"""Bytes read one field after the other, and bits packed without gaps."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chainfx.errors import ArtifactError

__all__ = ["Bytes", "Reader", "packed", "unpacked", "varint"]

Bytes = NDArray[np.uint8]

_MOST_VARINT_BYTES = 9


class Reader:
    """Reads bytes from the front; whoever asks for more than there are gets an :class:`ArtifactError`."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return len(self._data) - self._place

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        if count > self.left:
            raise ArtifactError(f"a coded tensor ends {count - self.left} bytes too early; save the model again.")
        self._place += count
        return self._data[self._place - count : self._place]

    def byte(self) -> int:
        """The next byte as a number."""
        return self.take(1)[0]

    def varint(self) -> int:
        """The next number that :func:`varint` wrote."""
        value = 0
        for place in range(_MOST_VARINT_BYTES):
            part = self.byte()
            value |= (part & 127) << (7 * place)
            if part < 128:
                return value
        raise ArtifactError("a coded tensor has a number that is too long; save the model again.")


def varint(value: int) -> bytes:
    """A number of at least 0 in as many bytes as it needs, seven bits each, the lowest first.

    >>> varint(5), varint(300), Reader(varint(300)).varint()
    (b'\\x05', b'\\xac\\x02', 300)
    """
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def packed(values: NDArray[Any], widths: NDArray[Any] | int) -> bytes:
    """Numbers of at most 32 bits one after the other, each in its own or in the same width, highest bit first."""
    if isinstance(widths, int):
        digits = np.unpackbits(values.astype(">u4").view(np.uint8).reshape(-1, 4), axis=1)[:, 32 - widths :]
        return np.packbits(digits.reshape(-1)).tobytes()
    ends = np.cumsum(widths)
    total = int(ends[-1]) if len(ends) else 0
    left = np.repeat(ends.astype(np.int32), widths) - np.arange(1, total + 1, dtype=np.int32)
    ones = np.repeat(values.astype(np.uint32), widths) >> left.astype(np.uint32) & 1
    return np.packbits(ones.astype(np.uint8)).tobytes()


def unpacked(reader: Reader, width: int, count: int) -> NDArray[np.int64]:
    """``count`` numbers of ``width`` bits each, as :func:`packed` wrote them."""
    data = np.frombuffer(reader.take(-(-width * count // 8)), np.uint8)
    digits = np.unpackbits(data, count=width * count).reshape(count, width).astype(np.int64)
    return digits @ (1 << np.arange(width - 1, -1, -1, dtype=np.int64))
