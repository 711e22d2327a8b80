"""Fit the layers that read pruned channels anew, so that the channels which stay make up for those that went."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule

from chainfx.ir.channels import ChannelAnalysis
from chainfx.ir.graph import Layer, edit, layer_at, layers_of
from chainfx.passes.base import Skipped
from chainfx.passes.pruning.constants import obstacle
from chainfx.passes.pruning.measurements import Evidence, reading_dims, shrunk_covariance
from chainfx.passes.pruning.selection import Keep, Removed, removed_units

__all__ = ["removed_inputs", "take_over"]

_FIXED = "its weight is tied, masked or quantized, or that of a transposed convolution in groups"


def removed_inputs(graph_module: GraphModule, analysis: ChannelAnalysis, keep: Keep) -> dict[str, Removed]:
    """For every weight that reads removed channels, by its path: which positions of its input dimension are removed."""
    gone = removed_units(analysis, keep)
    units = {path: _units(graph_module, analysis, path, dim) for path, dim in reading_dims(graph_module).items()}
    return {path: gone[each] for path, each in units.items() if each is not None}


def take_over(
    graph_module: GraphModule, removed: Mapping[str, Removed], evidence: Evidence
) -> tuple[dict[str, Tensor], tuple[Skipped, ...]]:
    """Change the weights that read pruned channels, so that the channels which stay give most of what the others gave.

    ``removed`` says by the path of a weight which positions of its input dimension go, as booleans of shape
    (positions,). Every removed channel x is replaced by its least-squares prediction ``A^T y + b`` from the channels y
    that stay, at the same place: with the weights W, ``W_y += A W_x`` (He et al. 2017, "Channel pruning for
    accelerating very deep neural networks", eq. 4, with one factor for a whole kernel). The covariance is that of the
    calibration data, see ``shrunk_covariance``. A layer without a bias of its own that could take b is fitted without
    one. Weights that are quantized, masked or tied stay as they are, and so do layers of more than 4096 channels.

    Returns two things: by the path of a weight the b of each removed position, which the caller adds to the bias of the
    layer, and the layers that were left as they are, each with the reason.
    """
    readers: dict[str, list[Layer]] = {}
    for layer in layers_of(graph_module):
        readers.setdefault(layer.weight_path, []).append(layer)
    dims = reading_dims(graph_module)
    left: dict[str, Tensor] = {}
    skipped: list[Skipped] = []
    for path, gone in removed.items():
        mean, moment = evidence.mean.get(path), evidence.moment.get(path)
        if mean is None or not gone.any():
            continue
        left[path] = mean
        if moment is None or not _can_change(graph_module, path):
            why = _FIXED if moment is not None else "it reads too many channels"
            skipped.append(Skipped(readers[path][0].name, f"it is not fitted to the channels that stay: {why}"))
            continue
        if any(obstacle(layer, exact=False) for layer in readers[path]):
            mean = torch.zeros_like(mean)
        stays, goes = torch.from_numpy(np.flatnonzero(~gone)), torch.from_numpy(np.flatnonzero(gone))
        covariance = shrunk_covariance(mean, moment, evidence.samples)[stays]
        factors = torch.linalg.solve(covariance[:, stays], covariance[:, goes])
        left[path] = torch.zeros_like(mean)
        left[path][goes] = mean[goes] - mean[stays] @ factors
        parent, name = edit.parent_of(graph_module, path)
        old = getattr(parent, name)
        weight = old.detach().movedim(dims[path], 0).clone()
        weight[stays] += torch.tensordot(factors.to(weight), weight[goes], dims=1)
        setattr(parent, name, nn.Parameter(weight.movedim(0, dims[path]), old.requires_grad))
    return left, tuple(skipped)


def _can_change(graph_module: GraphModule, path: str) -> bool:
    """Whether a weight is a parameter of one name that nothing but layers reads, as it is."""
    tensor = edit.get_tensor(graph_module, path)
    names = [name for name, each in graph_module.named_parameters(remove_duplicate=False) if each is tensor]
    readers = [user for node in graph_module.graph.find_nodes(op="get_attr", target=path) for user in node.users]
    called = graph_module.graph.find_nodes(op="call_module", target=path.rpartition(".")[0])  # an embedding
    layers = [layer_at(graph_module, user) for user in readers]
    plain = all(layer is not None and not _in_groups(layer) for layer in layers)
    return len(names) == 1 and plain and not called


def _in_groups(layer: Layer) -> bool:
    """Whether a layer is a transposed convolution in groups: one dimension of its weight holds the inputs of all."""
    return layer.transposed and layer.groups > 1


def _units(graph_module: GraphModule, analysis: ChannelAnalysis, path: str, dim: int) -> NDArray[np.int64] | None:
    """The units along a dimension of a weight, which the analysis may know by another name of the same tensor."""
    if (path, dim) in analysis.slots:
        return analysis.slots[path, dim]
    tensor = edit.get_tensor(graph_module, path)
    names = [name for name, each in graph_module.named_parameters(remove_duplicate=False) if each is tensor]
    return next((analysis.slots[name, dim] for name in names if (name, dim) in analysis.slots), None)
