"""A manifest with nothing in it that follows from the rest: what deflates to the fewest bytes, and back.

Nodes name what they read by how many nodes ago it was made, leave out a name that is the usual one, and end before
arguments that are empty. Tensors go by the node that reads them, and share the few combinations of kind and type.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["compact", "unfolded"]

_OPS = ("placeholder", "get_attr", "call_function", "call_method", "call_module", "output")
_NO_KEYWORDS: dict[str, Any] = {"dict": []}  # what literals make of no keyword arguments


def compact(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body whose ``nodes`` are ``[name, op, target, args, kwargs]`` and ``tensors`` as the coded file lists them.

    >>> none = {"dict": []}
    >>> nodes = [["x", "placeholder", "x", [], none], ["relu", "call_module", "relu", [{"node": "x"}], none]]
    >>> body = {"nodes": nodes, "tensors": [["a", "buffer", False, "bool", [2]]]}
    >>> compact(body)["nodes"]
    [[0, 'x'], [4, 'relu', [{'node': 1}]]]
    >>> compact(body)["tensors"], compact(body)["kinds"]
    ([['a', 0, [2]]], [['buffer', False, 'bool']])
    >>> unfolded(compact(body)) == body
    True
    """
    reads = _readers(body["nodes"])
    kinds: list[list[Any]] = []
    tensors = []
    for name, kind, trains, form, *rest in body["tensors"]:
        described = [kind, trains, form if rest else None]
        if described not in kinds:
            kinds.append(described)
        of_form = [rest[0], *(reads.get(mask, mask) for mask in rest[1:])] if rest else [reads.get(form, form)]
        tensors.append([reads.get(name, name), kinds.index(described), *of_form])
    return {**body, "nodes": list(_short_nodes(body["nodes"])), "tensors": tensors, "kinds": kinds}


def unfolded(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body that :func:`compact` was given."""
    nodes = list(_whole_nodes(body["nodes"]))
    tensors = []
    for name, place, *rest in body["tensors"]:
        kind, trains, form = body["kinds"][place]
        of_form = [_named(rest[0], nodes)] if form is None else [form, rest[0], *(_named(m, nodes) for m in rest[1:])]
        tensors.append([_named(name, nodes), kind, trains, *of_form])
    return {**{key: value for key, value in body.items() if key != "kinds"}, "nodes": nodes, "tensors": tensors}


def _readers(nodes: Sequence[Sequence[Any]]) -> dict[str, int]:
    """By the path of a tensor the place of the first node that reads it."""
    found: dict[str, int] = {}
    for place, (_, op, target, _, _) in enumerate(nodes):
        if op == "get_attr":
            found.setdefault(target, place)
    return found


def _named(tensor: int | str, nodes: Sequence[Sequence[Any]]) -> Any:
    return nodes[tensor][2] if isinstance(tensor, int) else tensor


def _short_nodes(nodes: Sequence[Sequence[Any]]) -> Iterator[list[Any]]:
    places: dict[str, int] = {}
    names = _Names()
    for place, (name, op, target, args, kwargs) in enumerate(nodes):
        referred = [_replaced(each, lambda made, here=place: here - places[made]) for each in (args, kwargs)]
        usual = names.usual(target)
        row = [_OPS.index(op), target, *referred, name]
        if name == usual:
            row.pop()
            if row[-1] == _NO_KEYWORDS:
                row.pop()
                if not row[-1]:
                    row.pop()
        names.take(target, name)
        places[name] = place
        yield row


def _whole_nodes(rows: Sequence[Sequence[Any]]) -> Iterator[list[Any]]:
    made: list[str] = []
    names = _Names()
    for place, (op, target, *rest) in enumerate(rows):
        usual: list[Any] = [[], _NO_KEYWORDS, names.usual(target)]
        args, kwargs, name = [*rest, *usual[len(rest) :]]
        referred = [_replaced(each, lambda ago, here=place: made[here - ago]) for each in (args, kwargs)]
        names.take(target, name)
        made.append(name)
        yield [name, _OPS[op], target, *referred]


def _replaced(value: Any, replace: Any) -> Any:
    """A literal with what it says of each node replaced."""
    if isinstance(value, list):
        return [_replaced(each, replace) for each in value]
    if not isinstance(value, dict):
        return value
    return {kind: replace(each) if kind == "node" else _replaced(each, replace) for kind, each in value.items()}


class _Names:
    """The names that torch.fx usually gives: the last part of the target, and a number from its second use on."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def usual(self, target: str) -> str:
        """The name of the next node with a target, after those that were taken."""
        base = self._base(target)
        number = self._numbers.get(base, -1) + 1
        return f"{base}_{number}" if number else base

    def take(self, target: str, name: str) -> None:
        """Note what a node with a target was called."""
        base = self._base(target)
        head, _, number = name.rpartition("_")
        if name == base:
            self._numbers[base] = 0
        elif head == base and number.isdecimal():
            self._numbers[base] = int(number)

    @staticmethod
    def _base(target: str) -> str:
        return target.rpartition(":")[2].replace(".", "_")
