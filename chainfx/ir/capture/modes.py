"""One graph for both modes: compare the trace of a model in train mode with that in eval mode, and merge the two.

Where the traces differ in a constant only, as in ``F.dropout(x, 0.1, self.training)``, the graph takes the constant
from a call of a small module that knows the mode, :class:`~chainfx.ir.graph.leaves.ByMode`. Where a module does other
operations in train mode than in eval mode, no graph can show both; that module stays a leaf, one call in the graph.
"""

import contextlib
import operator
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any

import torch.nn.functional as F
from torch import nn
from torch.fx import Node
from torch.nn.modules.dropout import _DropoutNd

from chainfx.ir.capture.tracer import Trace
from chainfx.ir.graph import LAYERS, ByMode, Scalar, fresh_path, modules_by_path

__all__ = ["follow_training_wiring", "in_mode", "merge_modes", "mode_dependent"]

_Pairs = dict[Node, Node]
_CONTAINERS = frozenset({dict, list})


@contextlib.contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[dict[str, nn.Module]]:
    """Put a model into train mode (``training=True``) or eval mode for a ``with`` block, which gets all its modules.

    The modules are by path. Afterwards each has the mode that it had, and its attributes, lists and dictionaries hold
    what they held: what the model's own code stored in them while it was traced is forgotten.
    """
    modules = modules_by_path(model)
    before = [(vars(module), vars(module).copy(), _contents(module)) for module in modules.values()]
    if any(module.training is not training for module in modules.values()):
        model.train(training)
    try:
        yield modules
    finally:
        for attributes, saved, contents in before:
            attributes.update(saved)
            if len(attributes) > len(saved):
                for name in attributes.keys() - saved.keys():
                    del attributes[name]
            for container, content in contents:
                if (container or content) and not _same_items(container, content):
                    container.clear()
                    container.update(content) if type(container) is dict else container.extend(content)


def _same_items(container: Any, content: Any) -> bool:
    """Whether a list or dictionary holds what its copy holds: then it is left alone, as other threads may read it."""
    same = len(container) == len(content) and all(map(operator.is_, container, content))
    return same and (type(container) is list or all(map(operator.is_, container.values(), content.values())))


def _contents(module: nn.Module) -> list[tuple[Any, Any]]:
    """Every list and dictionary among the attributes of a module, with a copy of it."""
    return [(value, value.copy()) for value in vars(module).values() if type(value) in _CONTAINERS]


def mode_dependent(evaluation: Trace, training: Trace) -> tuple[str, ...]:
    """Name the modules that have to stay leaves, because they compute in another way in train mode than in eval mode.

    ``evaluation`` and ``training`` are the traces of one model in the two modes. A module is named if the operations of
    its own ``forward``, or what they take as arguments, differ between the traces in more than constants. If only one
    mode calls a module, the one that contains the call is named. The result has the dotted paths of the modules,
    sorted, with ``""`` for the model itself.
    """
    shared = [path for path in evaluation.steps if path in training.steps]
    entered_once = set(evaluation.steps) ^ set(training.steps)
    differing = [path for path in shared if not _same_steps(evaluation.steps[path], training.steps[path])]
    differing += [path for path in entered_once if _entered(evaluation, path) and _entered(training, path)]
    if differing:
        return tuple(sorted(differing))
    pairs = _paired(evaluation, training)
    return tuple(sorted({evaluation.scopes[node] for node in pairs if not _same_wiring(node, pairs[node], pairs)}))


def merge_modes(model: nn.Module, evaluation: Trace, training: Trace) -> dict[str, nn.Module]:
    """Change the trace of eval mode so that it holds for both modes.

    Each constant in which the traces differ is replaced by the result of a call of a ``ByMode`` module, which gives the
    one or the other constant by its mode. Returns these modules by the path that the graph calls them at; no module of
    ``model`` has that path.
    """
    modules: dict[str, nn.Module] = {}
    nodes: dict[tuple[str, str], Node] = {}

    def by_mode(trained: Scalar, evaluated: Scalar) -> Node:
        key = (repr(trained), repr(evaluated))
        if key not in nodes:
            path = fresh_path(model, "training_mode" if key == ("True", "False") else f"by_mode{len(nodes)}")
            modules[path] = ByMode(trained, evaluated)
            first = next(node for node in evaluation.graph.nodes if node.op != "placeholder")
            with evaluation.graph.inserting_before(first):
                nodes[key] = evaluation.graph.call_module(path)
        return nodes[key]

    def merged(evaluated: Any, trained: Any) -> Any:
        if isinstance(evaluated, Scalar) and isinstance(trained, Scalar):
            return evaluated if repr(evaluated) == repr(trained) else by_mode(trained, evaluated)
        if isinstance(evaluated, tuple | list):
            return type(evaluated)(merged(*both) for both in zip(evaluated, trained, strict=True))
        if isinstance(evaluated, dict):
            return {key: merged(value, trained[key]) for key, value in evaluated.items()}
        return evaluated

    for node, twin in _paired(evaluation, training).items():
        if not (_same_constants(node.args, twin.args) and _same_constants(node.kwargs, twin.kwargs)):
            node.args = merged(node.args, twin.args)
            node.kwargs = merged(node.kwargs, twin.kwargs)
    return modules


def follow_training_wiring(model: nn.Module, evaluation: Trace, training: Trace) -> None:
    """Mend arguments of an exported eval graph that lie on the wrong side of a dropout, by the graph of train mode.

    In eval mode a dropout returns its own input, so ``torch.export`` cannot tell the two apart and may let a node that
    reads the input of the dropout read its output. In train mode the two differ, and the trace shows what the node
    reads. The trace ``evaluation`` is changed in place.
    """
    pairs = _paired(evaluation, training)
    back = {twin: node for node, twin in pairs.items()}

    def before_dropout(node: Node) -> Node:
        while node.target is F.dropout or (
            node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), _DropoutNd)
        ):
            node = node.all_input_nodes[0]
        return node

    for node, twin in pairs.items():
        for ours, theirs in zip(node.all_input_nodes, twin.all_input_nodes, strict=False):
            wanted = back.get(theirs, ours)
            if wanted is not ours and before_dropout(wanted) is before_dropout(ours):
                node.replace_input_with(ours, wanted)


def _paired(evaluation: Trace, training: Trace) -> _Pairs:
    """For each node of eval mode the node of train mode that does the same; nodes of one mode only are left out."""
    pairs: _Pairs = {}
    for path, steps in evaluation.steps.items():
        twins = training.steps.get(path, [])
        for first, second, size in _matching(steps, twins):
            for node, twin in zip(steps[first : first + size], twins[second : second + size], strict=True):
                if isinstance(node, Node) and isinstance(twin, Node):
                    pairs[node] = twin
    return pairs


def _matching(ours: Sequence[Node | str], theirs: Sequence[Node | str]) -> Sequence[tuple[int, int, int]]:
    """The stretches that two sequences share, as (start in the first, start in the second, length)."""
    if _same_steps(ours, theirs):
        return ((0, 0, len(ours)),)
    one, other = ([_step_key(step) for step in steps] for steps in (ours, theirs))
    return SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks()


def _same_steps(ours: Sequence[Node | str], theirs: Sequence[Node | str]) -> bool:
    return len(ours) == len(theirs) and all(map(_same_step, ours, theirs))


def _same_step(one: Node | str, other: Node | str) -> bool:
    """Whether two steps have the same key."""
    if not isinstance(one, Node) or not isinstance(other, Node):
        return one == other
    alike = one.op == other.op and one.target == other.target
    same = alike and _same_constants(one.args, other.args) and _same_constants(one.kwargs, other.kwargs)
    return same or _step_key(one) == _step_key(other)


def _same_constants(ours: Any, theirs: Any) -> bool:
    """Whether arguments are alike but for the nodes among them."""
    kind = type(ours)
    if ours is theirs or (kind is Node and type(theirs) is Node):
        return True
    if kind is not type(theirs):
        return False
    if isinstance(ours, tuple | list):
        return len(ours) == len(theirs) and all(map(_same_constants, ours, theirs))
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(_same_constants(ours[key], theirs[key]) for key in ours)
    return repr(ours) == repr(theirs)  # NaN, and 1.0 beside 1


def _entered(trace: Trace, path: str) -> bool:
    return any(path in steps for steps in trace.steps.values())


def _step_key(step: Node | str) -> str:
    """What a step does, without the nodes it takes, and, but for layers, without its plain constants."""
    if isinstance(step, str):
        return f"enter {step}"
    exact = step.target in LAYERS
    return f"{step.op} {step.target} {_shape_of(step.args, exact)} {_shape_of(step.kwargs, exact)}"


def _shape_of(value: Any, exact: bool) -> Any:
    if isinstance(value, Node):
        return "node"
    if isinstance(value, slice):
        return ["slice", _shape_of((value.start, value.stop, value.step), True)]
    if isinstance(value, tuple | list):
        return [_shape_of(item, exact) for item in value]
    if isinstance(value, dict):
        return {key: _shape_of(item, exact) for key, item in value.items()}
    return repr(value) if exact or not isinstance(value, Scalar) else "constant"


def _same_wiring(node: Node, twin: Node, pairs: _Pairs) -> bool:
    ours, theirs = node.all_input_nodes, twin.all_input_nodes
    return len(ours) == len(theirs) and all(
        a.target == b.target if a.op == "get_attr" else pairs.get(a) is b for a, b in zip(ours, theirs, strict=True)
    )
