"""The memory that the activations of a network take at a time, at their widths."""

from collections.abc import Mapping

from torch.fx import Node

from chainfx.bitops.reading import Reading
from chainfx.ir.graph import Format, Trait, names_with, ops

__all__ = ["peak_activation_bits"]

_IN_PLACE = names_with(Trait.VIEW) | names_with(Trait.POINTWISE) | names_with(Trait.BROADCAST)
_QUANTIZERS = (ops.quantize_activation,)


def peak_activation_bits(reading: Reading, formats: Mapping[Node, Format]) -> int:
    """The most bits that the activations of a batch take at a time, its inputs included.

    A tensor lives from the node that makes it to the last node that reads it. Views, and element-wise work that is the
    only reader of its input, take no memory of their own: the result lies where the input lay, at the width of the last
    of them, so that what a layer hands to a quantizer is stored in the bits of that quantizer. Both branches of a
    ``torch.cond`` count.
    """
    readers: dict[Node, int] = {}  # how many nodes read values of a node, not only its sizes
    last: dict[Node, int] = {}  # the place of the last of them
    for index, (node, sources) in enumerate(reading.sources.items()):
        if node in formats or node.op == "output":
            for source in sources:
                readers[source], last[source] = readers.get(source, 0) + 1, index
    owner: dict[Node, int] = {}  # of each activation the place of the node that made the memory in which it lies
    bits: dict[int, int] = {}
    until: dict[int, int] = {}
    for index, (node, sources) in enumerate(reading.sources.items()):
        if node not in formats:
            continue
        owned = [each for each in sources if each in owner]
        if not owned and node.op != "placeholder":
            continue
        lone = next((each for each in owned if readers[each] == 1), None)
        first = owner[node] = owner[lone] if lone is not None and _in_place(node, reading) else index
        bits[first] = reading.elements[node] * formats[node].bits
        until[first] = max(until.get(first, first), last.get(node, 0))
    changes = [0] * (len(reading.sources) + 1)
    for first, size in bits.items():
        changes[first] += size
        changes[until[first] + 1] -= size
    alive = peak = 0
    for change in changes:
        alive += change
        peak = max(peak, alive)
    return peak


def _in_place(node: Node, reading: Reading) -> bool:
    """Whether the result of a node can lie in the memory of an input that nothing else reads."""
    if node not in reading.operators:
        return False
    return node.target in _QUANTIZERS or reading.operators[node].name in _IN_PLACE
