"""Networks by name: torchvision's, chainfx's own, and any importable factory."""

import importlib
import inspect
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chainfx.errors import InputError

__all__ = ["load_weights", "resolve_model"]

Factory = Callable[..., Any]


def resolve_model(name: str, **options: Any) -> nn.Module:
    """The network ``name`` builds with ``options``, with weights at random: nothing is ever downloaded.

    ``name``: one of torchvision's (``"resnet18"``), one of :mod:`chainfx.zoo` (``"resnet20"``, or ``"zoo.resnet34"``
    where torchvision has the same name), or ``"package.module:factory"``. Raises
    :class:`~chainfx.errors.InputError` on an unknown name, with close matches, and on options that do not fit.

    >>> sum(p.numel() for p in resolve_model("resnet20", num_classes=10).parameters())
    269722
    """
    factory = _imported(name) if ":" in name else _listed(name)
    try:
        model = factory(**options)
    except (TypeError, ValueError) as error:
        raise InputError(f"model {name!r} cannot be built with options {options} ({error}); change them.") from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model {name!r} gives a {type(model).__name__}, not a torch.nn.Module; name a factory of one."
        )
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict, ``.safetensors`` or what ``torch.save`` wrote (read with ``weights_only=True``), into a model.

    Every key must fit. Raises :class:`~chainfx.errors.InputError` otherwise, naming a key that does not.
    """
    if not path.is_file():
        raise InputError(f"weights {str(path)!r}: there is no such file.")
    state = _state(path)
    own = model.state_dict()
    for problem, keys in (("misses", own.keys() - state.keys()), ("has the unknown key", state.keys() - own.keys())):
        if keys:
            raise InputError(
                f"weights {str(path)!r}: the file {problem} {min(keys)!r} ({len(keys)} such); wrong model?"
            )
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise InputError(
                f"weights {str(path)!r}: {key!r} has shape {tuple(value.shape)}, the model's has "
                f"{tuple(own[key].shape)}; check the model's options."
            )
    model.load_state_dict(state)


def _state(path: Path) -> dict[str, Tensor]:
    import pickle

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        is_safe = path.suffix == ".safetensors"
        state = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"weights {str(path)!r}: not a readable state dict ({reason}).") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"weights {str(path)!r}: not a state dict of tensors; save model.state_dict() alone.")
    return state


def _imported(name: str) -> Factory:
    module_name, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(f"model {name!r}: module {module_name!r} cannot be imported ({error}).") from error
    factory: object = getattr(found, attribute, None)
    if not callable(factory):
        close = get_close_matches(attribute, dir(found), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise InputError(f"model {name!r}: module {module_name!r} has nothing callable named {attribute!r}{hint}")
    return factory


def _listed(name: str) -> Factory:
    import torchvision.models

    import chainfx.zoo

    own: dict[str, Factory] = {
        key: getattr(chainfx.zoo, key) for key in chainfx.zoo.__all__ if inspect.isfunction(getattr(chainfx.zoo, key))
    }
    if name in torchvision.models.list_models():
        return _without_download(torchvision.models.get_model_builder(name))
    if name.removeprefix("zoo.") in own:
        return own[name.removeprefix("zoo.")]
    known = [*torchvision.models.list_models(), *(f"zoo.{key}" for key in own), *own]
    close = sorted(set(get_close_matches(name, known, n=4)))
    hint = f"did you mean {' or '.join(close)}?" if close else "use a torchvision name or one of chainfx.zoo."
    raise InputError(f"there is no model named {name!r}; {hint} A factory of your own is package.module:factory.")


def _without_download(builder: Factory) -> Factory:
    """The builder of a torchvision model, told to load no backbone weights unless the caller says otherwise."""
    if "weights_backbone" not in inspect.signature(builder).parameters:
        return builder
    return lambda **options: builder(**{"weights_backbone": None, **options})
