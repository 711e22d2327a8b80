"""What a compressed network runs on: the graph of codes lowered to integers or to float, cut into segments."""

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor
from torch.fx import GraphModule

from chainfx.deploy.integers import (
    Lowered,
    Lowering,
    Machine,
    lower_to_integers,
    mark_overwrites,
    of_torchao,
    why_in_float,
)
from chainfx.deploy.lower import fold_codes, split_segments, to_codes
from chainfx.errors import InputError
from chainfx.ir.graph import operator_of, propagate_shapes

__all__ = ["EngineChoice", "lower_to"]

EngineChoice = Literal["auto", "int8", "float"]
"""What a network shall run on; ``"auto"`` is integers where the machine can."""

_LISTED = 3  # reasons that an error has


def lower_to(
    engine: EngineChoice, graph_module: GraphModule, example_inputs: Sequence[Tensor], machine: Machine
) -> tuple[list[GraphModule], Lowering]:
    """The segments of a network with codes of weights on an engine, over its tensors, and what runs how.

    ``"auto"`` is ``"int8"`` where at least one layer can run in integers on the machine. Raises
    :class:`~chainfx.errors.InputError` for ``"int8"`` where none can, with the reasons, and for an unknown engine.
    """
    if engine not in get_args(EngineChoice):
        raise InputError(f"engine is {engine!r}; give one of {', '.join(map(repr, get_args(EngineChoice)))}.")
    lowered = to_codes(graph_module, shared=True)
    propagate_shapes(lowered, example_inputs)
    reasons = why_in_float(lowered, machine)
    if engine == "int8" and all(reasons.values()):
        raise InputError(_refusal([f"{layer.path}: {reason}" for layer, reason in reasons.items()]))
    if engine == "float" or all(reasons.values()):
        rows = [
            Lowered(layer.path, operator_of(layer.node).spelling, "float", reason or "engine='float' was asked for")
            for layer, reason in reasons.items()
        ]
        rows += [
            Lowered(node.name, operator_of(node).spelling, "float", of_torchao(node))
            for node in lowered.graph.nodes
            if of_torchao(node)
        ]
        lowering = Lowering(machine.instructions, tuple(rows))
    else:
        lowering = lower_to_integers(lowered, machine)
    segments = split_segments(fold_codes(lowered))
    for segment in segments:
        mark_overwrites(segment)
    return segments, lowering


def _refusal(reasons: Sequence[str]) -> str:
    listed = "; ".join(reasons[:_LISTED]) + ("; ..." if len(reasons) > _LISTED else "")
    return (
        f"engine='int8' was asked for, but no layer can run in integers here ({listed or 'the network has none'}); "
        f"use engine='auto' or 'float', or quantize it otherwise."
    )
