"""The exercise's chains, and a quantization that is never trained."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from chainfx.passes import Distill, Fuse, Granularity, Kind, Pass, PassInfo, PruneWeights, Quantize


@dataclass(frozen=True)
class PostTraining(Pass):
    """Uniform quantization from calibration data alone."""

    info: ClassVar[PassInfo] = PassInfo(
        "post-training",
        Kind.STATIC,
        Granularity.SUB_NEURON,
        needs=frozenset({"calibration"}),
        establishes=frozenset({"bit-widths"}),
        headline=("weights", "activations"),
        family="quantization",
        tunes=False,
    )

    weights: int = 8
    activations: int = 8

    def apply(self, graph_module, context, /):
        return Quantize(self.weights, self.activations, scheme="uniform").apply(graph_module, context)


STUDENT = Distill(student=nn.Linear(2, 2))
FAILED = (PostTraining(4, 4), PruneWeights(0.5), STUDENT, Fuse())
"""4-bit post-training quantization, half the weights pruned, distillation into a network of its own, optimization."""

CORRECTED = (STUDENT, PruneWeights(0.5), PostTraining(8, 8), Fuse())
