"""Early exits: small classifiers inside the network, at which easy samples leave."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from chainfx.bitops import count
from chainfx.errors import PassError
from chainfx.ir.graph import choose, edit, ends_of, exits_of, layers_of, ops, output_node, segments, shape_of
from chainfx.passes.base import Granularity, Kind, Pass, PassContext, PassInfo, PassResult, TuneRequest, is_number
from chainfx.passes.exiting import ExitHead, insert_head
from chainfx.passes.quantizing import insert_quantizers, widths_in

__all__ = ["NEVER", "EarlyExit"]

NEVER = 1.01
_GRID = 200


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
    256 -> 64 -> classes; for inputs above 64 pixels 4x4 pooling and one linear layer.
    With ``exits=k`` the taps are the k points, among those where one tensor carries everything, nearest to i/(k+1) of
    the MACs; or name the tap nodes. The body is frozen and the heads trained with Adam (5e-3, no weight decay); heads
    of a quantized body are quantized from the start, at the width most of its layers have and, for the classifier, that
    of its last layer.

    After tuning one threshold for all exits is chosen on held-out training data: the least expected bit operations
    ``E[C] = sum_i r_i (B_i + H_i) + r_last B_last`` with an accuracy of at least that of the full network minus
    ``max_drop`` (a share, 0.005 is half a point). ``threshold`` fixes it instead; at 0 every sample leaves at the first
    exit, above 1 none leaves. The full network's answer is unchanged, exactly. Worst-case bit operations rise by the
    heads.

    ``criterion``: ``max-softmax`` (the paper's), ``entropy`` or ``margin``, see
    :func:`chainfx.ir.graph.ops.confidence`.
    """

    exits: int | tuple[str, ...] = 3
    threshold: float | None = None
    max_drop: float = 0.005
    criterion: str = "max-softmax"

    info: ClassVar[PassInfo] = PassInfo(
        "early-exit",
        Kind.DYNAMIC,
        Granularity.ARCHITECTURE,
        needs=frozenset({"training", "evaluation"}),
        establishes=frozenset({"exits"}),
        repeatable=False,
    )

    def __post_init__(self) -> None:
        named = isinstance(self.exits, tuple) and len(self.exits) > 0 and all(isinstance(n, str) for n in self.exits)
        counted = type(self.exits) is int and self.exits >= 1
        self._check(named or counted, "exits", "a number from 1 or a tuple of names of nodes")
        self._check(self.threshold is None or is_number(self.threshold, 0), "threshold", "None or a number from 0")
        self._check(is_number(self.max_drop, 0) and self.max_drop < 1, "max_drop", "a share of accuracy in [0, 1)")
        self._check(self.criterion in ops.CRITERIA, "criterion", f"one of {', '.join(ops.CRITERIA)}")

    def apply(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Insert the heads; all exits are computed and returned as a tuple, the final logits last."""
        if exits_of(graph_module):
            raise PassError("early-exit: the network has exits already; give the pass once.")
        output = output_node(graph_module)
        final_logits = output.args[0]
        if not isinstance(final_logits, Node) or len(shape_of(final_logits)) != 2:
            raise PassError(
                "early-exit: the network does not return one tensor of logits (N, classes); wrap it so that it does."
            )
        classes = shape_of(final_logits)[1]
        body, end = widths_in(layers_of(graph_module)), widths_in(ends_of(graph_module)[1])
        old = set(graph_module.graph.nodes)
        marks, parameters = [], []
        for index, tap in enumerate(self._taps(graph_module, context), start=1):
            head = ExitHead.for_tap(f"exit{index}", tap, classes, context.example_inputs[0])
            logits, names = insert_head(graph_module, head, context.rng(head.name))
            with graph_module.graph.inserting_after(logits):
                arguments = (logits, head.name, NEVER if self.threshold is None else self.threshold, self.criterion)
                marks.append(graph_module.graph.call_function(ops.exit_point, arguments, name=head.name))
            parameters += names
        output.args = ((*marks, final_logits),)
        edit.tidy(graph_module)
        if body is not None:
            last = ends_of(graph_module)[1]
            layers = [layer for layer in layers_of(graph_module) if layer.node not in old]
            widths = {layer: end if end and layer in last else body for layer in layers}
            insert_quantizers(graph_module, widths, context.calibration)
            parameters = [name for name, _ in graph_module.named_parameters() if _is_new(name, graph_module, old)]
        tune = TuneRequest(tuple(parameters), optimizer="adam", learning_rate=5e-3, weight_decay=0.0, from_scratch=True)
        return PassResult(graph_module, modified=True, tune=tune)

    def finish(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Choose the threshold on the held-out training data and write it into the exit points."""
        if self.threshold is not None:
            return PassResult(graph_module, modified=False)
        if context.validation is None:
            raise PassError(
                "early-exit: max_drop needs held-out data and there is none; give a trainer or a threshold."
            )
        logits, targets = _logits(graph_module, context)
        sweep = _sweep(graph_module, logits, targets, context.example_inputs)
        full = _accuracy(logits[-1], targets)
        allowed = [point for point in sweep if point["accuracy"] >= full - self.max_drop - 1e-9]
        best = min(allowed, key=lambda point: (point["cost"], -point["threshold"]))
        for mark in exits_of(graph_module):
            mark.node.update_arg(2, best["threshold"])
        graph_module.recompile()
        alone = {
            mark.name: _accuracy(part, targets) for mark, part in zip(exits_of(graph_module), logits, strict=False)
        }
        profile = {"threshold": best["threshold"], "full_accuracy": full, "exit_accuracy": alone, "sweep": sweep}
        return PassResult(graph_module, modified=True, profile=profile)

    def _taps(self, graph_module: GraphModule, context: PassContext) -> list[Node]:
        cuts = _cuts(graph_module)
        if not isinstance(self.exits, int):
            by_name = {node.name: node for node in graph_module.graph.nodes}
            for name in self.exits:
                if name not in by_name:
                    raise PassError(f"early-exit: there is no node {name!r}; usable are {_names(cuts)}.")
                if by_name[name] not in cuts:
                    raise PassError(
                        f"early-exit: node {name!r} does not carry the whole network; usable are {_names(cuts)}."
                    )
            order = list(graph_module.graph.nodes)
            return sorted((by_name[name] for name in self.exits), key=order.index)
        return _balanced(graph_module, cuts, self.exits, context.example_inputs)


def _names(nodes: Sequence[Node]) -> str:
    return ", ".join(node.name for node in nodes) or "none"


def _is_new(name: str, graph_module: GraphModule, old: set[Node]) -> bool:
    """Whether only nodes that are not in ``old`` read the parameter."""
    readers = [node for node in graph_module.graph.nodes if node.op in ("get_attr", "call_module")]
    users = [node for node in readers if name == str(node.target) or name.startswith(f"{node.target}.")]
    return bool(users) and not any(node in old for node in users)


def _cuts(graph_module: GraphModule) -> list[Node]:
    """The nodes where one tensor of 2 to 4 dimensions carries everything, between the first layer and the last."""
    first, last = ends_of(graph_module)
    nodes = [node for node in graph_module.graph.nodes if node.op not in ("get_attr", "output")]
    place = {node: index for index, node in enumerate(graph_module.graph.nodes)}
    inside = range(*(min(place[layer.node] for layer in end) for end in (first, last)))
    cuts, live = [], set[Node]()
    for node in nodes:
        live = {value for value in live if max(place[user] for user in value.users) > place[node]}
        if node.users and isinstance(node.meta.get("val"), Tensor):
            live.add(node)
        if live == {node} and place[node] in inside and 2 <= len(shape_of(node)) <= 4:
            cuts.append(node)
    return cuts


def _balanced(graph_module: GraphModule, cuts: list[Node], number: int, inputs: Sequence[Tensor]) -> list[Node]:
    """``number`` of the cuts, nearest to equal shares of the MACs; of cuts with equal MACs before them, the last."""
    macs = {row.node: row.macs for row in count(graph_module, inputs).rows}
    total, before, last_with = sum(macs.values()), 0, dict[int, Node]()
    wanted = set(cuts)
    for node in graph_module.graph.nodes:
        before += macs.get(node.name, 0)
        if node in wanted and 0 < before < total:
            last_with[before] = node
    places = sorted(last_with)
    if len(places) < number:
        raise PassError(
            f"early-exit: exits={number}, but the network has only {len(places)} places for an exit "
            f"({_names([last_with[at] for at in places])}); use fewer."
        )
    chosen: list[int] = []
    for index in range(1, number + 1):
        left = [at for at in places[: len(places) - (number - index)] if not chosen or at > chosen[-1]]
        chosen.append(min(left, key=lambda at: abs(at - total * index / (number + 1))))
    return [last_with[at] for at in chosen]


def _logits(graph_module: GraphModule, context: PassContext) -> tuple[tuple[Tensor, ...], Tensor]:
    """The logits of every exit and the final output over the validation data, and the targets."""
    with edit.evaluating(graph_module), torch.no_grad():
        batches = [(graph_module(*inputs), targets) for inputs, targets in context.validation or ()]
    outputs = zip(*(logits for logits, _ in batches), strict=True)
    return tuple(torch.cat(parts).cpu() for parts in outputs), torch.cat([targets for _, targets in batches]).cpu()


def _accuracy(logits: Tensor, targets: Tensor) -> float:
    return float((logits.argmax(dim=1) == targets).float().mean())


def _sweep(
    graph_module: GraphModule, logits: tuple[Tensor, ...], targets: Tensor, inputs: Sequence[Tensor]
) -> list[dict[str, Any]]:
    """Threshold, exit rates, accuracy and expected cost (relative to the full network without heads) on a grid."""
    marks = exits_of(graph_module)
    bit_operations = {row.node: row.bitops for row in count(graph_module, inputs).rows}
    parts = segments(graph_module)
    costs = [float(sum(bit_operations.get(node.name, 0) for node in part)) for part in parts]
    sure = torch.cat([ops.confidence(part, marks[0].criterion) for part in logits[:-1]])
    grid = torch.quantile(sure.double(), torch.linspace(0, 1, _GRID, dtype=torch.float64, device=sure.device)).tolist()
    points = []
    for threshold in (0.0, *sorted({math.floor(value * 1e4) / 1e4 for value in grid}), NEVER):
        index = choose(logits, tuple(replace(mark, threshold=threshold) for mark in marks))
        answers = torch.stack(logits)[index, torch.arange(len(index), device=index.device)]
        rates = (torch.bincount(index, minlength=len(costs)).double() / len(index)).tolist()
        reach = [1 - sum(rates[:place]) for place in range(len(costs))]
        points.append(
            {
                "threshold": threshold,
                "accuracy": _accuracy(answers, targets),
                "cost": sum(share * cost for share, cost in zip(reach, costs, strict=True)) / sum(costs),
                "rates": dict(zip([mark.name for mark in marks], rates, strict=False)),
            }
        )
    return points
