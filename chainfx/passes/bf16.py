"""Layers in bfloat16: half the bytes of a weight, and products that many processors have units for."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from chainfx.ir.graph import Layer, Skipped, cast_layer, edit, select
from chainfx.passes.base import Granularity, Kind, Pass, PassContext, PassInfo, PassResult

__all__ = ["Bf16"]

_WIDER = (torch.float32, torch.float64)


@final
@dataclass(frozen=True)
class Bf16(Pass):
    """Store the weights of convolution and linear layers in bfloat16, and compute these layers in it.

    What changes, for each layer::

        y = conv2d(x, weight, bias, ...)  ->  to = x.to(torch.bfloat16)
                                              conv2d(to, weight', bias', ...)    weight', bias' in bfloat16
                                              y = conv2d.to(torch.float32)

    Formula: ``round(w)`` and ``round(x)`` to the nearest number of 8 significant bits (Kalamkar et al. 2019, arXiv
    1905.12322, sec. 3); sums are in float32 within a product, and its result is rounded once. Norms, softmax, products
    of two activations, embeddings and everything else stay in float32, as under :class:`torch.autocast`. Exact only for
    weights and inputs that have no more bits; networks that were trained in float32 usually keep their accuracy without
    any tuning.

    Needs nothing, and so works in ``torch.compile(model, backend="chainfx", options={"passes": ["bf16"]})`` too. Stored
    weights fall to a half, and bit operations of these layers to a quarter, since the counter sees 16 bits. It is
    faster on GPUs and on processors with instructions for bfloat16 (AVX-512 BF16, AMX); on others it is slower. This
    changes the network; ``Execution(precision="bfloat16")`` leaves it in float32 and says how a run measures it.

    Left alone, with the reason: layers that are quantized or coded or look up a codebook, whose weight or bias
    something else reads too, or that are in half precision already. It goes after quantization, which has the layers
    that it left in float for this pass. A deployed network runs such layers on the float engine; ONNX takes it after
    ``small.float()``, which makes all of it float32 again. ``include`` and ``skip``: patterns (``fnmatch``) of layers
    to cast, or to leave.

    >>> Bf16(skip=("head",)).label
    "bf16(skip=('head',))"
    """

    include: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    info: ClassVar[PassInfo] = PassInfo(
        "bf16",
        Kind.STATIC,
        Granularity.BIT,
        family="precision",
        tunes=False,
    )

    def apply(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Put the casts in place, and bfloat16 in the place of the weights and biases."""
        chosen, skipped = select(graph_module, self.info.name, include=self.include, skip=self.skip)
        reasons = {layer: _obstacle(layer) for layer in chosen}
        layers = _alone(graph_module, [layer for layer in chosen if not reasons[layer]])
        for layer in chosen:
            if layer not in layers:
                skipped.append(Skipped(layer.name, reasons[layer] or "its weight or bias is also read elsewhere"))
        stored = [(path, tensor) for layer in layers for path, tensor in _tensors(layer).items()]
        narrow = {id(tensor): _narrowed(tensor) for _, tensor in stored}  # one that layers share stays one
        for path, tensor in stored:
            edit.place_tensor(graph_module, path, narrow[id(tensor)])
        casts: dict[Node, Node] = {}
        for layer in layers:
            cast_layer(layer, torch.bfloat16, casts)
        edit.tidy(graph_module)
        return PassResult(graph_module, modified=bool(layers), skipped=tuple(skipped))


def _obstacle(layer: Layer) -> str:
    """Why a layer is left alone; empty if it can compute in bfloat16."""
    if layer.coded is not None:
        return "its weight is marked as coded"
    if layer.weight_beneath_mask.op != "get_attr":
        return "its weight is quantized, or looked up in a codebook"
    if layer.input_quantizer is not None:
        return "its input is quantized"
    if layer.bias is None and layer.bias_read is not None:
        return "its bias is computed"
    return "" if layer.tensor.dtype in _WIDER else f"its weight is in {layer.tensor.dtype} already"


def _tensors(layer: Layer) -> dict[str, Tensor]:
    """The weight and the bias of a layer by their paths."""
    paths = [layer.weight_path] + ([] if layer.bias is None else [str(layer.bias.target)])
    return {path: edit.get_tensor(layer.graph_module, path) for path in paths}


def _alone(graph_module: GraphModule, layers: list[Layer]) -> list[Layer]:
    """Those of the layers whose weights and biases nothing but these reads."""
    while True:
        elsewhere = _read_elsewhere(graph_module, layers)
        left = [layer for layer in layers if elsewhere.isdisjoint(map(id, _tensors(layer).values()))]
        if len(left) == len(layers):
            return left
        layers = left


def _read_elsewhere(graph_module: GraphModule, layers: list[Layer]) -> set[int]:
    """The ids of tensors that anything else than these layers reads as weight or bias."""
    calls = {layer.node for layer in layers}
    own = calls | {layer.mask for layer in layers if layer.mask is not None and calls.issuperset(layer.mask.users)}
    found: set[int] = set()
    for node in graph_module.graph.nodes:
        if node.op == "call_module":
            module = graph_module.get_submodule(str(node.target))
            found.update(map(id, (*module.parameters(), *module.buffers())))
        elif node.op == "get_attr" and not own.issuperset(node.users):
            found.add(id(edit.get_tensor(graph_module, str(node.target))))
    return found


def _narrowed(tensor: Tensor) -> Tensor:
    narrow = tensor.detach().to(torch.bfloat16)
    return nn.Parameter(narrow, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else narrow
