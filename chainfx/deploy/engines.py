"""What a compressed network runs on: the graph of codes lowered to integers, sparse products or float, in segments."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, get_args

from torch import Tensor
from torch.fx import GraphModule

from chainfx.deploy.exporting import (
    disagreement,
    frozen,
    integer_segments,
    matched_layers,
    random_inputs,
)
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
from chainfx.deploy.sparse import lower_to_sparse
from chainfx.errors import InputError
from chainfx.ir.graph import called, operator_of, propagate_shapes

__all__ = ["EngineChoice", "lower_to"]

EngineChoice = Literal["auto", "int8", "sparse", "float", "pt2e"]
"""What a network shall run on; ``"auto"`` is integers where the machine can, and sparse products where they pay."""

_LISTED = 3  # reasons that an error has


def lower_to(
    engine: EngineChoice, graph_module: GraphModule, example_inputs: Sequence[Tensor], machine: Machine
) -> tuple[list[GraphModule], Lowering]:
    """The segments of a network with codes of weights on an engine, over its tensors, and what runs how.

    ``"auto"`` is ``"int8"`` where at least one layer can run in integers on the machine, else ``"sparse"`` where one
    pays as a sparse product (:func:`~chainfx.deploy.sparse.largest_batch`), else ``"float"``; layers that are not in
    integers may be sparse products under ``"int8"`` too. ``"pt2e"`` compiles at once. Raises
    :class:`~chainfx.errors.InputError` for ``"int8"``, ``"sparse"`` and ``"pt2e"`` where no layer can, with the
    reasons, for an unknown engine, and where what Inductor of torch made of the network is not what was asked for.
    """
    if engine not in get_args(EngineChoice):
        raise InputError(f"engine is {engine!r}; give one of {', '.join(map(repr, get_args(EngineChoice)))}.")
    if engine == "pt2e":
        return _by_inductor(graph_module, example_inputs, machine)
    lowered = to_codes(graph_module, shared=True)
    propagate_shapes(lowered, example_inputs)
    reasons = why_in_float(lowered, machine)
    if engine == "int8" and all(reasons.values()):
        raise InputError(_refusal([f"{layer.path}: {reason}" for layer, reason in reasons.items()]))
    if engine in ("sparse", "float") or all(reasons.values()):
        rows = [
            Lowered(layer.path, operator_of(layer.node).spelling, "float", reason or f"{engine=} was asked for")
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
    sparse = {} if engine == "float" else lower_to_sparse(lowered, machine)
    if engine == "sparse" and not sparse:
        raise InputError(
            "engine='sparse' was asked for, but no layer pays as a sparse product here: that takes a linear layer in "
            "float32 on a CPU with MKL, of at least 1,048,576 weights of which 90 % are zero; use engine='auto' or "
            "'float'."
        )
    segments = split_segments(fold_codes(lowered))
    for segment in segments:
        mark_overwrites(segment)
    return segments, _with_rows(lowering, sparse)


def _with_rows(lowering: Lowering, rows: Mapping[str, Lowered]) -> Lowering:
    """The table with other rows for some layers, by their paths."""
    return dataclasses.replace(lowering, rows=tuple(rows.get(row.name, row) for row in lowering.rows))


def _refusal(reasons: Sequence[str]) -> str:
    listed = "; ".join(reasons[:_LISTED]) + ("; ..." if len(reasons) > _LISTED else "")
    return (
        f"engine='int8' was asked for, but no layer can run in integers here ({listed or 'the network has none'}); "
        f"use engine='auto' or 'float', or quantize it otherwise."
    )


def _by_inductor(
    graph_module: GraphModule, example_inputs: Sequence[Tensor], machine: Machine
) -> tuple[list[GraphModule], Lowering]:
    """The segments compiled by Inductor with torchao's passes for x86, each compared with itself before that."""
    segments, rows = integer_segments(graph_module, example_inputs, machine, "engine='pt2e'")
    before, values = matched_layers(), random_inputs(example_inputs)
    with frozen():
        for index, segment in enumerate(segments):
            expected = segment(*values)
            segment.compile(fullgraph=True)
            difference = disagreement(expected, partial(called, segment), values)
            if difference:
                raise InputError(
                    f"engine='pt2e' was asked for, but segment {index} answers otherwise once it is compiled: "
                    f"{difference}; use engine='int8'."
                )
            values = tuple(expected[2:]) if isinstance(expected, tuple) else ()
    found, wanted = matched_layers() - before, sum(row.engine == "pt2e" for row in rows)
    if found != wanted:
        raise InputError(
            f"engine='pt2e' was asked for, but torchao's passes found {found} of the {wanted} layers that can run in "
            f"integers; use engine='int8'."
        )
    return segments, Lowering(machine.instructions, tuple(rows))
