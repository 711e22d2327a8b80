"""Heads that answer at every place of their tap: for each token, or for each pixel."""

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Node

from chainfx.errors import PassError
from chainfx.ir.graph import edit, shape_of

__all__ = ["fits_answer", "insert_pixel_head", "insert_token_head"]


def fits_answer(tap: Node, answer: Node) -> bool:
    """Whether a head makes answers of the shape of ``answer`` from ``tap``.

    Answers (N, classes) are made of anything; those for tokens (N, length, classes) of as many tokens, and maps
    (N, classes, height, width) of a map.
    """
    tapped, wanted = shape_of(tap), shape_of(answer)
    return len(wanted) == 2 or (len(tapped) == len(wanted) and (len(wanted) == 4 or tapped[1] == wanted[1]))


def insert_token_head(
    graph_module: GraphModule, name: str, tap: Node, answer: Node, rng: torch.Generator
) -> tuple[Node, list[str]]:
    """Put layer normalization and a linear layer after a tap (N, length, C); its logits and its parameters' names.

    ``C (classes + 2) + classes`` parameters.
    """
    classes, channels = shape_of(answer)[2], shape_of(tap)[2]
    norm = {"norm.weight": torch.ones(channels, device="cpu"), "norm.bias": torch.zeros(channels, device="cpu")}
    names = _stored(graph_module, name, tap, norm | _layer("fc", classes, channels, rng))
    graph = graph_module.graph
    with graph.inserting_before(tap.next):
        read = {part: graph.get_attr(path) for part, path in names.items()}
        scaling = (read["norm.weight"], read["norm.bias"])
        value = graph.call_function(F.layer_norm, (tap, (channels,), *scaling, 1e-5))
        logits = graph.call_function(F.linear, (value, read["fc.weight"], read["fc.bias"]))
    return logits, list(names.values())


def insert_pixel_head(
    graph_module: GraphModule, name: str, tap: Node, answer: Node, rng: torch.Generator
) -> tuple[Node, list[str]]:
    """Put a 1x1 convolution after a tap (N, C, h, w), resized to the network's answer; logits and parameters' names.

    As the skips of Long et al. 2015, sec. 4.2, with bilinear resizing. The size is computed from that of the images, so
    that it follows them. ``classes (C + 1)`` parameters.
    """
    classes, channels = shape_of(answer)[1], shape_of(tap)[1]
    layer = _layer("conv", classes, channels, rng)
    layer["conv.weight"] = layer["conv.weight"][:, :, None, None]
    names = _stored(graph_module, name, tap, layer)
    graph = graph_module.graph
    with graph.inserting_before(tap.next):
        read = [graph.get_attr(path) for path in names.values()]
        logits = graph.call_function(F.conv2d, (tap, *read, (1, 1), (0, 0), (1, 1), 1))
        if shape_of(tap)[2:] != shape_of(answer)[2:]:
            size = _size(graph_module, answer)
            logits = graph.call_function(
                F.interpolate, (logits,), {"size": size, "mode": "bilinear", "align_corners": False}
            )
    return logits, list(names.values())


def _size(graph_module: GraphModule, answer: Node) -> tuple[Node, ...]:
    """Nodes for the height and the width of the answer: those of the images, or a whole part of them."""
    graph = graph_module.graph
    wanted = shape_of(answer)[2:]
    for images in graph.find_nodes(op="placeholder"):
        sizes = shape_of(images)[2:]
        if len(sizes) == 2 and not any(have % want for have, want in zip(sizes, wanted, strict=True)):
            shape = graph.call_function(getattr, (images, "shape"))
            sides = [graph.call_function(operator.getitem, (shape, axis)) for axis in (2, 3)]
            parts = [have // want for have, want in zip(sizes, wanted, strict=True)]
            return tuple(
                side if part == 1 else graph.call_function(operator.floordiv, (side, part))
                for side, part in zip(sides, parts, strict=True)
            )
    raise PassError(
        f"early-exit: the network answers with maps of {wanted[0]} x {wanted[1]}, which is no whole part of the size "
        "of its images, so the heads cannot follow it; resize the answer to the images."
    )


def _layer(name: str, rows: int, columns: int, rng: torch.Generator) -> dict[str, Tensor]:
    """Initial weight (rows, columns) and bias (rows,), on the CPU: uniform in +-1/sqrt(columns), as torch's layers."""
    bound = 1 / math.sqrt(columns)

    def drawn(*shape: int) -> Tensor:
        return (torch.rand(*shape, generator=rng, device="cpu") * 2 - 1) * bound

    return {f"{name}.weight": drawn(rows, columns), f"{name}.bias": drawn(rows)}


def _stored(graph_module: GraphModule, name: str, tap: Node, tensors: Mapping[str, Any]) -> dict[str, str]:
    """Add parameters under a path of their own, on the device and in the type of the network; their paths."""
    holder = edit.fresh_path(graph_module, name)
    device, dtype = edit.device_of(graph_module), tap.meta["val"].dtype
    for part, tensor in tensors.items():
        edit.set_tensor(graph_module, f"{holder}.{part}", tensor.to(device, dtype), parameter=True)
    return {part: f"{holder}.{part}" for part in tensors}
