"""Leaf modules that a saved graph calls: written as class and constructor arguments, and built from them again."""

import copy
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from chainfx.errors import ArtifactError
from chainfx.ir.artifact.functions import OWN_NAMES
from chainfx.ir.artifact.literals import decode, encode
from chainfx.ir.artifact.vocabulary import MODULES
from chainfx.ir.graph import ByMode

__all__ = ["build_module", "describe_module"]

_REMEDY = {
    False: "replace it by torch.nn modules",
    True: "take its parametrizations off (torch.nn.utils.parametrize.remove_parametrizations)",
}
# options that say how many modules or tensors a constructor makes, one after the other
_MOST = {"num_layers": 1024}


def describe_module(module: nn.Module, path: str) -> dict[str, Any]:
    """Class and constructor arguments of a leaf module; :class:`ArtifactError` if it cannot be rebuilt from them."""
    home = OWN_NAMES[0] if type(module) is ByMode else type(module).__module__
    name = f"{home}:{type(module).__qualname__}"
    options: dict[str, Any] = {}
    if _class_of(name) is not type(module):
        raise ArtifactError(
            f"module {path!r} is of class {name.replace(':', '.')}, whose code a safe file cannot hold; "
            f"{_REMEDY[is_parametrized(module)]} to save."
        )
    if module._forward_pre_hooks or module._forward_hooks:
        raise ArtifactError(
            f"module {path!r} ({name.replace(':', '.')}) has a hook, whose code a safe file cannot hold; "
            f"take it off (spectral_norm: torch.nn.utils.remove_spectral_norm) to save."
        )
    for key, parameter in _options_of(type(module)):
        if hasattr(module, key):
            value = getattr(module, key)
            options[key] = value is not None if key == "bias" and not isinstance(value, bool) else value
        elif parameter.default is inspect.Parameter.empty:
            raise ArtifactError(
                f"module {path!r} ({name.replace(':', '.')}) does not keep its argument {key!r}, so that it cannot be "
                "rebuilt; replace it by torch.nn modules to save."
            )
    described = {"class": name, "options": encode(options)}
    try:
        again = build_module(described)
        rebuilt, text = repr(again), _text_of(module, again._modules)
    except (TypeError, ValueError) as error:
        rebuilt, text = f"{type(error).__name__}: {error}", repr(module)
    if rebuilt != text:
        raise ArtifactError(
            f"module {path!r} ({module}) cannot be rebuilt from its constructor's arguments, which give {rebuilt}; "
            f"replace it by torch.nn modules that keep their arguments."
        )
    return described


def _text_of(module: nn.Module, children: Mapping[str, Any]) -> str:
    """The text of a module with those of its children alone; others lie in it that the graph calls by themselves."""
    alone = copy.copy(module)
    alone._modules = {name: child for name, child in module._modules.items() if name in children}
    return repr(alone)


def _arguments_of(cls: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """The parameters of a constructor; recurrent layers hand theirs on to that of their base class."""
    if not issubclass(cls, nn.RNNBase):
        return dict(inspect.signature(cls.__init__).parameters)
    found = dict(inspect.signature(nn.RNNBase.__init__).parameters)
    found["nonlinearity"] = inspect.Parameter("nonlinearity", inspect.Parameter.KEYWORD_ONLY, default=None)
    for key in ("mode",) if issubclass(cls, nn.LSTM) else ("mode", "proj_size"):
        del found[key]
    return found


def _options_of(cls: type[nn.Module]) -> list[tuple[str, inspect.Parameter]]:
    """The arguments of a constructor that say what the module is: not where it is, nor initial values."""
    found = _arguments_of(cls).items()
    return [
        (key, parameter)
        for key, parameter in found
        if key not in ("self", "device", "dtype")
        and not key.startswith("_")
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def _class_of(name: str) -> type[nn.Module] | None:
    """The module class of the lists that is written ``module:Class``; ``None`` for anything else."""
    module, _, attribute = name.partition(":")
    if module in OWN_NAMES and attribute == ByMode.__name__:
        return ByMode
    if attribute in MODULES.get(module, ()):
        return getattr(importlib.import_module(module), attribute, None)
    return None


def build_module(described: Mapping[str, Any]) -> nn.Module:
    """The module that :func:`describe_module` described, its tensors on the meta device: they have no values yet.

    Raises :class:`ArtifactError` for a class that is on no list and for options that its constructor does not have.
    """
    cls = _class_of(str(described["class"]))
    if cls is None:
        raise ArtifactError(f"the saved graph has a module {described['class']!r}, which chainfx does not load.")
    options = decode(described["options"], {})
    known = dict(_options_of(cls))
    for key, value in options.items():
        if key not in known or (key in _MOST and not 0 < value <= _MOST[key]):
            raise ArtifactError(f"the saved graph makes a {cls.__name__} with {key}={value!r}, which no network has.")
    with torch.device("meta"):
        return cls(**options)
