"""How a network is called: the parameters of its ``forward``, and what capturing it fixed of its inputs.

A captured graph takes tensors by position. Its :class:`Signature` turns a call as the original takes it, by position
or by name, into that, and says in one sentence why a call does not fit. It looks at shapes and dtypes alone, so that a
check never waits for a device.
"""

import inspect
import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import map_arg

from chainfx.errors import InputError
from chainfx.ir.capture.guards import Bounds
from chainfx.ir.capture.outputs import OutputForm, each_tensor
from chainfx.ir.capture.parameters import (
    LITERALS,
    Given,
    Input,
    Omitted,
    dimension,
    parameter_from_dict,
    parameter_to_dict,
    word,
)
from chainfx.ir.capture.wrappers import check_readable
from chainfx.ir.graph import shape_of

__all__ = ["Signature", "arguments", "signature_of"]

_NONE = inspect.Parameter.empty
_GIVEN: dict[Any, Given] = {
    inspect.Parameter.POSITIONAL_ONLY: "position",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "either",
    inspect.Parameter.KEYWORD_ONLY: "name",
}


@dataclass(frozen=True, slots=True)
class Signature:
    """How a captured network is called.

    ``parameters``: those of ``forward``, in its order. ``why``: what fixed the sizes, in words; empty if none is fixed.
    ``bounded_by``: the line of code that branches on a size, empty if none is bounded. ``answers``: where the first
    dimension of each tensor of the output of the graph is moved to; empty if all stay.
    ``output``: how to put the output of the graph into the classes that the original returns, ``None`` if it is plain.

    >>> signature, _ = signature_of(nn.Bilinear(2, 3, 4), (torch.zeros(5, 2), torch.zeros(5, 3)))
    >>> [(each.name, each.shape) for each in signature.inputs]
    [('input1', (5, 2)), ('input2', (5, 3))]
    >>> [tuple(tensor.shape) for tensor in signature.bind((torch.zeros(7, 2),), {"input2": torch.zeros(7, 3)})]
    [(7, 2), (7, 3)]
    """

    parameters: tuple[Input | Omitted, ...]
    why: str = ""
    output: OutputForm | None = None
    bounded_by: str = ""
    answers: tuple[int, ...] = ()

    @classmethod
    def by_position(cls, names: Sequence[str], examples: Sequence[Tensor]) -> "Signature":
        """Of a graph of which no more is known: inputs by position alone, no size fixed."""
        named = zip(names, examples, strict=True)
        return cls(tuple(Input(name, "position", tuple(x.shape), x.dtype) for name, x in named))

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The parameters that the graph takes, in its order."""
        return tuple(each for each in self.parameters if isinstance(each, Input))

    @property
    def by_name(self) -> tuple[str, ...]:
        """The names of the last inputs, those that the original has to be given by name.

        All inputs before them can be given by position: no parameter between them is left out.
        """
        names: list[str] = []
        gap = False
        for each in self.parameters:
            gap = gap or each.given == "name" or isinstance(each, Omitted)
            if gap and isinstance(each, Input):
                names.append(each.name)
        return tuple(names)

    def with_fixed_sizes(self, why: str, free: Collection[tuple[int, int]] = ()) -> "Signature":
        """The signature of a graph that has written down every size but the batch and those that are ``free``.

        The batch is the first dimension of the first input, and of every other one of the same length there. ``free``
        has the numbers of inputs with the dimensions of them.
        """
        first = self.inputs[0].shape[:1]
        numbers = {each.name: number for number, each in enumerate(self.inputs)}

        def fixed(each: Input) -> Input:
            start = 1 if each.shape[:1] == first else 0
            dims = range(start, len(each.shape))
            return replace(each, fixed=tuple(dim for dim in dims if (numbers[each.name], dim) not in free))

        parameters = tuple(fixed(each) if isinstance(each, Input) else each for each in self.parameters)
        return replace(self, parameters=parameters, why=why)

    def with_bounds(self, bounds: Bounds) -> "Signature":
        """The signature of a graph that holds for some sizes only: where the code takes the same way as traced."""
        numbers = {each.name: number for number, each in enumerate(self.inputs)}

        def bounded(each: Input) -> Input:
            places = [(numbers[each.name], dim) for dim in range(len(each.shape))]
            limits = tuple((dim, *bounds.limits[place]) for dim, place in enumerate(places) if place in bounds.limits)
            tied = tuple((dim, bounds.tied[place]) for dim, place in enumerate(places) if place in bounds.tied)
            return replace(each, limits=limits, tied=tied)

        parameters = tuple(bounded(each) if isinstance(each, Input) else each for each in self.parameters)
        return replace(self, parameters=parameters, bounded_by=bounds.line)

    def with_batch_of(self, caller: "Signature") -> "Signature":
        """The signature of a graph that has the batch first, for callers that have it where ``caller`` says."""
        batch = {each.name: each.batch for each in caller.inputs}

        def placed(each: Input) -> Input:
            dims = list(range(1, len(each.shape)))
            dims.insert(batch[each.name], 0)  # by the caller's dimensions those of the graph
            fixed = tuple(dim for dim, own in enumerate(dims) if own in each.fixed)
            limits = tuple((dims.index(own), least, most) for own, least, most in each.limits)
            tied = tuple((dims.index(own), group) for own, group in each.tied)
            shape = tuple(each.shape[own] for own in dims)
            return replace(each, shape=shape, fixed=fixed, limits=limits, tied=tied, batch=batch[each.name])

        parameters = tuple(placed(each) if isinstance(each, Input) else each for each in self.parameters)
        return replace(self, parameters=parameters, answers=caller.answers if any(caller.answers) else ())

    def with_batches(self, batches: Mapping[str, int], answers: tuple[int, ...]) -> "Signature":
        """The signature of a graph that has inputs with these dimensions at the front, and answers moved back."""
        parameters = tuple(
            replace(each, batch=batches.get(each.name, 0)) if isinstance(each, Input) else each
            for each in self.parameters
        )
        return replace(self, parameters=parameters, answers=answers)

    def with_dtypes_of(self, tensors: Sequence[Tensor]) -> "Signature":
        """The signature of the same graph in another precision, for example inputs in it."""
        dtypes = {each.name: x.dtype for each, x in zip(self.inputs, tensors, strict=True)}
        parameters = tuple(
            replace(each, dtype=dtypes[each.name]) if isinstance(each, Input) else each for each in self.parameters
        )
        return replace(self, parameters=parameters)

    def to_graph(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Inputs as callers have them with the batch first, as the graph takes them."""
        given = zip(self.inputs, tensors, strict=True)
        return tuple(x.movedim(known.batch, 0) if known.batch else x for known, x in given)

    def from_graph(self, plain: Any) -> Any:
        """What the original returns, from what the graph does: its classes, and the batch where it has it."""
        if any(self.answers):
            dims = iter(self.answers)
            plain = each_tensor(plain, lambda x: x.movedim(0, next(dims)))
        return plain if self.output is None else self.output.put(plain)

    def fits(self, plain: Any) -> bool:
        """Whether the output of a graph is what the signature says, nodes that know their shape in place of tensors."""
        if self.output is not None and not self.output.fits(plain):
            return False
        ranks: list[int] = []
        if self.answers:
            map_arg(plain, lambda node: ranks.append(len(shape_of(node))))
        return len(ranks) == len(self.answers) and all(map(operator.lt, self.answers, ranks))

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """The inputs of the graph in its order, from a call as the original takes it.

        A parameter that was left out may be given its default. Raises :class:`~chainfx.errors.InputError` for inputs
        that are missing, not known, given twice, or left out when the network was captured.
        """
        placed = [each for each in self.parameters if each.given != "name"]
        if len(args) > len(placed):
            raise self._refused(f"{len(args)} inputs are given by position")
        # torch.compile of torch 2.9 does not know zip(strict=False)
        values = {placed[index].name: value for index, value in enumerate(args)}
        known = {each.name: each for each in self.parameters}
        for name, value in kwargs.items():
            if name not in known:
                raise self._refused(f"{name!r} is not among them")
            if known[name].given == "position":
                raise self._refused(f"{name!r} is given by name")
            if name in values:
                raise self._refused(f"{name!r} is given twice")
            values[name] = value
        for each in self.parameters:
            if isinstance(each, Input) and each.name not in values:
                raise self._refused(f"{each.name!r} is missing")
            if isinstance(each, Omitted) and each.name in values and not each.is_default(values[each.name]):
                raise InputError(
                    f"the network was captured without an example of {each.name!r}, which keeps its default "
                    f"{each.default}; leave it out, or compile with an example of it."
                )
        return tuple(values[each.name] for each in self.parameters if isinstance(each, Input))

    def check(self, tensors: Sequence[Any]) -> None:
        """Raise :class:`~chainfx.errors.InputError` if inputs in the order of the graph are not what it computes for.

        That is another size in a fixed dimension, another number of dimensions, another kind of dtype (floating point,
        complex, integer, boolean), or something that is no tensor.
        """
        for known, given in zip(self.inputs, tensors, strict=True):
            if not isinstance(given, Tensor):
                raise InputError(f"input {known.name!r} is a {type(given).__name__}; give a tensor.")
            if given.dim() != len(known.shape):
                raise InputError(
                    f"input {known.name!r} has shape {_shape(given.shape)} of {given.dim()} dimensions, but the "
                    f"network was captured with {len(known.shape)}, {_shape(known.shape)}; give as many."
                )
            if given.dtype != known.dtype and _kind(given.dtype) != _kind(known.dtype):
                raise InputError(
                    f"input {known.name!r} has dtype {given.dtype}, but the network was captured with {known.dtype}; "
                    f"give {_kind(known.dtype)} values."
                )
            for dim in known.fixed:
                if given.shape[dim] != known.shape[dim]:
                    raise InputError(
                        f"input {known.name!r} has shape {_shape(given.shape)}, but its dimension {dim} is fixed at "
                        f"{known.shape[dim]}, as {self.why}; give that size, or compile with an example of the other."
                    )
            for dim, least, most in known.limits:
                if given.shape[dim] < least or (most is not None and given.shape[dim] > most):
                    allowed = f"{least} or more" if most is None else f"{least} to {most}"
                    raise InputError(
                        f"input {known.name!r} has shape {_shape(given.shape)}, but its dimension {dim} has to be "
                        f"{allowed}, as the code goes another way for others at {self.bounded_by}; give such a size, "
                        f"or compile with an example of the other."
                    )
        self._check_tied(tensors)

    def has_shapes_of(self, tensors: Sequence[Tensor]) -> bool:
        """Whether tensors in the order of the graph have the shapes of the example inputs."""
        return [x.shape for x in tensors] == [each.shape for each in self.inputs]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, for :meth:`from_dict`."""
        output = {"output": self.output.to_dict()} if self.output is not None else {}
        bounded = {"bounded_by": self.bounded_by} if self.bounded_by else {}
        answers = {"answers": list(self.answers)} if any(self.answers) else {}
        parameters = [parameter_to_dict(each) for each in self.parameters]
        return {"parameters": parameters, "why": self.why, **output, **bounded, **answers}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Signature":
        """What :meth:`to_dict` wrote; raises ``KeyError``, ``TypeError`` or ``ValueError`` for anything else."""
        output = OutputForm.from_dict(data["output"]) if "output" in data else None
        parameters = tuple(parameter_from_dict(each) for each in data["parameters"])
        answers = tuple(map(dimension, data.get("answers", ())))
        return cls(parameters, word(data["why"]), output, word(data.get("bounded_by", "")), answers)

    def _check_tied(self, tensors: Sequence[Tensor]) -> None:
        first: dict[int, tuple[str, int, int]] = {}
        for known, given in zip(self.inputs, tensors, strict=True):
            for dim, group in known.tied:
                name, other, size = first.setdefault(group, (known.name, dim, given.shape[dim]))
                if given.shape[dim] != size:
                    raise InputError(
                        f"input {known.name!r} has size {given.shape[dim]} in dimension {dim}, and {name!r} has {size} "
                        f"in dimension {other}, but they have to be equal, as the code goes another way for others at "
                        f"{self.bounded_by}; give equal sizes, or compile with an example of the other."
                    )

    def _refused(self, problem: str) -> InputError:
        names = [f"{each.name} (by name)" if each.given == "name" else each.name for each in self.inputs]
        return InputError(f"the network takes {', '.join(names)}, but {problem}; call it as the original.")


def signature_of(
    model: nn.Module, example_inputs: Sequence[Tensor] | Mapping[str, Tensor]
) -> tuple[Signature, tuple[Tensor, ...]]:
    """The signature of a model for these examples, with no size fixed, and the examples in the order of ``forward``.

    A sequence is for the parameters of ``forward`` in their order, those that have to be given by name and have no
    default last; a mapping is by name. Raises :class:`~chainfx.errors.InputError` for examples that are no tensors or
    not those that ``forward`` takes.
    """
    check_readable(model)
    names = list(example_inputs) if isinstance(example_inputs, Mapping) else None
    tensors = _tensors(example_inputs.values() if isinstance(example_inputs, Mapping) else example_inputs)
    declared = _declared(model, names or [], len(tensors) if names is None else 0)
    in_turn = [name for name, given, default in declared if given != "name" or default is _NONE]
    examples = dict(zip(in_turn if names is None else names, tensors, strict=False))
    required = [name for name, _, default in declared if default is _NONE]
    known = [name for name, _, _ in declared]
    if len(examples) < len(tensors) or not set(required) <= examples.keys() <= set(known):
        has = len(tensors) if names is None else ", ".join(map(str, names))
        raise InputError(
            f"{type(model).__name__}.forward takes {', '.join(known) or 'nothing'} and needs "
            f"{', '.join(required) or 'nothing'}, but example_inputs has {has}; give one tensor for each input."
        )
    parameters = tuple(_parameter(*each, examples) for each in declared)
    return Signature(parameters), tuple(examples[name] for name in known if name in examples)


def arguments(inputs: Sequence[Any], by_name: Sequence[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How the original is given ``inputs``: by position, and the last by these names (:attr:`Signature.by_name`)."""
    placed = len(inputs) - len(by_name)
    return tuple(inputs[:placed]), dict(zip(by_name, inputs[placed:], strict=True))


def _tensors(values: Iterable[Any]) -> tuple[Tensor, ...]:
    found = (values,) if isinstance(values, Tensor) else tuple(values)
    wrong = [type(x).__name__ for x in found if not isinstance(x, Tensor)]
    if not found or wrong:
        given = f"has a {wrong[0]}" if wrong else "is empty"
        raise InputError(
            f"example_inputs {given}; give a tuple of tensors, one for each positional input of the model."
        )
    return found


def _declared(model: nn.Module, names: Sequence[Any], count: int) -> list[tuple[str, Given, Any]]:
    """The parameters of ``forward`` as (name, how they are given, default), ``_NONE`` for no default.

    ``*args`` are as many as make ``count`` parameters by position, ``**kwargs`` those of ``names`` that are no others.
    """
    found: list[tuple[str, Given, Any]] = []
    for each in inspect.signature(model.forward).parameters.values():
        if each.kind is each.VAR_POSITIONAL:
            found += [(f"{each.name}_{index}", "position", _NONE) for index in range(count - len(found))]
        elif each.kind is each.VAR_KEYWORD:
            known = [name for name, _, _ in found]
            further = [name for name in names if isinstance(name, str) and name.isidentifier() and name not in known]
            found += [(name, "name", _NONE) for name in further]
        else:
            found.append((each.name, _GIVEN[each.kind], each.default))
    return found


def _parameter(name: str, given: Given, default: Any, examples: Mapping[str, Tensor]) -> Input | Omitted:
    example = examples.get(name)
    if example is None:
        return Omitted(name, given, repr(default) if isinstance(default, LITERALS) else "...")
    return Input(name, given, tuple(example.shape), example.dtype)


def _shape(sizes: Sequence[int]) -> str:
    return str(tuple(sizes))


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "floating-point"
    if dtype.is_complex:
        return "complex"
    return "boolean" if dtype == torch.bool else "integer"
