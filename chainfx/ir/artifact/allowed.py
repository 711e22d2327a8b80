"""What a saved graph may refer to, by name: functions, tensor methods, leaf modules, literals.

Reading a graph resolves nothing outside these lists, so a file cannot make chainfx call anything else.
"""

import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from chainfx.errors import ArtifactError
from chainfx.ir.graph import DEPTHWISE, DIALECT, ByMode, assign_

__all__ = [
    "build_module",
    "check_call",
    "decode",
    "describe_module",
    "encode",
    "function",
    "function_name",
]

_FUNCTION_MODULES = (
    "torch",
    "torch._C._nn",
    "torch._C._linalg",
    "torch._C._special",
    "torch.functional",
    "torch.nn.functional",
    "math",
    "_operator",
)
_FUNCTION_PACKAGES = ("torchvision.ops.", "torchvision.models.")
_MODULE_PACKAGES = ("torch.nn.", "torchvision.ops.")
_BUILTINS: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (getattr, int, float, bool, len, max, min, abs, round)
}
# what chainfx defines itself goes by a name that does not say in which file; 0.1 wrote the file of its day
_OWN = "chainfx"
_OWN_OF_0_1 = ("chainfx.ir.ops", "chainfx.ir.leaves", "chainfx.ir.depthwise")
_OWN_OPS: tuple[Callable[..., Any], ...] = (*DIALECT, *DEPTHWISE.values(), assign_)
_OWN_FUNCTIONS = {function.__name__: function for function in _OWN_OPS}
_OWN_MODULES: dict[str, type[nn.Module]] = {"ByMode": ByMode}
_ATTRIBUTES = {"shape", "dtype", "device", "ndim", "T", "mT", "H", "mH", "is_cuda", "data", "values", "indices"}
_FORBIDDEN = {"from_file", "set_", "backward", "register_hook", "share_memory_", "numpy", "tolist", "storage", "apply_"}


def function_name(target: Any, node: str) -> str:
    """``module:name`` of a function a node calls; raises :class:`ArtifactError` if it cannot be found again by it."""
    if target in _BUILTINS.values():
        return f"builtins:{target.__name__}"
    if target in _OWN_FUNCTIONS.values():
        return f"{_OWN}:{target.__name__}"
    if isinstance(target, torch._ops.OpOverload):
        return f"aten:{target}"
    name = str(getattr(target, "__name__", target))
    for module in (getattr(target, "__module__", None), "torch", "torch.nn.functional", "torch._C._nn", "math"):
        if module and getattr(_import(module), name, None) is target and _allowed(module, name):
            return f"{module}:{name}"
    raise ArtifactError(f"node {node!r} calls {name!r}, which has no safe name; use a torch function to save it.")


def function(name: str) -> Callable[..., Any]:
    """The function that :func:`function_name` named; raises :class:`ArtifactError` for anything outside the lists."""
    module, _, attribute = name.partition(":")
    if module == "builtins" and attribute in _BUILTINS:
        return _BUILTINS[attribute]
    if module in (_OWN, *_OWN_OF_0_1) and attribute in _OWN_FUNCTIONS:
        return _OWN_FUNCTIONS[attribute]
    if module == "aten":
        return _overload(attribute)
    found: object = getattr(_import(module), attribute, None) if _allowed(module, attribute) else None
    if not callable(found) or isinstance(found, type):
        raise ArtifactError(f"the saved graph calls {name!r}, which chainfx does not load; save it with this version.")
    return found


def check_call(node: Node) -> None:
    """Raise :class:`ArtifactError` unless a method is a tensor's and only computes, and ``getattr`` reads a shape."""
    if node.target is getattr and node.args[1] not in _ATTRIBUTES:
        raise ArtifactError(f"the saved graph reads the attribute {node.args[1]!r}, which chainfx does not load.")
    if node.op != "call_method":
        return
    name = str(node.target)
    if name in _FORBIDDEN or not callable(getattr(torch.Tensor, name, None)) or name.startswith("_"):
        raise ArtifactError(f"the saved graph calls the method {name!r}, which chainfx does not load.")


def _allowed(module: str, name: str) -> bool:
    if (name.startswith("_") and not module.startswith(_FUNCTION_PACKAGES)) or name in _FORBIDDEN:
        return False
    if module == "torch":
        return isinstance(getattr(torch, name, None), type(torch.add)) or name in ("sym_float", "sym_int", "sym_not")
    return module in _FUNCTION_MODULES or module.startswith(_FUNCTION_PACKAGES)


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        found: Any = torch
        for part in module.split(".")[1:] if module.startswith("torch.") else ():
            found = getattr(found, part, None)
        return found if module.startswith("torch.") else None


def _overload(name: str) -> Callable[..., Any]:
    namespace, _, rest = name.partition(".")
    operation, _, overload = rest.partition(".")
    found = getattr(getattr(torch.ops.aten, operation, None), overload, None) if namespace == "aten" else None
    if not isinstance(found, torch._ops.OpOverload):
        raise ArtifactError(f"the saved graph calls the operator {name!r}, which this torch does not have.")
    return found


def describe_module(module: nn.Module, path: str) -> dict[str, Any]:
    """Class and constructor arguments of a leaf module; :class:`ArtifactError` if it cannot be rebuilt from them."""
    own = type(module) in _OWN_MODULES.values()
    name = f"{_OWN if own else type(module).__module__}:{type(module).__qualname__}"
    options: dict[str, Any] = {}
    if not own and not name.startswith(_MODULE_PACKAGES):
        raise ArtifactError(
            f"module {path!r} is of class {name.replace(':', '.')}, whose code a safe file cannot hold; "
            f"replace it by torch.nn modules to save."
        )
    if module._forward_pre_hooks or module._forward_hooks:
        raise ArtifactError(
            f"module {path!r} ({name.replace(':', '.')}) has a hook, whose code a safe file cannot hold; "
            f"take it off (spectral_norm: torch.nn.utils.remove_spectral_norm) to save."
        )
    for key, parameter in _arguments_of(type(module)).items():
        if key in ("self", "device", "dtype") or key.startswith("_") or parameter.kind in (2, 4):
            continue
        if hasattr(module, key):
            value = getattr(module, key)
            options[key] = value is not None if key == "bias" and not isinstance(value, bool) else value
        elif parameter.default is inspect.Parameter.empty:
            raise ArtifactError(
                f"module {path!r} ({name.replace(':', '.')}) does not keep its argument {key!r}, so that it cannot be "
                f"rebuilt; replace it (a parametrization: torch.nn.utils.parametrize.remove_parametrizations) to save."
            )
    described = {"class": name, "options": encode(options)}
    try:
        rebuilt = repr(build_module(described))
    except (TypeError, ValueError) as error:
        rebuilt = f"{type(error).__name__}: {error}"
    if rebuilt != repr(module):
        raise ArtifactError(
            f"module {path!r} ({module}) cannot be rebuilt from its constructor's arguments, which give {rebuilt}; "
            f"replace it by torch.nn modules that keep their arguments."
        )
    return described


def _arguments_of(cls: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """The parameters of a constructor; recurrent layers hand theirs on to that of their base class."""
    if not issubclass(cls, nn.RNNBase):
        return dict(inspect.signature(cls.__init__).parameters)
    found = dict(inspect.signature(nn.RNNBase.__init__).parameters)
    found["nonlinearity"] = inspect.Parameter("nonlinearity", inspect.Parameter.KEYWORD_ONLY, default=None)
    for key in ("mode",) if issubclass(cls, nn.LSTM) else ("mode", "proj_size"):
        del found[key]
    return found


def build_module(described: Mapping[str, Any]) -> nn.Module:
    """The module that :func:`describe_module` described, without its tensors' values."""
    module, _, name = str(described["class"]).partition(":")
    cls: Any = _OWN_MODULES.get(name) if module in (_OWN, *_OWN_OF_0_1) else None
    if f"{module}.".startswith(_MODULE_PACKAGES):
        cls = getattr(_import(module), name, None)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ArtifactError(f"the saved graph has a module {described['class']!r}, which chainfx does not load.")
    built: nn.Module = cls(**decode(described["options"], {}))
    return built


def encode(value: Any) -> Any:
    """A node's argument as JSON; raises :class:`ArtifactError` for what has no safe form."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, Node):
        return {"node": value.name}
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, slice):
        return {"slice": [encode(value.start), encode(value.stop), encode(value.step)]}
    if value is Ellipsis:
        return {"ellipsis": True}
    for kind in ("dtype", "device", "memory_format", "layout"):
        if isinstance(value, getattr(torch, kind)):
            return {kind: str(value)}
    raise ArtifactError(f"the argument {value!r} of type {type(value).__name__} has no safe form.")


def decode(value: Any, nodes: Mapping[str, Node]) -> Any:
    """The argument that :func:`encode` wrote; ``nodes`` by name."""
    if isinstance(value, list):
        return [decode(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        return nodes[content]
    if kind == "tuple":
        return tuple(decode(item, nodes) for item in content)
    if kind == "dict":
        return {decode(key, nodes): decode(item, nodes) for key, item in content}
    if kind == "slice":
        return slice(*(decode(item, nodes) for item in content))
    if kind == "ellipsis":
        return Ellipsis
    if kind == "float":
        return float(content)
    if kind == "device":
        return torch.device(content)
    if kind in ("dtype", "memory_format", "layout"):
        return getattr(torch, content.removeprefix("torch."))
    raise ArtifactError(f"the saved graph has an argument of unknown kind {kind!r}.")
