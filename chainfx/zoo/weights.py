"""Weights from a file: a model's own state dict, or a public checkpoint whose layers have other names."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from chainfx.errors import InputError

__all__ = ["LAYOUTS", "load_weights"]

_STAGE, _LAST = (r"^layer([1-9])\.", lambda found: f"stages.{int(found[1]) - 1}."), (r"^linear\.", "fc.")

LAYOUTS: Mapping[str, tuple[tuple[str, Any], ...]] = MappingProxyType(
    {"own": (), "idelbayev": (_STAGE, _LAST), "chenyaofo": (_STAGE, (r"\.downsample\.", ".shortcut."))}
)
"""The names that checkpoints give to layers, each as what is to be replaced by what to have those of the zoo.

``own``: those of ``model.state_dict()``. ``idelbayev``: ``layer1.0.conv1``, ``shortcut``, ``linear``, as in Yerlan
Idelbayev's and in Kuang Liu's networks for CIFAR. ``chenyaofo``: ``layer1.0.conv1``, ``downsample``, ``fc``, as in Chen
Yaofo's and in torchvision's.
"""

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PARALLEL = "module."  # what torch.nn.DataParallel puts before every name
_COUNTER = "num_batches_tracked"


def load_weights(model: nn.Module, path: str | Path, layout: str = "auto") -> None:
    """Load a ``.safetensors`` file, or what ``torch.save`` wrote, into a model; nothing in the file is executed.

    The file holds a state dict, or a checkpoint with one under ``"state_dict"``, ``"model_state_dict"``, ``"model"`` or
    ``"net"``; the prefix ``module.`` of ``torch.nn.DataParallel`` is left out. ``layout`` is one of :data:`LAYOUTS`, or
    ``"auto"`` for the one whose names fit best. Every name and shape must fit, but for ``num_batches_tracked``,
    which older versions of torch did not write: where it is missing the model keeps its own. Raises
    :class:`~chainfx.errors.InputError` otherwise, naming a key that does not fit.

    Checkpoints say nothing of the normalisation of images, which differs from one to the next.

    >>> import tempfile
    >>> from chainfx import zoo
    >>> published = {"module.linear.weight": torch.ones(2, 3), "module.linear.bias": torch.zeros(2)}
    >>> model = nn.Sequential()
    >>> model.fc = nn.Linear(3, 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"state_dict": published, "epoch": 200}, f"{folder}/checkpoint.th")
    ...     zoo.load_weights(model, f"{folder}/checkpoint.th")
    >>> model.fc.weight.sum().item()
    6.0
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise InputError(f"layout={layout!r} is not known; use 'auto', {', '.join(map(repr, LAYOUTS))}.")
    path = Path(path)
    if not path.is_file():
        raise InputError(f"weights {str(path)!r}: there is no such file.")
    found = _state(path)
    readings = [_renamed(found, each) for each in ([layout] if layout != "auto" else LAYOUTS)]
    own = model.state_dict()
    state = min(readings, key=lambda each: sum(map(len, _misfits(each, own).values())))
    for problem, keys in _misfits(state, own).items():
        raise InputError(f"weights {str(path)!r}: the file {problem} {min(keys)!r} ({len(keys)} such); wrong model?")
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise InputError(
                f"weights {str(path)!r}: {key!r} has shape {tuple(value.shape)}, the model's has "
                f"{tuple(own[key].shape)}; check the model's options."
            )
    model.load_state_dict(state, strict=False)


def _misfits(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The names that only the model has, and those that only the file has, by what is to be said of them."""
    missing = [key for key in own if key not in state and not key.endswith(_COUNTER)]
    unknown = [key for key in state if key not in own]
    return {what: keys for what, keys in (("misses", missing), ("has the unknown key", unknown)) if keys}


def _renamed(state: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """The state dict with the names of the zoo, of a file with those of the layout."""
    renamed = {}
    for key, value in state.items():
        for pattern, replacement in LAYOUTS[layout]:
            key = re.sub(pattern, replacement, key)  # noqa: PLW2901 (one name, replaced step by step)
        renamed[key] = value
    return renamed


def _state(path: Path) -> dict[str, Tensor]:
    content = _read(path)
    if isinstance(content, dict):
        content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"weights {str(path)!r}: not a state dict of tensors; save model.state_dict() alone.")
    if content and all(key.startswith(_PARALLEL) for key in content):
        return {key.removeprefix(_PARALLEL): value for key, value in content.items()}
    return content


def _read(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"weights {str(path)!r}: not a readable state dict ({reason}).") from error
