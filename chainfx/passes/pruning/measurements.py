"""Measurements of a network on calibration data: how strong each channel is, and how the answer depends on it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves

from chainfx.errors import PassError
from chainfx.ir.graph import Layer, called, edit, layer_at, layers_of
from chainfx.passes.base import accepted

__all__ = ["SAMPLES", "Evidence", "gather", "reading_dims", "shrunk_covariance"]

SAMPLES = 512
_MOMENTS = 4096  # a matrix of 64 MB
_PIECE = 8  # samples in one derivative: their squares must not average out before they are taken

Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class Evidence:
    """What was measured of each layer, by the path of its weight: numbers for every position of its input dimension.

    ``mean`` and ``power`` are the mean and the mean square of what the layer reads, over samples, places and calls, of
    shape (positions,). ``moment`` is the mean product of every two positions, of shape (positions, positions), for
    layers of at most 4096 positions. ``slope`` is the derivative of the loss by a factor on the position, of shape
    (pieces, positions), with one row for every 8 samples. ``calls`` is how often the layer is called for one input,
    ``samples`` the number of samples that all was measured on.
    """

    mean: Mapping[str, Tensor] = field(default_factory=dict)
    power: Mapping[str, Tensor] = field(default_factory=dict)
    moment: Mapping[str, Tensor] = field(default_factory=dict)
    slope: Mapping[str, Tensor] = field(default_factory=dict)
    calls: Mapping[str, int] = field(default_factory=dict)
    samples: int = 0


def shrunk_covariance(mean: Tensor, moment: Tensor, samples: int) -> Tensor:
    """An estimate of the covariance of channels from few samples, of shape (channels, channels), that can be inverted.

    The measured covariance is moved towards a multiple of the identity, by the share that is best in the mean square if
    the channels are normally distributed (Chen et al. 2010, "Shrinkage algorithms for MMSE covariance estimation", eq.
    23, "OAS"). ``mean`` has the mean of each channel, of shape (channels,), and ``moment`` the mean product of every
    two. ``samples`` counts images, not pixels, because the pixels of an image vary together.

    >>> shrunk_covariance(torch.zeros(2), torch.tensor([[2.0, 1.0], [1.0, 2.0]]), 100)
    tensor([[2.0000, 0.9200],
            [0.9200, 2.0000]])
    """
    covariance, size = moment - mean.outer(mean), len(mean)
    square, trace = float(covariance.square().sum()), float(covariance.trace())
    spread = (samples + 1 - 2 / size) * (square - trace**2 / size)
    share = min(1.0, ((1 - 2 / size) * square + trace**2) / spread) if spread > 0 else 1.0
    identity = torch.eye(size, dtype=covariance.dtype, device=covariance.device)
    return (1 - share) * covariance + max(share * trace / size, torch.finfo(covariance.dtype).tiny) * identity


def reading_dims(graph_module: GraphModule) -> dict[str, int]:
    """By the path of every layer's weight, the dimension of its inputs, over which the layer sums.

    Depthwise layers are left out, because they sum over no channels.
    """
    dims: dict[str, int] = {}
    for layer in layers_of(graph_module):
        inputs = layer.tensor.shape[layer.in_axis] * (1 if layer.transposed else layer.groups)
        if layer.groups < max(inputs, 2):
            dims[layer.weight_path] = layer.in_axis
    return dims


def gather(
    graph_module: GraphModule,
    batches: Iterable[Batch] | None,
    needs: frozenset[str],
    generator: torch.Generator,
    name: str = "prune-channels",
) -> Evidence:
    """Run the first 512 samples of ``batches`` through a network, in eval mode, and measure what ``needs`` names.

    ``needs`` may have ``activity`` (mean and power), ``moment`` and ``slope``. The loss of the slopes is the
    cross-entropy against labels that are drawn from the network's own answer. So no label of the data is needed, and
    the mean square of a slope is the Fisher information, the second derivative of the divergence between the old and
    the new answer (Theis et al. 2018, "Faster gaze prediction", eq. 6). For an output without classes (fewer than two
    along dimension 1) the loss is its square.

    The network is left as it was. Raises :class:`PassError`, which begins with the name of the pass, ``name``, if there
    is no batch to run, or if the network does not accept it.
    """
    if not needs:
        return Evidence()
    dims = reading_dims(graph_module)
    watch = _Watch(graph_module, dims, name, moments="moment" in needs)
    slopes: dict[str, list[Tensor]] = {path: [] for path in dims}
    with edit.evaluating(graph_module):
        for batch in _samples(batches, name):
            if not needs <= {"slope"}:
                with torch.no_grad():
                    accepted(partial(watch.run, *batch), batch, name)
            for piece in _pieces(batch) if "slope" in needs else ():
                run = partial(_slopes, graph_module, dims, piece, generator)
                for path, slope in accepted(run, piece, name):
                    slopes[path].append(slope)
    return watch.measured({path: torch.stack(rows) for path, rows in slopes.items() if rows})


def _samples(batches: Iterable[Batch] | None, name: str) -> Iterator[Batch]:
    """The first 512 samples, batch by batch; raises :class:`PassError` if there are none."""
    left = SAMPLES
    for batch in batches or ():
        if left > 0 and len(batch[0]):
            yield tuple(tensor[:left] for tensor in batch)
            left -= len(batch[0])
    if left == SAMPLES:
        raise PassError(
            f"{name}: its options need calibration data and there is none; "
            "give calibration=[batches of inputs], a trainer, or importance='l1' without compensate."
        )


def _pieces(batch: Batch) -> Iterator[Batch]:
    for start in range(0, len(batch[0]), _PIECE):
        yield tuple(tensor[start : start + _PIECE] for tensor in batch)


class _Watch(Interpreter):
    """Runs a graph and adds up what its layers read."""

    def __init__(self, graph_module: GraphModule, dims: Mapping[str, int], name: str, *, moments: bool) -> None:
        super().__init__(graph_module)
        self.graph_module, self.dims, self.name = graph_module, dims, name
        self.moments = moments
        self.sums: dict[str, list[Tensor]] = {}
        self.weights: dict[str, int] = {}  # samples times calls
        self.samples = self.batch = 0

    def run(self, *args: Any, **kwargs: Any) -> Any:
        self.batch = len(args[0])
        self.samples += self.batch
        return super().run(*args, **kwargs)

    def run_node(self, n: Node) -> Any:
        layer = layer_at(self.graph_module, n)
        if layer is not None and layer.weight_path in self.dims:
            self._add(layer, self.env[edit.input_of(n)])
        return super().run_node(n)

    def _add(self, layer: Layer, read: Tensor) -> None:
        path = layer.weight_path
        axis = read.dim() + 1 - layer.tensor.dim()
        values = read.detach().movedim(axis, 0).flatten(1).to("cpu", torch.float32)
        if self.dims[path]:
            values = values.view(layer.groups, -1, values.shape[1]).movedim(1, 0).flatten(1)
        each = [values.mean(1), values.square().mean(1)]
        if self.moments and len(values) <= _MOMENTS:
            each.append(values @ values.t() / values.shape[1])
        each = [number.double() * self.batch for number in each]
        old = self.sums.get(path)
        self.sums[path] = each if old is None else [a + b for a, b in zip(old, each, strict=True)]
        self.weights[path] = self.weights.get(path, 0) + self.batch

    def measured(self, slopes: Mapping[str, Tensor]) -> Evidence:
        """What each layer reads, and these slopes."""
        found: tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]] = ({}, {}, {})
        for path, sums in self.sums.items():
            for kind, total in zip(found, sums, strict=False):
                kind[path] = total / self.weights[path]
                if not bool(kind[path].isfinite().all()):
                    raise PassError(
                        f"{self.name}: on the calibration data the layer of {path!r} reads values that are not finite; "
                        f"look for them in the data and in the layers before."
                    )
        calls = {path: weight // self.samples for path, weight in self.weights.items()}
        return Evidence(*found, slopes, calls, self.samples)


class _Called(nn.Module):
    """A graph as a module of another, so that its calls go by :func:`~chainfx.ir.graph.called`."""

    def __init__(self, graph_module: GraphModule) -> None:
        super().__init__()
        self.graph_module = graph_module

    def forward(self, *inputs: Tensor) -> Any:
        """What the graph gives."""
        return called(self.graph_module, *inputs)


def _slopes(
    graph_module: GraphModule, dims: Mapping[str, int], piece: Batch, generator: torch.Generator
) -> list[tuple[str, Tensor]]:
    """For every weight, sum over what each position holds of weight times gradient."""
    tensors = {id(edit.get_tensor(graph_module, path)): path for path in reversed(list(dims))}  # the first name
    weights = {path: edit.get_tensor(graph_module, path).detach().clone().requires_grad_() for path in tensors.values()}
    others = {name: each.detach() for name, each in graph_module.named_parameters() if id(each) not in tensors}
    with torch.enable_grad():
        values = {f"graph_module.{path}": tensor for path, tensor in {**others, **weights}.items()}
        output = functional_call(_Called(graph_module), values, piece)
        gradients = torch.autograd.grad(_loss(output, generator), list(weights.values()), allow_unused=True)
    found = []
    for (path, weight), gradient in zip(weights.items(), gradients, strict=True):
        product = torch.zeros_like(weight) if gradient is None else weight.detach() * gradient
        found.append((path, product.movedim(dims[path], 0).flatten(1).sum(1).to("cpu", torch.float64)))
    return found


def _loss(output: Any, generator: torch.Generator) -> Tensor:
    """The summed loss of all outputs against labels drawn from what they say themselves."""
    total = torch.zeros((), device="cpu")  # of no dimension, so it may meet tensors elsewhere
    for answer in tree_leaves(output):
        if not isinstance(answer, Tensor) or not answer.is_floating_point():
            continue
        if answer.dim() < 2 or answer.shape[1] < 2:
            total = total + answer.float().square().sum() / 2
            continue
        logits = answer.movedim(1, -1).flatten(0, -2).float()
        labels = torch.multinomial(logits.detach().softmax(1).cpu(), 1, generator=generator)[:, 0]
        total = total + F.cross_entropy(logits, labels.to(logits.device), reduction="sum")
    return total
