"""What the values of nodes are over the calibration batches: their range, and a random sample of bounded size."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Generator, Tensor
from torch.fx import GraphModule, Interpreter, Node

from chainfx.errors import PassError
from chainfx.ir.graph import edit, layers_of
from chainfx.passes.base import accepted

__all__ = ["SAMPLES", "Observed", "observe"]

SAMPLES = 1 << 16


@dataclass(frozen=True, slots=True)
class Observed:
    """What is kept of ``count`` values: the least and the greatest of all (shape ()), and a ``sample`` (n,).

    The sample has up to 65,536 of the values, all of them if they are no more, and each value is in it with the same
    probability. Which ones it has depends on how the values came in batches, how they are distributed does not.
    """

    count: int
    least: Tensor
    greatest: Tensor
    sample: Tensor

    @classmethod
    def of(cls, values: Tensor, generator: Generator) -> Self:
        """What is kept of one tensor (of any shape, not empty); nothing of its memory is shared."""
        least, greatest = values.aminmax()
        drawn = _drawn(values.flatten(), min(values.numel(), SAMPLES), generator)
        return cls(values.numel(), least, greatest, drawn)

    def joined(self, other: Self, generator: Generator) -> Self:
        """What is kept of the values of both: of each sample a share as its values are of all."""
        count = self.count + other.count
        kept = min(count, SAMPLES)
        own = round(kept * self.count / count)
        shares = _drawn(self.sample, own, generator), _drawn(other.sample, kept - own, generator)
        least, greatest = torch.minimum(self.least, other.least), torch.maximum(self.greatest, other.greatest)
        return type(self)(count, least, greatest, torch.cat(shares))


def _drawn(values: Tensor, count: int, generator: Generator) -> Tensor:
    """A copy of ``count`` of the ``values`` (n,), one drawn from each of ``count`` equally long parts of them."""
    if count == len(values):
        return values.clone()
    within = torch.rand(count, generator=generator, dtype=torch.float64, device="cpu")
    places = (torch.arange(count, device="cpu") + within) * (len(values) / count)
    index = places.long().clamp_max(len(values) - 1)
    return values[index.to(values.device)]


class _Observer(Interpreter):
    """Runs a graph and keeps the range and a sample of the values of some nodes.

    A value counts as the first layer reads it: what lies between may change it in place.
    """

    def __init__(self, graph_module: GraphModule, watched: set[Node], generator: Generator) -> None:
        super().__init__(graph_module)
        self.generator = generator
        self.seen: dict[Node, Observed] = {}
        readers = {layer.source: layer.node for layer in reversed(list(layers_of(graph_module)))}
        self.read_by = {readers[node]: node for node in watched if node in readers}
        self.unread = watched - readers.keys()

    def run_node(self, n: Node) -> object:
        """Run one node as usual and look at the watched value that it is the first to read."""
        if n in self.read_by:
            self._look(self.read_by[n], self.env[self.read_by[n]])
        value = super().run_node(n)
        if n in self.unread:
            self._look(n, value)
        return value

    def _look(self, node: Node, value: Tensor) -> None:
        if value.numel():
            new = Observed.of(value.detach(), self.generator)
            self.seen[node] = self.seen[node].joined(new, self.generator) if node in self.seen else new


def observe(
    graph_module: GraphModule,
    watched: set[Node],
    calibration: Iterable[tuple[Tensor, ...]] | None,
    generator: Generator,
    name: str = "quantize",
) -> dict[Node, Observed]:
    """What the values of the watched nodes are over all calibration batches, which are read once, one at a time.

    ``name``: that of the pass, for errors.

    Raises :class:`~chainfx.errors.PassError` when there is no batch, when the network does not accept one, or when a
    value is not finite.
    """
    graph_module.graph.lint()
    graph_module.recompile()
    observer = _Observer(graph_module, watched, generator)
    with edit.evaluating(graph_module), torch.no_grad():
        for inputs in calibration or ():
            accepted(partial(observer.run, *inputs), inputs, name)
    if len(observer.seen) < len(watched):
        raise PassError(
            f"{name}: activations need calibration data and there is none; give calibration=[batches of inputs], "
            "a trainer, or activations=32."
        )
    for node, seen in observer.seen.items():
        if not (seen.least.isfinite() and seen.greatest.isfinite()):
            raise PassError(
                f"{name}: activation {node.name!r} has values that are not finite on the calibration data; "
                f"mend the data or the network first."
            )
    return observer.seen
