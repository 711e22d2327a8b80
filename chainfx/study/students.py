"""The second reading of "prune first, then distil": a fresh standard network, taught by the compressed one."""

import copy
from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

from torch.fx import GraphModule

from chainfx.ir.graph import FACTS
from chainfx.passes import Distill, Granularity, Kind, Pass, PassContext, PassInfo, PassResult

__all__ = ["FreshStudent"]


@final
@dataclass(frozen=True)
class FreshStudent(Pass):
    """Replace the network by a standard one, smaller than the original and new, and train it to agree with it.

    The student is the original network, uncompressed, made smaller as :class:`~chainfx.passes.Distill` does by
    ``depth`` or ``width``, with weights at random. What other passes did to the network before it is lost, but
    for what their network teaches.
    """

    depth: float | tuple[int, ...] | None = None
    width: float | None = None
    temperature: float = 4.0
    hard_weight: float = 0.1
    soft_weight: float = 0.9

    info: ClassVar[PassInfo] = PassInfo(
        "fresh-student",
        Kind.STATIC,
        Granularity.ARCHITECTURE,
        needs=frozenset({"training"}),
        invalidates=FACTS,
        domain="network",
    )

    @classmethod
    def of(cls, distill: Distill) -> Self:
        """The fresh student of the size that a distillation has."""
        return cls(distill.depth, distill.width, distill.temperature, distill.hard_weight, distill.soft_weight)

    def apply(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Make the student of the original; the graph that came in is the teacher."""
        distill = Distill(
            depth=self.depth,
            width=self.width,
            init="random",
            temperature=self.temperature,
            hard_weight=self.hard_weight,
            soft_weight=self.soft_weight,
        )
        student = distill.apply(copy.deepcopy(context.reference), context)
        assert student.tune is not None
        return replace(student, tune=replace(student.tune, teacher=copy.deepcopy(graph_module)))
