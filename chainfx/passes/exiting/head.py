"""The head of an early exit, built as graph nodes."""

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Node

from chainfx.ir.graph import edit, shape_of

__all__ = ["ExitHead", "insert_head"]

_CODEWORDS = 64
_HIDDEN = 64
_LARGE_INPUT = 64


@dataclass(frozen=True, slots=True)
class ExitHead:
    """One head: reads ``tap`` (N, C, H, W), (N, tokens, C) or (N, C) and gives logits (N, ``classes``).

    ``pool`` is the side of the pooled map (1 for tokens and vectors), ``hidden`` whether a second linear layer follows.
    Parameters at a 4-d tap of C channels: ``64 C + 64 + 2 + 256*64 + 64 + 65 classes``.
    """

    name: str
    tap: Node
    classes: int
    pool: int
    hidden: bool

    @classmethod
    def for_tap(cls, name: str, tap: Node, classes: int, network_input: Tensor) -> Self:
        """The head that suits the tap: 2x2 pooling, or 4x4 and one linear layer for inputs above 64 pixels."""
        if len(shape_of(tap)) != 4:
            return cls(name, tap, classes, 1, hidden=True)
        large = max(network_input.shape[2:], default=0) > _LARGE_INPUT
        return cls(name, tap, classes, 4 if large else 2, hidden=not large)

    def parameters(self, rng: torch.Generator) -> dict[str, Tensor]:
        """Initial values by name, on the CPU: uniform in +-1/sqrt(fan_in) as in ``nn.Conv2d``; a = 1, c = 0."""
        shape = shape_of(self.tap)
        image = len(shape) == 4
        channels = shape[1] if image else shape[-1]
        features = _CODEWORDS * self.pool**2
        sizes = {"codebook": (_CODEWORDS, channels)}
        if self.hidden:
            sizes |= {"fc1": (_HIDDEN, features)}
        sizes |= {"fc2": (self.classes, _HIDDEN if self.hidden else features)}
        found: dict[str, Tensor] = {"slope": torch.ones((), device="cpu"), "shift": torch.zeros((), device="cpu")}
        for layer, (rows, columns) in sizes.items():
            bound = 1 / math.sqrt(columns)
            weight = (torch.rand(rows, columns, generator=rng, device="cpu") * 2 - 1) * bound
            found[f"{layer}.weight"] = weight[:, :, None, None] if layer == "codebook" and image else weight
            found[f"{layer}.bias"] = (torch.rand(rows, generator=rng, device="cpu") * 2 - 1) * bound
        return found


def insert_head(graph_module: GraphModule, head: ExitHead, rng: torch.Generator) -> tuple[Node, list[str]]:
    """Put a head's nodes after its tap; returns the node of its logits and the names of its parameters."""
    holder = edit.fresh_path(graph_module, head.name)
    graph = graph_module.graph
    names = {}
    device, dtype = edit.device_of(graph_module), head.tap.meta["val"].dtype
    for name, tensor in head.parameters(rng).items():
        names[name] = f"{holder}.{name}"
        edit.set_tensor(graph_module, names[name], tensor.to(device, dtype), parameter=True)

    def call(target: Any, *arguments: Any) -> Node:
        return graph.call_function(target, arguments)

    def layer(value: Node, name: str) -> Node:
        weight, bias = graph.get_attr(names[f"{name}.weight"]), graph.get_attr(names[f"{name}.bias"])
        if name == "codebook" and len(shape_of(head.tap)) == 4:
            return call(F.conv2d, value, weight, bias, (1, 1), (0, 0), (1, 1), 1)
        return call(F.linear, value, weight, bias)

    with graph.inserting_before(head.tap.next):
        value = call(torch.mul, layer(head.tap, "codebook"), graph.get_attr(names["slope"]))
        value = call(torch.add, value, graph.get_attr(names["shift"]))
        value = call(torch.mul, call(torch.add, call(torch.tanh, value), 1.0), 0.5)
        value = call(torch.div, value, call(torch.add, _over_codewords(call, value, head), 5e-16))
        value = call(torch.mul, value, float(_CODEWORDS))
        value = _pooled(call, value, head)
        value = layer(value, "fc1") if head.hidden else value
        value = layer(value, "fc2")
    return value, list(names.values())


def _over_codewords(call: Any, value: Node, head: ExitHead) -> Node:
    axis = 1 if len(shape_of(head.tap)) == 4 else -1
    total: Node = call(torch.sum, value, axis, True)
    return total


def _pooled(call: Any, value: Node, head: ExitHead) -> Node:
    """Average over positions, flattened to (N, features)."""
    dims = len(shape_of(head.tap))
    if dims == 2:
        return value
    if dims == 3:
        pooled: Node = call(torch.mean, value, 1)
        return pooled
    flat: Node = call(torch.flatten, call(F.adaptive_avg_pool2d, value, (head.pool, head.pool)), 1)
    return flat
