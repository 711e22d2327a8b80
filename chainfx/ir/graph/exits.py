"""Early exits on a graph: where they are, which work lies between them, and which answer a sample gets."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from chainfx.ir.graph import edit, ops
from chainfx.ir.graph.mutation import changes_what_is_used
from chainfx.ir.graph.running import called

__all__ = [
    "Answer",
    "Exit",
    "answer_of",
    "choose",
    "exit_rates",
    "exits_of",
    "first_sure",
    "leaving",
    "output_node",
    "segments",
    "shares_of",
]


@dataclass(frozen=True, slots=True)
class Exit:
    """One exit point: its node (``exit_point`` call), literal name, threshold and criterion."""

    node: Node
    name: str
    threshold: float
    criterion: str


def output_node(graph_module: GraphModule) -> Node:
    """The single output node of a graph."""
    found: list[Node] = graph_module.graph.find_nodes(op="output")
    (output,) = found
    return output


def exits_of(graph_module: GraphModule) -> tuple[Exit, ...]:
    """The exits in the order a sample meets them; empty for a network without exits."""
    found = graph_module.graph.find_nodes(op="call_function", target=ops.exit_point)
    return tuple(Exit(node, *node.args[1:]) for node in found)


def segments(graph_module: GraphModule) -> tuple[tuple[Node, ...], ...]:
    """The compute nodes split at the exits: segment i is what exit i needs beyond segments 0 .. i-1.

    The last segment is the rest. Placeholders and the output node belong to no segment. Nodes keep graph order.
    Without exits there is one segment.
    """
    segment_of: dict[Node, int] = {}
    marks = exits_of(graph_module)
    for index, mark in enumerate(marks):
        waiting = [mark.node]
        while waiting:
            node = waiting.pop()
            if node not in segment_of and node.op not in ("placeholder", "output"):
                segment_of[node] = index
                waiting.extend(node.all_input_nodes)
    if marks:
        _place_mutations(graph_module, segment_of)
    parts: tuple[list[Node], ...] = tuple([] for _ in range(len(marks) + 1))
    for node in graph_module.graph.nodes:
        if node.op not in ("placeholder", "output"):
            parts[segment_of.get(node, len(marks))].append(node)
    return tuple(tuple(part) for part in parts)


def _place_mutations(graph_module: GraphModule, segment_of: dict[Node, int]) -> None:
    """Put what changes a tensor in place, and has no users, into the segment of that tensor: others there read it."""
    for node in graph_module.graph.nodes:
        if node.users or node in segment_of or not changes_what_is_used(node, graph_module):
            continue
        chain, current = [node], node.args[0]
        while isinstance(current, Node) and current not in segment_of and current.op not in ("placeholder", "get_attr"):
            chain.append(current)
            current = current.args[0] if current.args else None
        if isinstance(current, Node) and current in segment_of:
            segment_of.update(dict.fromkeys(chain, segment_of[current]))


def leaving(confidence: Tensor, threshold: float) -> Tensor:
    """Which samples leave at an exit (bool, shape (N,)): those whose ``confidence`` (N,) is at least ``threshold``.

    A confidence that is no number (the logits were not finite) is below every threshold: that sample goes on.
    """
    return confidence >= threshold


def choose(logits: tuple[Tensor, ...], exits: tuple[Exit, ...]) -> Tensor:
    """For each sample the index of the first exit that is sure enough, ``len(exits)`` if none: shape (N,), int64.

    ``logits``: the outputs (N, ...) of a network with exits, in exit order, the final one last.
    """
    if not exits:
        return torch.zeros(len(logits[-1]), dtype=torch.int64, device=logits[-1].device)
    sure = [ops.confidence(output, mark.criterion) for output, mark in zip(logits, exits, strict=False)]
    return first_sure(sure, [mark.threshold for mark in exits])


def first_sure(confidences: Sequence[Tensor], thresholds: Sequence[float]) -> Tensor:
    """As :func:`choose`, of how sure each exit is, shape (N,) each, and the threshold of each."""
    index = torch.full((len(confidences[0]),), len(confidences), device=confidences[0].device)
    for place in reversed(range(len(confidences))):
        index = torch.where(leaving(confidences[place], thresholds[place]), place, index)
    return index


class Answer(nn.Module):
    """A network with all its exits computed, answering like the staged one: each sample by the first exit that is sure.

    The reference that staged execution is tested against, and what accuracies of a train form are measured on.
    Without exits it is the network itself.
    """

    def __init__(self, graph_module: GraphModule) -> None:
        super().__init__()
        self.graph_module = graph_module

    def forward(self, *inputs: Tensor) -> Tensor:
        """The answer (N, ...) of the exit that each sample takes."""
        outputs: tuple[Tensor, ...] = self.graph_module(*inputs)
        exits = exits_of(self.graph_module)
        if not exits:
            return outputs  # type: ignore[return-value]  # here the network returns no tuple
        return answer_of(outputs, choose(outputs, exits))


def answer_of(outputs: tuple[Tensor, ...], index: Tensor) -> Tensor:
    """For each sample the output (N, ...) at its index, as :func:`choose` gives it."""
    return torch.stack(outputs)[index, torch.arange(len(index), device=index.device)]


def exit_rates(graph_module: GraphModule, batches: Iterable[tuple[tuple[Tensor, ...], Tensor]]) -> dict[str, float]:
    """The share of all samples in ``batches`` (inputs, targets) that leaves at each exit; empty without exits."""
    exits = exits_of(graph_module)
    if not exits:
        return {}
    with edit.evaluating(graph_module), torch.no_grad():
        chosen = [choose(called(graph_module, *inputs), exits) for inputs, _ in batches]
    return shares_of(torch.cat(chosen), exits)


def shares_of(index: Tensor, exits: tuple[Exit, ...]) -> dict[str, float]:
    """The share of samples that leaves at each exit, by its name; ``index`` is what :func:`choose` gave for them."""
    counts = torch.bincount(index, minlength=len(exits) + 1).tolist()
    return {mark.name: count / len(index) for mark, count in zip(exits, counts, strict=False)}
