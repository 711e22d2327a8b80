"""How many bits a network takes to store: every parameter and buffer that its graph refers to is counted once.

The encodings, in bits:

``dense``: what a saved network holds. A weight that is only read through ``quantize_weight`` is stored as codes of that
many bits plus 32-bit scales (one, or one for each slice of its axis); codes of ``dequantize_weight`` count their bits
and those of ``look_up`` ceil(log2 k), not those of the tensor that holds them; a mask counts 1 bit an element. All else
has the width of its dtype. A tensor that is read in several ways costs what the dearest takes.

``nominal``: every parameter at the nominal weight width of the network, see
:func:`chainfx.bitops.conventions.nominal_formats`: weights, biases, affine parameters of normalization. Scales, clips,
codebooks, masks and buffers cost nothing. It is how the paper (arXiv 2403.17447) counts its compression ratio CR.

``coded``: what a saved network holds after :class:`chainfx.passes.Encode`, manifest included; it is always there for a
network with such weights. Other weights and tensors count as ``dense``.

``bitmap``, ``relative_index``, ``entropy``: a masked weight without its zeros, see :mod:`chainfx.bitops.encodings`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from chainfx.bitops.encodings import Stored, find_encoding
from chainfx.bitops.reading import Reading
from chainfx.bitops.sparsity import stored_beside
from chainfx.bitops.widths import LAYER_KEYS, literal
from chainfx.ir.artifact import manifest_bytes
from chainfx.ir.graph import modules_by_path, ops, torchao_weight

__all__ = ["Storage", "storage_of"]

_SCALE_BITS = 32
_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_CODED = (ops.quantize_weight, ops.dequantize_weight, ops.look_up)
_ON_THE_WAY = (*_CODED, ops.mask_weight, ops.coded_weight)
_SIDE: dict[object, Literal["mask", "scale"]] = {
    ops.mask_weight: "mask",
    ops.quantize_activation: "scale",
    ops.dequantize_weight: "scale",
    ops.look_up: "scale",
}


@dataclass(frozen=True, slots=True)
class Storage:
    """Bits of all tensors by encoding, and the number of parameters: codes of weights are some, buffers are not.

    ``weights``: by the id of a tensor the path it is known by and the number of its elements whose width a quantizer
    decides, which is 0 for a tensor that is also read as it is or holds codes of a codebook.
    """

    bits: dict[str, int]
    parameters: int
    weights: dict[int, tuple[str, int]]


def storage_of(reading: Reading, encodings: Sequence[str], nominal_bits: int) -> Storage:
    """The storage of the tensors that the nodes of a graph refer to; a tensor that is shared counts once.

    ``encodings``: those to compute beside ``dense`` and ``nominal``. ``nominal_bits``: nominal width of a weight.
    Raises :class:`CostError` on an unknown encoding, and when one needs values of a tensor on the meta device.
    """
    graph_module = reading.graph_module
    coded = bool(graph_module.graph.find_nodes(op="call_function", target=ops.coded_weight))
    names = ("dense", *encodings, *(["coded"] if coded else []))
    costs = {name: find_encoding(name) for name in names if name != "nominal"}
    bits: dict[str, dict[int, int]] = {name: {} for name in costs}
    parameters: dict[int, int] = {}
    free: set[int] = set()  # what no nominal width is the width of
    weights: dict[int, tuple[str, int]] = {}
    keep: list[Tensor] = []  # an id is only unique while its object lives
    for use in _uses(reading):
        key, size = id(use.tensor), use.tensor.numel()
        keep.append(use.tensor)
        for name, cost in costs.items():
            bits[name][key] = max(cost(use), bits[name].get(key, 0))
        if use.role == "code" or isinstance(use.tensor, nn.Parameter):
            parameters[key] = size
        if use.role in ("scale", "mask"):
            free.add(key)
        path, elements = weights.get(key, (use.path, size))
        weights[key] = (path, elements if use.follows_widths else 0)
    nominal = nominal_bits * sum(elements for key, elements in parameters.items() if key not in free)
    totals = {name: sum(each.values()) for name, each in bits.items()}
    if "coded" in totals:
        totals["coded"] += 8 * manifest_bytes(graph_module)
    return Storage({"dense": totals["dense"], "nominal": nominal, **totals}, sum(parameters.values()), weights)


def _uses(reading: Reading) -> Iterator[Stored]:
    """Every way in which every tensor is read."""
    for node in reading.sources:
        if node.op == "call_module":
            yield from _of_module(reading.modules[str(node.target)], str(node.target))
        elif node.op == "get_attr":
            tensor = reading.held_at(str(node.target))
            if isinstance(tensor, Tensor):
                yield from (_read(reading, tensor, node, chain) for chain in _chains(node))


def _of_module(module: nn.Module, target: str) -> Iterator[Stored]:
    layer = isinstance(module, _LAYERS)
    for path, inner in modules_by_path(module).items() if module._modules else (("", module),):
        prefix = f"{target}.{path}." if path else f"{target}."
        for name, tensor in (*inner._parameters.items(), *inner._buffers.items()):
            if tensor is not None:
                yield Stored(tensor, prefix + name, _width(tensor), follows_widths=layer and name == "weight")


def _width(tensor: Tensor) -> int:
    return tensor.dtype.itemsize * 8


def _chains(node: Node) -> Iterator[tuple[Node, ...]]:
    """The ops (quantizers, masks, look-up) that a stored tensor goes through, and last the call that reads it."""
    for user in node.users:
        if user.target in _ON_THE_WAY and user.args[0] is node:
            yield from ((user, *rest) for rest in list(_chains(user)) or [()])
        else:
            yield (user,)


def _read(reading: Reading, tensor: Tensor, node: Node, chain: tuple[Node, ...]) -> Stored:
    """How a tensor is stored for one of the ways in which it is read."""
    graph_module = reading.graph_module
    path, first, end = str(node.target), chain[0], chain[-1]
    if first.target in _SIDE and len(first.args) > 1 and first.args[1] is node:
        role = _SIDE[first.target]
        return Stored(tensor, path, 1 if role == "mask" else _width(tensor), role=role, coder=_marked(first.users))
    if first.target is torchao_weight:  # as torchao lays them out, several in a byte or one
        is_code = first.all_input_nodes[0] is node
        return Stored(tensor, path, _width(tensor), role="code" if is_code else "scale")
    coder = next((user for user in chain if user.target in _CODED), None)
    masks = tuple(stored_beside(graph_module, user) for user in chain if user.target is ops.mask_weight)
    read_as_weight = len(end.args) > 1 and end.args[1] is (chain[-2] if len(chain) > 1 else node)
    follows = read_as_weight and end in reading.operators and reading.operators[end].name in LAYER_KEYS
    return Stored(
        tensor,
        path,
        _width(tensor) if coder is None else _code_width(graph_module, coder),
        _scales(tensor, coder) * _SCALE_BITS,
        "code" if coder is not None and coder.target is not ops.quantize_weight else "plain",
        follows and (coder is None or coder.target is not ops.look_up),
        masks,
        chain[: chain.index(coder) + 1] if coder is not None else (),
        _marked(chain),
    )


def _marked(nodes: Iterable[Node]) -> str:
    """The coder of the mark among some nodes; empty if there is none."""
    return next((str(node.args[1]) for node in nodes if node.target is ops.coded_weight), "")


def _code_width(graph_module: GraphModule, coder: Node) -> int:
    if coder.target is ops.look_up:
        _, codebook = stored_beside(graph_module, coder)
        return (codebook.numel() - 1).bit_length()
    return literal(coder, 1 if coder.target is ops.quantize_weight else 2, "bits")


def _scales(tensor: Tensor, coder: Node | None) -> int:
    """The number of scales that are not tensors of their own yet."""
    if coder is None or coder.target is not ops.quantize_weight:
        return 0
    axis = coder.args[3] if len(coder.args) > 3 else coder.kwargs.get("axis")
    return tensor.shape[axis] if isinstance(axis, int) else 1
