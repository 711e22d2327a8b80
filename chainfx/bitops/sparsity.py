"""How many zeros a weight has by the masks that lie between it and its layer, and how these zeros lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from chainfx.errors import CostError
from chainfx.ir.graph import get_tensor, is_dialect, ops

__all__ = ["DENSE", "Zeros", "kept_by", "stored_beside", "zeros_of"]


@dataclass(frozen=True, slots=True)
class Zeros:
    """How the zeros of a weight lie, and which shares of its elements, outputs and inputs are left.

    ``pattern``: empty without a mask, else ``unstructured`` or ``N:M``. An output or input is left if any of its
    weights is. Zeros that no mask says are not looked for: a count reads no weight.
    """

    pattern: str = ""
    nonzero: Fraction = Fraction(1)
    kept_outputs: Fraction = Fraction(1)
    kept_inputs: Fraction = Fraction(1)


DENSE = Zeros()


def zeros_of(graph_module: GraphModule, weight: Any, groups: int, *, transposed: bool) -> Zeros:
    """The zeros of the weight argument of a layer, which may be masked below and above its quantizer.

    The weight has the shape (outputs, inputs / groups, ...), transposed (inputs, outputs / groups, ...). Raises
    :class:`CostError` for a mask on the meta device.
    """
    masks: list[Node] = []
    node = weight
    while isinstance(node, Node) and is_dialect(node):
        if node.target is ops.mask_weight:
            masks.append(node)
        node = node.args[0]
    if not masks:
        return DENSE
    keep = kept_by([stored_beside(graph_module, mask) for mask in masks])
    patterns = [str(mask.args[2]) for mask in masks]
    pattern = next((pattern for pattern in patterns if pattern != "unstructured"), "unstructured")
    return Zeros(pattern, _share(keep), *_kept_channels(keep, groups, transposed=transposed))


def stored_beside(graph_module: GraphModule, node: Node) -> tuple[str, Tensor]:
    """The path and the tensor of what a dialect op reads second: a mask or a codebook, which the network stores."""
    argument = node.args[1]
    if not isinstance(argument, Node) or argument.op != "get_attr":
        raise CostError(
            f"node {node.name!r} takes {argument}, which is no tensor of the network; store it as a buffer."
        )
    return str(argument.target), get_tensor(graph_module, str(argument.target))


def kept_by(masks: Sequence[tuple[str, Tensor]]) -> Tensor:
    """Which elements all of the masks leave, as booleans; raises :class:`CostError` for masks on the meta device.

    ``masks`` has a path and a tensor for each mask; they have the same shape.
    """
    for path, mask in masks:
        if mask.is_meta:
            raise CostError(
                f"the mask {path!r} is on the meta device, so nobody can tell what it keeps; "
                "count the network with its data."
            )
    keep = masks[0][1].bool()
    for _, mask in masks[1:]:
        keep = keep & mask.bool()
    return keep


def _kept_channels(keep: Tensor, groups: int, *, transposed: bool) -> tuple[Fraction, Fraction]:
    """The shares of outputs and of inputs with any weight left."""
    if keep.dim() < 2:
        return Fraction(1), Fraction(1)
    pairs = keep.reshape(groups, keep.shape[0] // groups, keep.shape[1], -1).any(-1)
    along_first, along_second = _share(pairs.any(2)), _share(pairs.any(1))
    return (along_second, along_first) if transposed else (along_first, along_second)


def _share(keep: Tensor) -> Fraction:
    return Fraction(int(keep.count_nonzero()), keep.numel())
