"""A part of a network: seen as it is called within the whole, and put back into it.

A detection network takes lists of images, and a language model with an encoder generates in loops: no graph can show
the whole, but their backbones and encoders are ordinary networks. What such a part is called with is seen by running
the whole network.
"""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from chainfx.deploy import CompressedModel
from chainfx.errors import InputError
from chainfx.ir.capture import Signature, with_forward
from chainfx.ir.graph import evaluating

__all__ = ["Part", "put_in_place"]

_LITERALS = (bool, int, float, str, type(None))
_M = TypeVar("_M", bound=nn.Module)
# what the generation of transformers tells every encoder, beyond what the network itself does
_FLAGS = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}

Call = dict[str, Any]
"""What a module was called with, by the names of the parameters of its ``forward``."""


@dataclass(frozen=True)
class Part:
    """The module at a dotted path of a model, and the calls of it that were seen on example inputs.

    ``running``: a copy of the model to be run, since running may change what a model keeps.
    """

    model: nn.Module
    running: nn.Module
    path: str
    calls: tuple[Call, ...]

    @classmethod
    def seen(cls, model: nn.Module, running: nn.Module, path: str, example_inputs: Any) -> Self:
        """The part as the model calls it, in eval mode, on one batch of the model's own inputs.

        Inputs are a tuple or list of the arguments of the model, a mapping of them by name, or its only argument.
        Raises :class:`~chainfx.errors.InputError` where there is no such part, the model fails on the inputs or does
        not call the part, or calls it with what a graph cannot take.
        """
        return cls(model, running, path, tuple(_calls(running, path, example_inputs, "example_inputs")))

    def as_called(self) -> tuple[nn.Module, dict[str, Tensor]]:
        """The part with the plain values of its first call as defaults of ``forward``, and the tensors of that call."""
        module, call = self.model.get_submodule(self.path), self.calls[0]
        tensors = {name: value for name, value in call.items() if isinstance(value, Tensor)}
        if not tensors:
            raise InputError(f"part {self.path!r} is called without a tensor; give a part that computes on tensors.")
        values = {name: value for name, value in call.items() if name not in tensors}
        declared = inspect.signature(module.forward).parameters
        if _takes_flags(module):
            values = {**{name: value for name, value in _FLAGS.items() if name not in declared}, **values}
        changed = {name: x for name, x in values.items() if name not in declared or declared[name].default is not x}
        return (_with_defaults(module, changed) if changed else module), tensors

    def check(self, signature: Signature) -> None:
        """Raise :class:`~chainfx.errors.InputError` unless a graph with this signature serves every call seen."""
        self._inputs(signature, self.calls)

    def batch(self, signature: Signature, inputs: Any) -> tuple[Tensor, ...]:
        """What the graph of the part is given first while the model runs on a batch of calibration."""
        return self._inputs(signature, _calls(self.running, self.path, inputs, "calibration"))[0]

    def _inputs(self, signature: Signature, calls: Sequence[Call]) -> list[tuple[Tensor, ...]]:
        found = []
        for call in calls:
            try:
                found.append(signature.bind((), call))
                signature.check(found[-1])
            except InputError as error:
                raise InputError(
                    f"part {self.path!r} is called in several ways, which one graph cannot serve: {error}"
                ) from error
        return found


def put_in_place(model: _M, path: str, small: CompressedModel) -> _M:
    """A copy of a model, in eval mode, with the compressed part in place of its own.

    What the part and its class have in plain attributes, such as the ``out_channels`` of a backbone, goes with it.
    """
    own = model.get_submodule(path)
    of_class = [each for kind in reversed(type(own).__mro__) for each in vars(kind).items()]
    plain = {name: value for name, value in of_class if isinstance(value, _LITERALS)}
    for name, value in {**plain, **vars(own)}.items():
        if not name.startswith("_") and not hasattr(small, name):
            setattr(small, name, copy.deepcopy(value))
    return copy.deepcopy(model, {id(own): small}).eval()


def _calls(model: nn.Module, path: str, inputs: Any, name: str) -> list[Call]:
    """The calls of a part while the model runs on ``inputs``, which the user calls ``name``."""
    module = _submodule(model, path)
    calls: list[Call] = []

    def record(_: nn.Module, args: Any, kwargs: Any) -> None:
        calls.append(_by_name(module, path, args, kwargs))

    handle = module.register_forward_pre_hook(record, with_kwargs=True)
    try:
        with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
            _run(model, inputs, name)
    finally:
        handle.remove()
    if not calls:
        raise InputError(
            f"{type(model).__name__} does not call its part {path!r} on {name}; give a part whose forward it runs."
        )
    return calls


def _submodule(model: nn.Module, path: str) -> nn.Module:
    try:
        found = model.get_submodule(path)
    except AttributeError:
        found = model
    if found is not model:
        return found
    names = ", ".join(name for name, _ in model.named_children()) or "none"
    raise InputError(
        f"part={path!r} is no module inside of {type(model).__name__}; give the dotted path of one (directly in it are "
        f"{names})."
    )


def _run(model: nn.Module, inputs: Any, name: str) -> None:
    try:
        if isinstance(inputs, Mapping):
            model(**inputs)
        else:
            model(*(inputs if isinstance(inputs, tuple | list) else (inputs,)))
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(
            f"{type(model).__name__} does not accept {name}: {reason}; with part=..., give a tuple of its arguments or "
            f"a mapping of them by name."
        ) from error


def _by_name(module: nn.Module, path: str, args: Any, kwargs: Any) -> Call:
    """The arguments of a call by the names of the parameters of ``forward``."""
    declared = inspect.signature(module.forward)
    bound = declared.bind(*args, **kwargs).arguments
    found: Call = {}
    for each in declared.parameters.values():
        if each.kind is each.VAR_KEYWORD:
            found |= bound.get(each.name, {})
        elif each.kind in (each.VAR_POSITIONAL, each.POSITIONAL_ONLY) and each.name in bound:
            raise InputError(f"part {path!r} takes {each.name!r} without a name; give a part whose inputs have names.")
        elif each.name in bound:
            found[each.name] = bound[each.name]
    for name, value in found.items():
        if not isinstance(value, (Tensor, *_LITERALS)):
            raise InputError(
                f"part {path!r} is called with {name!r}, a {type(value).__name__}, which no graph can take; "
                f"{_way_out(value)}."
            )
    return found


def _way_out(value: Any) -> str:
    if type(value).__name__.endswith("Cache"):
        return "a decoder that keeps keys and values cannot be compressed, its encoder can"
    return "give a part that takes tensors alone"


def _takes_flags(module: nn.Module) -> bool:
    further = any(each.kind is each.VAR_KEYWORD for each in inspect.signature(module.forward).parameters.values())
    return further and type(module).__module__.startswith("transformers.")


def _with_defaults(module: nn.Module, values: Mapping[str, Any]) -> nn.Module:
    """The same module, whose ``forward`` has other defaults."""

    def given(forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: forward(*args, **{**values, **kwargs})

    return with_forward(module, given, _declared(module, values))


def _declared(module: nn.Module, values: Mapping[str, Any]) -> inspect.Signature:
    """The signature of ``forward`` with these defaults, and without further keywords."""
    own = inspect.signature(module.forward)
    known = [
        each.replace(default=values.get(each.name, each.default))
        for each in own.parameters.values()
        if each.kind is not each.VAR_KEYWORD
    ]
    names = {each.name for each in known}
    further = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value)
        for name, value in values.items()
        if name not in names
    ]
    return own.replace(parameters=[*known, *further])
