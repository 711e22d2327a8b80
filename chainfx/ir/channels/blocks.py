"""Residual blocks: the parts of a graph that can be taken out without changing any shape, and how they are grouped."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from chainfx.ir.channels.analyse import ChannelAnalysis
from chainfx.ir.graph import Trait, edit, layers_of, names_with, operator_of, ops, shape_of

__all__ = ["Block", "ResidualStage", "drop_block", "stages_of"]

_ACTIVATIONS = names_with(Trait.ACTIVATION)
_IDEMPOTENT = names_with(Trait.IDEMPOTENT)


@dataclass(frozen=True, slots=True)
class Block:
    """A block, which ends in the node ``out``. ``layers`` are those in the branch of a residual block.

    When it is taken out, what read ``out`` reads ``entry`` instead, the input of the block; ``entry`` is ``None`` for a
    block that must stay.
    """

    out: Node
    entry: Node | None
    layers: frozenset[Node] = frozenset()


@dataclass(frozen=True, slots=True)
class ResidualStage:
    """Consecutive blocks that add to the same channels, so with outputs of one shape: ``layer1`` of a ResNet, say."""

    blocks: tuple[Block, ...]

    @property
    def removable(self) -> tuple[Block, ...]:
        """The blocks whose input and output shapes match, in graph order."""
        return tuple(block for block in self.blocks if block.entry is not None)


def stages_of(graph_module: GraphModule, analysis: ChannelAnalysis) -> tuple[ResidualStage, ...]:
    """The stages of a network, in graph order: those of its residual blocks, or, if it has none, of its plain layers.

    A residual block is an addition ``entry + branch(entry)``. Its branch holds a layer, reads nothing but ``entry``,
    and is read by nothing but the addition. A block with a stride or a projection changes the shape, or has layers on
    both sides of the addition, and must stay. Consecutive residual blocks are of one stage if their outputs have one
    shape and ``analysis`` couples the channels that their branches add. So two residual streams of the same shape are
    two stages, unless neither can be pruned.

    A plain block is a convolution with the norm and the activation that follow it. The shapes of all nodes must be in
    ``node.meta["val"]``.
    """
    layers = {layer.node for layer in layers_of(graph_module)}
    ancestors = _Ancestors()
    blocks = [block for node in graph_module.graph.nodes if (block := _residual(node, layers, ancestors)) is not None]
    if not any(block.entry is not None for block in blocks):
        blocks = [_plain(graph_module, node) for node in layers if node.target in edit.CONVOLUTIONS]
        blocks.sort(key=lambda block: block.out)
    return _grouped(blocks, analysis)


def drop_block(graph_module: GraphModule, block: Block) -> None:
    """Take a block out: what read its output reads its input instead. Call :func:`edit.tidy` after the last one.

    If what comes before and what comes after the block are both ReLU, the second one is taken out too, since it would
    change nothing. Raises :class:`ValueError` for a block that must stay.
    """
    if block.entry is None:
        raise ValueError(f"the block that ends in {block.out.name} cannot be taken out")
    users = list(block.out.users)
    block.out.replace_all_uses_with(block.entry)
    before, after = _name(graph_module, block.entry), _name(graph_module, users[0]) if len(users) == 1 else ""
    if before == after and before in _IDEMPOTENT:
        users[0].replace_all_uses_with(block.entry)


class _Ancestors:
    """The nodes that a node is computed from, itself among them; computed once for every node that is asked for."""

    def __init__(self) -> None:
        self._known: dict[Node, frozenset[Node]] = {}

    def of(self, start: Node) -> frozenset[Node]:
        if start not in self._known:
            waiting, seen = [start], {start}
            while waiting:
                for node in waiting.pop().all_input_nodes:
                    if node not in seen:
                        seen.add(node)
                        waiting.append(node)
            self._known[start] = frozenset(seen)
        return self._known[start]


def _residual(node: Node, layers: set[Node], ancestors: _Ancestors) -> Block | None:
    """The residual block that ends in ``node``; ``None`` if the node is no addition of two branches with layers."""
    if operator_of(node).name != "add" or len(node.args) < 2:
        return None
    one, other = node.args[:2]
    if not (isinstance(one, Node) and isinstance(other, Node)) or not _is_activation(one, other):
        return None
    for entry, branch in ((one, other), (other, one)):
        inside = ancestors.of(branch) - ancestors.of(entry)
        if branch in inside and inside & layers and _is_closed(inside, entry, node):
            same = shape_of(entry) == shape_of(node)
            return Block(node, _unquantized(entry) if same else None, inside & layers)
    differing = (ancestors.of(one) ^ ancestors.of(other)) & layers
    return Block(node, None, differing) if differing else None


def _unquantized(node: Node) -> Node:
    """The value beneath a quantizer: what comes after a block that is taken out has quantizers of its own."""
    return edit.input_of(node) if node.target is ops.quantize_activation else node


def _is_activation(*nodes: Node) -> bool:
    return all(node.op != "get_attr" and isinstance(node.meta.get("val"), Tensor) for node in nodes)


def _is_closed(inside: frozenset[Node], entry: Node, out: Node) -> bool:
    """Whether the branch reads nothing but ``entry`` and parameters, and is read by nothing but ``out``."""
    reads = {value for node in inside for value in node.all_input_nodes} - inside
    read_by = {user for node in inside if node.op != "get_attr" for user in node.users} - inside
    return reads <= {entry} | {value for value in reads if value.op == "get_attr"} and read_by == {out}


def _plain(graph_module: GraphModule, layer: Node) -> Block:
    """A convolution with the norms and activations after it, each of which alone reads the one before."""
    out = layer
    while len(out.users) == 1:
        following = next(iter(out.users))
        norm = edit.module_of(graph_module, following, nn.modules.batchnorm._BatchNorm)
        if norm is None and _name(graph_module, following) not in _ACTIVATIONS:
            break
        out = following
    entry = edit.input_of(layer)
    same = entry.op != "placeholder" and shape_of(entry) == shape_of(out)
    return Block(out, entry if same else None)


def _grouped(blocks: Sequence[Block], analysis: ChannelAnalysis) -> tuple[ResidualStage, ...]:
    stages: list[list[Block]] = []
    last: Any = None
    for block in blocks:
        stage = shape_of(block.out), _stream(block, analysis)
        if stage != last:
            stages.append([])
        stages[-1].append(block)
        last = stage
    return tuple(ResidualStage(tuple(stage)) for stage in stages)


def _stream(block: Block, analysis: ChannelAnalysis) -> frozenset[str]:
    """The names of the channel groups that layers of a block share with layers outside of it."""
    inside = {layer.name for layer in block.layers}
    makers = ((group.name, {source.node for source in group.sources}) for group in analysis.groups)
    return frozenset(name for name, nodes in makers if nodes & inside and nodes - inside)


def _name(graph_module: GraphModule, node: Node) -> str:
    return operator_of(node, graph_module.get_submodule).name
