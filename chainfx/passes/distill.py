"""Knowledge distillation into a smaller student."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from torch import nn
from torch.fx import GraphModule, Node

from chainfx.errors import PassError
from chainfx.ir.capture import capture
from chainfx.ir.channels import ResidualStage, analyse_channels, drop_block, stages_of
from chainfx.ir.graph import (
    FACTS,
    FactName,
    content_hash,
    edit,
    exits_of,
    facts_of,
    layers_of,
    output_node,
    propagate_shapes,
    shape_of,
)
from chainfx.passes.base import (
    Granularity,
    Kind,
    Pass,
    PassContext,
    PassInfo,
    PassResult,
    Skipped,
    TuneRequest,
    is_number,
)
from chainfx.passes.pruning import narrow

__all__ = ["Distill"]


@final
@dataclass(frozen=True)
class Distill(Pass):
    """Replace the network by a smaller student and train it to agree with what was there before.

    Exactly one of: ``depth``, the residual blocks kept, as a share in (0, 1) of every stage (rounded) or as a tuple
    with a number for each stage (ResNet-34 to ResNet-30: ``(2, 4, 6, 2)``); ``width``, the share in (0, 1) of
    channels kept of every channel group, those with the largest weights; ``student``, a module of one's own with the
    same inputs and outputs; it comes as it is, so it is refused where the network is masked or quantized, or has exits
    and the student none.

    What changes, by depth::

        add = branch(relu) + relu; relu_1 = relu(add); ... relu_1   ->   ... relu

    Only blocks whose input and output shapes match go, the last of a stage first; stride and projection blocks stay,
    and each stage keeps at least one block. The blocks of a stage add to the same channels, as the channel analysis
    (:mod:`chainfx.ir.channels`) has them. A network without residual blocks loses plain convolutions with equal
    shapes instead (VGG-19 to VGG-13: ``(2, 2, 2, 2, 2)``). What stays keeps its weights (``init="inherit"``) or starts
    anew (``"random"``, He et al. 2015).

    Loss (Hinton et al. 2015, arXiv 1503.02531): ``hard_weight CE + soft_weight T^2 KL(softmax(z_t/T) ||
    softmax(z_s/T))`` with T = ``temperature``; the defaults 4, 0.1, 0.9 are those of CRD's benchmark (Tian et al.
    2020). With exits in the student every exit learns too, from the same exit of the teacher, or from its final output
    if that has another number of exits. Never exact. Needs training. MACs, bit operations and bytes fall with what was
    left out.
    """

    depth: float | tuple[int, ...] | None = None
    width: float | None = None
    student: nn.Module | None = None
    init: Literal["inherit", "random"] = "inherit"
    temperature: float = 4.0
    hard_weight: float = 0.1
    soft_weight: float = 0.9

    info: ClassVar[PassInfo] = PassInfo(
        "distill",
        Kind.STATIC,
        Granularity.ARCHITECTURE,
        needs=frozenset({"training"}),
        invalidates=FACTS,
        domain="network",
        family="distillation",
    )

    def __post_init__(self) -> None:
        given = [name for name in ("depth", "width", "student") if getattr(self, name) is not None]
        if len(given) != 1:
            said = f"{' and '.join(given)} are given" if given else "none is given"
            raise PassError(f"distill: give exactly one of depth, width and student; {said}.")
        share = isinstance(self.depth, float) and 0 < self.depth < 1
        numbers = isinstance(self.depth, tuple) and all(type(n) is int and n >= 1 for n in self.depth) and self.depth
        self._check(
            self.depth is None or share or bool(numbers), "depth", "a share in (0, 1) or a tuple of block counts"
        )
        self._check(
            self.width is None or (is_number(self.width, 0) and 0 < self.width < 1), "width", "a share in (0, 1)"
        )
        self._check(self.init in ("inherit", "random"), "init", "'inherit' or 'random'")
        self._check(is_number(self.temperature, 0) and self.temperature > 0, "temperature", "a number above 0")
        self._check(is_number(self.hard_weight, 0), "hard_weight", "a number from 0")
        self._check(is_number(self.soft_weight, 0), "soft_weight", "a number from 0")

    @property
    def invalidates(self) -> frozenset[FactName]:
        """Every fact with a student of one's own; none otherwise, since what stays of the network keeps its facts."""
        return frozenset() if self.student is None else self.info.invalidates

    def apply(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Derive the student; the graph that came in is the teacher."""
        teacher = copy.deepcopy(graph_module)
        skipped: tuple[Skipped, ...] = ()
        if self.student is not None:
            graph_module = _captured_student(self.student, graph_module, context)
        elif self.width is not None:
            skipped = narrow(graph_module, context, 1 - self.width, self.info.name)
        else:
            analysis = analyse_channels(graph_module, context.example_inputs)
            _shorten(graph_module, self._kept(stages_of(graph_module, analysis)))
        if self.init == "random" and self.student is None:
            _reinitialise(graph_module, context.rng("distill"))
        tune = TuneRequest(
            loss="kd",
            teacher=teacher,
            temperature=self.temperature,
            hard_weight=self.hard_weight,
            soft_weight=self.soft_weight,
            from_scratch=True,
            distil_exits=bool(exits_of(graph_module)),
        )
        return PassResult(graph_module, modified=True, tune=tune, skipped=skipped)

    def spec(self) -> dict[str, Any]:
        """As :meth:`Pass.spec`; a student module is written as its class and a hash of its tensors (one way)."""
        spec = {name: value for name, value in vars(self).items() if name != "student"}
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in spec.items()}
        return {"pass": self.info.name, "student": self.student and _identity(self.student), **plain}

    def _kept(self, stages: Sequence[ResidualStage]) -> list[tuple[ResidualStage, int]]:
        """How many blocks each stage keeps; raises :class:`PassError` if that cannot be."""
        if not any(stage.removable for stage in stages):
            raise PassError("distill: the network has no block with equal input and output shape; use width=.")
        if not isinstance(self.depth, tuple):
            kept = [_at_least(stage, round(len(stage.blocks) * float(self.depth or 0))) for stage in stages]
            return self._checked(stages, tuple(kept))
        sizes = tuple(len(stage.blocks) for stage in stages)
        least = tuple(_at_least(stage, 0) for stage in stages)
        if len(self.depth) != len(sizes) or any(
            not low <= kept <= size for kept, low, size in zip(self.depth, least, sizes, strict=True)
        ):
            raise PassError(
                f"distill: depth={self.depth} does not fit: the network has stages of {sizes} blocks, "
                f"of which at least {least} must stay; give one number for each stage between those."
            )
        return self._checked(stages, self.depth)

    def _checked(self, stages: Sequence[ResidualStage], kept: tuple[int, ...]) -> list[tuple[ResidualStage, int]]:
        sizes = tuple(len(stage.blocks) for stage in stages)
        if kept == sizes:
            raise PassError(
                f"distill: depth={self.depth} keeps all blocks of the stages of {sizes}; "
                f"use a smaller one or leave it out."
            )
        return list(zip(stages, kept, strict=True))


def _at_least(stage: ResidualStage, wanted: int) -> int:
    """``wanted``, but at least one block and every block that must stay."""
    return max(wanted, 1, len(stage.blocks) - len(stage.removable))


def _shorten(graph_module: GraphModule, kept: list[tuple[ResidualStage, int]]) -> None:
    for stage, number in kept:
        surplus = len(stage.blocks) - number
        for block in reversed(stage.removable[len(stage.removable) - surplus :]):
            drop_block(graph_module, block)
    edit.tidy(graph_module)


def _captured_student(student: nn.Module, graph_module: GraphModule, context: PassContext) -> GraphModule:
    captured = capture(copy.deepcopy(student), context.example_inputs)
    if lost := facts_of(graph_module).names - ({"exits"} if exits_of(captured) else set()):
        raise PassError(
            f"distill: a student of one's own would lose the {' and the '.join(sorted(lost))} of the network; "
            f"distil first."
        )
    propagate_shapes(captured, context.example_inputs)
    expected, seen = (shape_of(_final(graph)) for graph in (graph_module, captured))
    if expected != seen:
        raise PassError(
            f"distill: the student returns shape {seen}, the teacher {expected}; give both the same classes."
        )
    return captured


def _final(graph_module: GraphModule) -> Node:
    """The node of the final output, which follows those of the exits."""
    output = output_node(graph_module)
    returned = output.args[0]
    final = returned[-1] if isinstance(returned, tuple | list) and exits_of(graph_module) else edit.input_of(output)
    assert isinstance(final, Node)  # a rule of the train form
    return final


def _reinitialise(graph_module: GraphModule, rng: torch.Generator) -> None:
    """Normal weights with variance 2/fan_in, zero biases, and every module's own reset."""
    for module in graph_module.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm):
            module.reset_parameters()
    with torch.no_grad():
        for layer in layers_of(graph_module):
            tensor = layer.tensor
            drawn = torch.empty(tensor.shape, dtype=tensor.dtype, device=rng.device)
            tensor.copy_(drawn.normal_(0, math.sqrt(2 / tensor[0].numel()), generator=rng))
            if layer.bias is not None:
                edit.get_tensor(graph_module, str(layer.bias.target)).zero_()


def _identity(student: nn.Module) -> str:
    content = content_hash(repr(student), student.state_dict())
    return f"{type(student).__module__}.{type(student).__qualname__}#{content[:16]}"
