"""What a network takes to store: every parameter and buffer that its graph refers to, once."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from chainfx.bitops.widths import literal
from chainfx.ir import ops
from chainfx.ir.edit import get_tensor

__all__ = ["Storage", "storage_of"]

_SCALE_BITS = 32


@dataclass(frozen=True, slots=True)
class Storage:
    """Bits of all tensors, and the number of parameters: codes of quantized weights are some, buffers are not."""

    bits: int
    parameters: int


def storage_of(graph_module: GraphModule) -> Storage:
    """The storage of the tensors that the nodes of a graph refer to; a tensor that is shared counts once.

    A weight that is only read through ``quantize_weight`` is stored as codes of that many bits plus 32-bit scales
    (one, or one for each slice of its axis), read through several quantizers at the cost of the dearest one. Codes of
    ``dequantize_weight`` count their bits, not those of the tensor that holds them. All else has its dtype's width.
    """
    bits: dict[int, int] = {}
    parameters: dict[int, int] = {}
    keep: list[Tensor] = []  # an id is only unique while its object lives
    for node in graph_module.graph.nodes:
        for tensor, cost, counts in _referred(graph_module, node):
            keep.append(tensor)
            bits[id(tensor)] = max(cost, bits.get(id(tensor), 0))
            if counts or isinstance(tensor, nn.Parameter):
                parameters[id(tensor)] = tensor.numel()
    return Storage(sum(bits.values()), sum(parameters.values()))


def _referred(graph_module: GraphModule, node: Node) -> list[tuple[Tensor, int, bool]]:
    """(tensor, bits to store it, whether it stands for a parameter) for every tensor a node refers to."""
    if node.op == "call_module":
        module = graph_module.get_submodule(str(node.target))
        return [(tensor, _plain_bits(tensor), False) for tensor in [*module.parameters(), *module.buffers()]]
    if node.op != "get_attr" or not _is_tensor(graph_module, str(node.target)):
        return []
    tensor = get_tensor(graph_module, str(node.target))
    return [(tensor, *_use(tensor, node, user)) for user in node.users]


def _is_tensor(graph_module: GraphModule, path: str) -> bool:
    prefix, _, name = path.rpartition(".")
    return isinstance(getattr(graph_module.get_submodule(prefix), name), Tensor)


def _plain_bits(tensor: Tensor) -> int:
    return tensor.numel() * tensor.dtype.itemsize * 8


def _use(tensor: Tensor, node: Node, user: Node) -> tuple[int, bool]:
    """Bits to store a tensor for one of its users, and whether it holds codes of a weight."""
    first = bool(user.args) and user.args[0] is node
    if first and user.target is ops.quantize_weight:
        axis = user.args[3] if len(user.args) > 3 else user.kwargs.get("axis")
        scales = 1 if axis is None else tensor.shape[axis]  # type: ignore[index]
        return tensor.numel() * literal(user, 1, "bits") + scales * _SCALE_BITS, False
    if first and user.target is ops.dequantize_weight:
        return tensor.numel() * literal(user, 2, "bits"), True
    return _plain_bits(tensor), False
