"""Encodings of a stored tensor: how many bits it takes, with its zeros or without them.

Without a mask every encoding but ``entropy`` is the ``dense`` one. With a mask of n elements, of which k are kept, and
weights of b bits:

``bitmap``: n bits for the mask and k b for the values.
``relative_index``: Deep Compression (Han et al. 2016, arXiv 1510.00149, sec. 2): every value with the number of zeros
before it in i = 4 bits, in row-major order; where 2**i or more zeros lie between, a filler zero stands in for every
2**i-th: (k + fillers) (b + i) bits. Another width than 4 is written ``relative_index:5``.
``entropy``: Shannon's bound on any code of single symbols: the codes of a quantized or shared weight, in which a masked
element is one more symbol. That is the entropy of the mask, n H(k / n), plus k times that of the codes that are kept. A
float weight is not coded: only its mask is.

``coded``: the bytes of the smallest of the real codes of :mod:`chainfx.coding`, with the coder of each marked weight.

Scales and codebooks are stored as they are under all of them but the last.
"""

import math
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.fx import Node

from chainfx.bitops.sparsity import kept_by
from chainfx.coding import Coder, coded_bytes
from chainfx.errors import CostError
from chainfx.ir.artifact import array_of
from chainfx.ir.graph import ops

__all__ = ["ENCODINGS", "Stored", "find_encoding"]

ENCODINGS = ("dense", "nominal", "bitmap", "relative_index", "entropy", "coded")
_INDEX_BITS = 4


class Stored(NamedTuple):
    """One way in which a tensor is stored and read.

    ``width``: bits of an element. ``extra``: bits of the scales beside it. ``role``: ``code`` for the integer codes of
    a weight. ``follows_widths``: whether it is the weight of a layer, whose quantizer decides the width. ``masks``: the
    masks (path, tensor) on the way to the layer. ``coding``: the ops on the way up to the one that codes or decodes.
    ``coder``: by what the artefact codes it, empty if it does not.
    """

    tensor: Tensor
    path: str
    width: int
    extra: int = 0
    role: Literal["plain", "code", "scale", "mask"] = "plain"
    follows_widths: bool = False
    masks: tuple[tuple[str, Tensor], ...] = ()
    coding: tuple[Node, ...] = ()
    coder: str = ""

    def kept(self) -> Tensor:
        """Which elements the masks leave, as booleans of the tensor's shape.

        Raises :class:`CostError` for masks without data.
        """
        return kept_by(self.masks)


def find_encoding(name: str) -> Callable[[Stored], int]:
    """The function that gives the bits of a stored tensor under the encoding of that name.

    Raises :class:`CostError` for a name that is no encoding, and for ``nominal``, which is not one of single tensors.
    """
    index_bits = re.fullmatch(r"relative_index(?::([1-9]\d?))?", name)
    if index_bits:
        bits = int(index_bits[1] or _INDEX_BITS)
        return lambda stored: _relative_index(stored, bits)
    if name not in _FUNCTIONS:
        raise CostError(
            f"there is no encoding named {name!r}; use {', '.join(ENCODINGS)}, "
            "or relative_index:5 for another number of index bits."
        )
    return _FUNCTIONS[name]


def _dense(stored: Stored) -> int:
    return stored.tensor.numel() * stored.width + stored.extra


def _bitmap(stored: Stored) -> int:
    if not stored.masks:  # the mask itself is a tensor of its own, of 1 bit an element
        return _dense(stored)
    return int(stored.kept().count_nonzero()) * stored.width + stored.extra


def _relative_index(stored: Stored, index_bits: int) -> int:
    if stored.role == "mask":
        return 0
    if not stored.masks:
        return _dense(stored)
    places = stored.kept().flatten().nonzero().flatten()
    distances = places.diff(prepend=places.new_tensor([-1]))
    fillers = int(((distances - 1) >> index_bits).sum())
    return (len(places) + fillers) * (stored.width + index_bits) + stored.extra


def _entropy(stored: Stored) -> int:
    if stored.role == "mask":
        return 0
    if not stored.masks and not stored.coding:
        return _dense(stored)
    kept = stored.kept() if stored.masks else None
    codes = _codes(stored)
    bits = 0.0
    if kept is not None:
        bits += _shannon(kept)
        codes = None if codes is None else codes[kept]
        values = int(kept.count_nonzero())
    else:
        values = stored.tensor.numel()
    return math.ceil(bits + (values * stored.width if codes is None else _shannon(codes))) + stored.extra


def _coded(stored: Stored) -> int:
    if not stored.coder:  # what is no weight lies in the same file, in the smallest code of any chainfx
        return 8 * coded_bytes(array_of(stored.tensor.cpu()))
    if stored.role == "mask":
        return 0
    codes = _codes(stored)
    values = (stored.tensor.detach() if codes is None else codes.to(torch.uint8)).cpu()
    kept = stored.kept().cpu().numpy() if stored.masks else None
    return 8 * coded_bytes(array_of(values), kept, cast(Coder, stored.coder)) + stored.extra


def _codes(stored: Stored) -> Tensor | None:
    """The codes of a weight, of its shape; ``None`` if it is not coded."""
    if not stored.coding:
        return None
    if stored.tensor.is_meta:
        raise CostError(
            f"the entropy of {stored.path!r} depends on its values, which it does not have on the meta device; "
            "count the network with its data, or leave out encoding 'entropy'."
        )
    *below, coder = stored.coding
    if coder.target is not ops.quantize_weight:
        return stored.tensor
    value = stored.tensor.detach()
    for _, mask in stored.masks[: len(below)]:
        value = value * mask
    literals: tuple[Any, ...] = coder.args[1:]
    codes, _ = ops.encode_weight(value, *literals)
    return codes


def _shannon(symbols: Tensor) -> float:
    """Bits of all symbols together at the entropy of their distribution: sum over symbols of c log2(n / c)."""
    counts = torch.unique(symbols, return_counts=True)[1].double()
    return float((counts * (counts.sum() / counts).log2()).sum())


_FUNCTIONS: dict[str, Callable[[Stored], int]] = {
    "dense": _dense,
    "bitmap": _bitmap,
    "entropy": _entropy,
    "coded": _coded,
}
