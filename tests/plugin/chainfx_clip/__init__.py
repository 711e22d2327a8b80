"""A pass of one's own in an installable package: what it imports of chainfx is all public."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch.fx import GraphModule

from chainfx.passes import Granularity, Kind, Pass, PassContext, PassInfo, PassResult, Skipped

__all__ = ["ClipWeights"]


@final
@dataclass(frozen=True)
class ClipWeights(Pass):
    """Cut the parameters of two or more dimensions off at ``limit`` in magnitude; the graph stays as it is.

    >>> ClipWeights(0.5).label
    'clip-weights(limit=0.5)'
    """

    limit: float = 1.0

    info: ClassVar[PassInfo] = PassInfo("clip-weights", Kind.STATIC, Granularity.SUB_NEURON)

    def __post_init__(self) -> None:
        self._check(self.limit > 0, "limit", "a number above 0")

    def apply(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Clip in place; parameters that are within the limit are named as skipped."""
        skipped, modified = [], False
        for name, parameter in graph_module.named_parameters():
            if parameter.dim() < 2:
                continue
            if parameter.abs().max() <= self.limit:
                skipped.append(Skipped(name, f"its values are within {self.limit}"))
            else:
                parameter.data.clamp_(-self.limit, self.limit)
                modified = True
        return PassResult(graph_module, modified, skipped=tuple(skipped))
