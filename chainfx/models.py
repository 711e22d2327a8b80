"""Networks by name: torchvision's, chainfx's own, and any importable factory."""

import importlib
import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from torch import nn

from chainfx.errors import InputError

__all__ = ["resolve_model"]

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

    from chainfx.zoo import NETWORKS

    if name in torchvision.models.list_models():
        return _without_download(torchvision.models.get_model_builder(name))
    if name.removeprefix("zoo.") in NETWORKS:
        return NETWORKS[name.removeprefix("zoo.")]
    known = [*torchvision.models.list_models(), *(f"zoo.{key}" for key in NETWORKS), *NETWORKS]
    close = sorted(set(get_close_matches(name, known, n=4)))
    hint = f"did you mean {' or '.join(close)}?" if close else "use a torchvision name or one of chainfx.zoo."
    raise InputError(f"there is no model named {name!r}; {hint} A factory of your own is package.module:factory.")


def _without_download(builder: Factory) -> Factory:
    """The builder of a torchvision model, told to load no backbone weights unless the caller says otherwise."""
    if "weights_backbone" not in inspect.signature(builder).parameters:
        return builder
    return lambda **options: builder(**{"weights_backbone": None, **options})
