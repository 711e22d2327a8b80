"""The number format of the result of each node.

Quantizer nodes say the format, and operators that only move values pass it on.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from chainfx.bitops.branches import either
from chainfx.bitops.reading import Reading
from chainfx.errors import CostError
from chainfx.ir.graph import FLOAT32, Format, Trait, names_with, ops, torchao_weight

__all__ = ["LAYER_KEYS", "format_of_dtype", "formats_of", "literal", "widest"]

# how many of the first arguments of an op are what its result holds elements of
_PASSED = {ops.mask_weight: 1, ops.coded_weight: 1, either: 2}
# the operators whose weight a quantizer gives its width
LAYER_KEYS = names_with(Trait.LAYER)

_TRANSPARENT = names_with(Trait.KEEPS_FORMAT)

# the position of the literal ``bits`` among the arguments of each quantizer
_BITS: dict[Any, int] = {ops.quantize_weight: 1, ops.quantize_activation: 2, ops.dequantize_weight: 2}


@functools.lru_cache(64)
def format_of_dtype(dtype: torch.dtype) -> Format:
    """The format that elements of a dtype are stored in."""
    return Format(dtype.itemsize * 8, "float" if dtype.is_floating_point or dtype.is_complex else "int")


def widest(formats: list[Format]) -> Format:
    """The format with the most bits, of equal ones a float; ``FLOAT32`` if there are no formats."""
    return max(formats, key=lambda f: (f.bits, f.kind == "float"), default=FLOAT32)


def formats_of(reading: Reading) -> dict[Node, Format]:
    """The format of the elements of every node that holds tensors, in one forward pass.

    Quantizers give their literal bits, as shifts where weights are powers of two; moving values, masking, max-pooling,
    ReLU and dropout keep the (widest) format of their tensor inputs; everything else, a cast of floating point numbers
    included, gives the width of its dtype, which is FLOAT32 for ordinary networks. Raises :class:`CostError` on a
    quantizer whose bits are not a literal whole number of at least 1.
    """
    formats: dict[Node, Format] = {}
    dtypes = {node: {tensor.dtype for tensor in tensors} for node, tensors in reading.tensors.items()}
    for node, tensors in reading.tensors.items():
        if node.op == "output" or not tensors:
            continue
        if node.op == "call_function" and node.target in _BITS:
            bits = literal(node, _BITS[node.target], "bits")
            formats[node] = Format(bits, "shift" if bits > 1 and "exponential" in node.args else "int")
            continue
        sources = reading.sources[node]
        if node.target is torchao_weight:  # of integers or of floats with few bits, as its codes are
            formats[node] = Format(literal(node, 2, "bits"), formats[sources[0]].kind)
            continue
        incoming = [formats[source] for source in _moved(node, reading, dtypes) if source in formats]
        keeps = any(dtypes[node] & dtypes[source] for source in sources) or any(f.kind != "float" for f in incoming)
        formats[node] = widest(incoming) if incoming and keeps else format_of_dtype(tensors[0].dtype)
    return formats


def _moved(node: Node, reading: Reading, dtypes: Mapping[Node, set[torch.dtype]]) -> Sequence[Any]:
    """The inputs whose elements a node hands on as they are, without the places that it takes them from."""
    if node.target in _PASSED:
        return node.args[: _PASSED[node.target]]
    if node not in reading.operators or reading.operators[node].name not in _TRANSPARENT:
        return ()
    sources = reading.sources[node]
    return [source for source in sources if dtypes[node] & dtypes[source]] or sources


def literal(node: Node, position: int, name: str) -> int:
    """An argument of a dialect op that has to be written in the graph as a whole number of at least 1.

    Raises :class:`CostError` if it is anything else.
    """
    value: Any = node.args[position] if position < len(node.args) else node.kwargs.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CostError(
            f"node {node.name!r} has {name}={value!r}; a quantizer needs its {name} as a whole number of at least 1."
        )
    return value
