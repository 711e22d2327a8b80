"""Early exits: small heads inside the network, at which easy samples leave."""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

from torch.fx import GraphModule, Node

from chainfx.errors import PassError
from chainfx.ir.graph import edit, ends_of, exits_of, layers_of, ops, output_node, shape_of
from chainfx.passes.base import Granularity, Kind, Pass, PassContext, PassInfo, PassResult, TuneRequest, is_number
from chainfx.passes.exiting import (
    NEVER,
    ExitHead,
    answers_of,
    balanced_taps,
    fits_answer,
    insert_head,
    insert_pixel_head,
    insert_token_head,
    named_taps,
    sweep_thresholds,
)
from chainfx.passes.quantizing import insert_quantizers, widths_in
from chainfx.passes.tasks import Task

__all__ = ["EarlyExit"]

_FORMS = {2: "(N, classes)", 3: "(N, length, classes)", 4: "(N, classes, height, width)"}


@final
@dataclass(frozen=True)
class EarlyExit(Pass):
    """Add exit heads and let each sample leave at the first exit that is sure enough.

    What changes::

        tap = relu(...)                       tap = relu(...)
        ...                                   exit1 = exit_point(head(tap), "exit1", threshold, criterion)
        return logits                   ->    ...
                                              return (exit1, ..., logits)

    The head is that of the paper's group (methods of Passalis et al. 2020): 64 learnt codewords by a 1x1 convolution,
    soft assignment ``u = (tanh(a z + c) + 1) / 2`` normalised over the codewords to a mean of 1 (as the source's older
    version did; to a sum of 1 the heads train far worse in few epochs), average pooling to 2x2, then two linear layers
    256 -> 64 -> classes; for inputs above 64 pixels 4x4 pooling and one linear layer. Where the network answers at
    every token (N, length, classes), a head is layer normalization and a linear layer; where it answers at every pixel
    (N, classes, height, width), a 1x1 convolution, resized bilinearly to the size of the answer.
    With ``exits=k`` the taps are the k points, among those where one tensor carries everything, nearest to i/(k+1) of
    the MACs; or name the tap nodes. With ``body="frozen"`` the heads alone are trained, with Adam (5e-3, no weight
    decay); with ``"joint"`` body and heads together, with Adam (1e-3, as Teerapittayanon et al. 2016 do). Heads of a
    quantized body are quantized from the start, at the width most of its layers have and, for the classifier, that of
    its last layer.

    After tuning one threshold for all exits is chosen on held-out training data: the least expected bit operations
    (:attr:`chainfx.CostReport.expected_bitops`) with a metric of the task that is at most ``max_drop`` worse than that
    of the full network, in units of the metric: 0.005 of accuracy is half a point; where smaller is better, as of
    perplexity, it may rise by as much. ``threshold`` fixes it instead; at 0 every sample leaves at the first exit,
    above 1 none leaves. On a frozen body the full network's answer is unchanged, exactly. Worst-case bit operations
    rise by the heads.

    Exits that do not pay are taken back: if the expected bit operations (``strict``) do not fall, because hardly a
    sample leaves or the heads cost more than they save, :func:`chainfx.compile` leaves the network without exits and
    says so. ``keep=True`` keeps them.

    ``criterion``: ``max-softmax`` (the paper's), ``entropy`` or ``margin``; ``max-sigmoid`` where each output says yes
    or no; ``token-max-softmax`` and the like where each token is answered, ``pixel-max-softmax`` and the like for each
    pixel: the mean over them, as a sample leaves as a whole. See :func:`chainfx.ir.graph.ops.confidence`; it has to be
    one of the :class:`~chainfx.passes.Task`.
    """

    exits: int | tuple[str, ...] = 3
    threshold: float | None = None
    max_drop: float = 0.005
    criterion: str = "max-softmax"
    keep: bool = False
    body: Literal["frozen", "joint"] = "frozen"

    info: ClassVar[PassInfo] = PassInfo(
        "early-exit",
        Kind.DYNAMIC,
        Granularity.ARCHITECTURE,
        needs=frozenset({"training", "evaluation"}),
        establishes=frozenset({"exits"}),
        repeatable=False,
        revision=2,
        domain="network",
        family="exits",
    )

    def __post_init__(self) -> None:
        named = isinstance(self.exits, tuple) and len(self.exits) > 0 and all(isinstance(n, str) for n in self.exits)
        counted = type(self.exits) is int and self.exits >= 1
        self._check(named or counted, "exits", "a number from 1 or a tuple of names of nodes")
        self._check(self.threshold is None or is_number(self.threshold, 0), "threshold", "None or a number from 0")
        self._check(is_number(self.max_drop, 0), "max_drop", "a number from 0, in units of the metric")
        self._check(self.criterion in ops.CRITERIA, "criterion", f"one of {', '.join(ops.CRITERIA)}")
        self._check(isinstance(self.keep, bool), "keep", "true or false")
        self._check(self.body in ("frozen", "joint"), "body", "'frozen' or 'joint'")

    @property
    def must_pay(self) -> bool:
        """Yes, without ``keep``."""
        return not self.keep

    def apply(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Insert the heads; all exits are computed and returned as a tuple, the final logits last."""
        if exits_of(graph_module):
            raise PassError("early-exit: the network has exits already; give the pass once.")
        self._check_confidence(context.task)
        output = output_node(graph_module)
        final_logits = output.args[0]
        dims = ops.dims_read(self.criterion)
        if not isinstance(final_logits, Node) or len(shape_of(final_logits)) != dims:
            raise PassError(
                f"early-exit: the network does not return one tensor of logits {_FORMS[dims]}, which "
                f"criterion={self.criterion!r} reads; wrap it so that it does."
            )
        body, end = widths_in(layers_of(graph_module)), widths_in(ends_of(graph_module)[1])
        old = set(graph_module.graph.nodes)
        marks, parameters = [], []
        for index, tap in enumerate(self._taps(graph_module, context, final_logits), start=1):
            name = f"exit{index}"
            logits, names = _insert_head(graph_module, name, tap, final_logits, context)
            with graph_module.graph.inserting_after(logits):
                arguments = (logits, name, NEVER if self.threshold is None else self.threshold, self.criterion)
                marks.append(graph_module.graph.call_function(ops.exit_point, arguments, name=name))
            parameters += names
        output.args = ((*marks, final_logits),)
        edit.tidy(graph_module)
        if body is not None:
            last = ends_of(graph_module)[1]
            layers = [layer for layer in layers_of(graph_module) if layer.node not in old]
            widths = {layer: end if end and layer in last else body for layer in layers}
            insert_quantizers(graph_module, widths, context)
            parameters = [name for name, _ in graph_module.named_parameters() if _is_new(name, graph_module, old)]
        return PassResult(graph_module, modified=True, tune=self._request(parameters))

    def finish(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Choose the threshold on the held-out training data and write it into the exit points."""
        if self.threshold is not None:
            return PassResult(graph_module, modified=False)
        if context.validation is None:
            raise PassError(
                "early-exit: max_drop needs held-out data and there is none; give a trainer or a threshold."
            )
        task = context.task
        answers = answers_of(graph_module, context.validation, context.task, context.execution)
        sweep = sweep_thresholds(graph_module, answers, task, context.example_inputs)
        full, *alone = (task.score(tally.sum(dim=0)) for tally in (answers.tallies[-1], *answers.tallies[:-1]))
        allowed = [point for point in sweep if task.metric.loss(full, point["accuracy"]) <= self.max_drop + 1e-9]
        best = min(allowed, key=lambda point: (point["cost"], -point["threshold"]))
        for mark in exits_of(graph_module):
            mark.node.update_arg(2, best["threshold"])
        graph_module.recompile()
        by_exit = {mark.name: score for mark, score in zip(exits_of(graph_module), alone, strict=True)}
        profile = {"threshold": best["threshold"], "full_accuracy": full, "exit_accuracy": by_exit, "sweep": sweep}
        return PassResult(graph_module, modified=True, profile=profile, answers=answers)

    def _request(self, heads: list[str]) -> TuneRequest:
        if self.body == "joint":
            return TuneRequest(optimizer="adam", learning_rate=1e-3, from_scratch=True)
        return TuneRequest(tuple(heads), optimizer="adam", learning_rate=5e-3, weight_decay=0.0, from_scratch=True)

    def _check_confidence(self, task: Task) -> None:
        if not task.criteria:
            raise PassError(
                f"early-exit: the task {task.name!r} does not say how sure an answer is, so no sample can leave early; "
                "leave the pass out, or give a task with criteria."
            )
        if self.criterion not in task.criteria:
            raise PassError(
                f"early-exit: criterion={self.criterion!r} does not fit answers of the task {task.name!r}; "
                f"use {' or '.join(map(repr, task.criteria))}."
            )

    def _taps(self, graph_module: GraphModule, context: PassContext, answer: Node) -> list[Node]:
        def fits(node: Node) -> bool:
            return fits_answer(node, answer)

        if isinstance(self.exits, int):
            return balanced_taps(graph_module, self.exits, context.example_inputs, fits)
        return named_taps(graph_module, self.exits, fits)


def _insert_head(
    graph_module: GraphModule, name: str, tap: Node, answer: Node, context: PassContext
) -> tuple[Node, list[str]]:
    """Put the head that answers as the network does after a tap; the node of its logits, its parameters' names."""
    shape, rng = shape_of(answer), context.rng(name)
    if len(shape) == 2:
        return insert_head(graph_module, ExitHead.for_tap(name, tap, shape[1], context.example_inputs[0]), rng)
    insert = insert_token_head if len(shape) == 3 else insert_pixel_head
    return insert(graph_module, name, tap, answer, rng)


def _is_new(name: str, graph_module: GraphModule, old: set[Node]) -> bool:
    """Whether only nodes that are not in ``old`` read the parameter."""
    readers = [node for node in graph_module.graph.nodes if node.op in ("get_attr", "call_module")]
    users = [node for node in readers if name == str(node.target) or name.startswith(f"{node.target}.")]
    return bool(users) and not any(node in old for node in users)
