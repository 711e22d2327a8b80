"""Lossless codes for the tensors of a network: what makes an artefact as small as its table says.

Arrays in, bytes out, and back: this room knows of no graph. :func:`encode_tensor` tries every form there is for the
places of the weights that are not masked (bitmap, rows and columns, distances, runs) and every code for the symbols
(fixed width, Huffman, arithmetic), and takes the smallest; :func:`decode_tensor` reads what it wrote. What is damaged,
cut short or of a kind that this version does not know is one :class:`~chainfx.errors.ArtifactError`.
"""

from chainfx.coding.reading import Reader, varint
from chainfx.coding.tensors import CODERS, Coder, coded_bytes, decode_tensor, encode_tensor

__all__ = ["CODERS", "Coder", "Reader", "coded_bytes", "decode_tensor", "encode_tensor", "varint"]
