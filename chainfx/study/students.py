"""Other readings of a distillation: a fresh student, one taught by contrast or not at all, and no smaller student."""

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

from torch.fx import GraphModule

from chainfx.ir.graph import FACTS
from chainfx.passes import Distill, Pass, PassContext, PassInfo, PassResult, TuneRequest

__all__ = ["ContrastedStudent", "FreshStudent", "Recovery", "UntaughtStudent"]


@dataclass(frozen=True)
class _Reading(Pass):
    """A pass with the options of a distillation, under a name of its own."""

    distill: Distill

    @property
    def label(self) -> str:
        """The label of the distillation with the name of this pass."""
        return self.distill.label.replace(self.distill.info.name, self.info.name, 1)

    def spec(self) -> dict[str, Any]:
        """The options of the distillation with the name of this pass."""
        return {**self.distill.spec(), "pass": self.info.name}


@final
@dataclass(frozen=True)
class FreshStudent(_Reading):
    """Replace the network by a standard one, smaller than the original and new, and train it to agree with it.

    The student is the original network, uncompressed, made smaller as :class:`~chainfx.passes.Distill` does by
    ``depth`` or ``width``, with weights at random. What other passes did to the network before it is lost, but
    for what their network teaches.
    """

    info: ClassVar[PassInfo] = replace(Distill.info, name="fresh-student", invalidates=FACTS)

    def apply(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Make the student of the original; the graph that came in is the teacher."""
        student = replace(self.distill, init="random").apply(copy.deepcopy(context.reference), context)
        assert student.tune is not None
        return replace(student, tune=replace(student.tune, teacher=copy.deepcopy(graph_module)))


@final
@dataclass(frozen=True)
class UntaughtStudent(_Reading):
    """The smaller network of a distillation, trained as long and as fast by the loss of the task alone: no teacher."""

    info: ClassVar[PassInfo] = replace(Distill.info, name="untaught-student")

    def apply(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Make the student as the distillation does."""
        student = self.distill.apply(graph_module, context)
        assert student.tune is not None
        return replace(student, tune=replace(student.tune, loss="task", teacher=None))


@final
@dataclass(frozen=True)
class ContrastedStudent(_Reading):
    """The smaller network of a distillation, taught by contrast (CRD, Tian et al. 2020) in place of soft targets.

    The loss is that of the task plus 0.8 times the contrastive one, the paper's weight (its section 4).
    """

    info: ClassVar[PassInfo] = replace(Distill.info, name="contrasted-student")

    def apply(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Make the student as the distillation does."""
        student = self.distill.apply(graph_module, context)
        assert student.tune is not None
        return replace(student, tune=replace(student.tune, loss="task", contrast_weight=0.8))


@final
@dataclass(frozen=True)
class Recovery(_Reading):
    """Tune the network as it is, all of its parameters, to agree with the original: distillation without a student.

    Temperature and weights of the loss are those of the distillation; the rate is that of fine-tuning, as after pruning
    and quantization, so that it does not win by a higher one. Zhou and Shen (arXiv 2604.04988) put it last.
    """

    info: ClassVar[PassInfo] = replace(Distill.info, name="recovery", invalidates=frozenset())

    def apply(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Change nothing and ask for the tuning."""
        tune = TuneRequest(
            loss="kd",
            teacher=copy.deepcopy(context.reference),
            temperature=self.distill.temperature,
            hard_weight=self.distill.hard_weight,
            soft_weight=self.distill.soft_weight,
        )
        return PassResult(graph_module, modified=True, tune=tune)
