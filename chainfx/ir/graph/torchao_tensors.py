"""Weights that are tensors of torchao, in a graph: their parts are stored plainly, and one call puts them together.

What torchao keeps beside the parts (which class the tensor is of, its blocks, how its kernels treat the input) stands
in the call as a text, like ``Int8Tensor(parts=['qdata', 'scale'], block_size=[1, 256], ...)``. Such a text, and that of
a configuration of ``torchao.quantization.quantize_``, is read and never executed: it may name nothing but torchao's own
configurations, tensors, enums and small classes of options.
"""

import ast
import dataclasses
import enum
import functools
import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from chainfx.ir.graph.tracing import one_node

__all__ = ["read_torchao", "torchao_parts", "torchao_text", "torchao_weight", "torchao_weight_of"]

_HOMES = (
    "torchao.quantization",
    "torchao.quantization.quantize_.workflows",
    "torchao.quantization.quantize_.workflows.int8.int8_tensor",
    "torchao.quantization.quantize_.workflows.float8.float8_tensor",
    "torchao.quantization.quantize_.common.quantize_tensor_kwargs",
    "torchao.quantization.quantize_.common.kernel_preference",
    "torchao.float8.inference",
)
"""The modules that a text may name classes of."""

_BASES = {
    "torchao.core.config": "AOBaseConfig",
    "torchao.quantization.granularity": "Granularity",
    "torchao.quantization.quantize_.common.quantize_tensor_kwargs": "QuantizeTensorKwargs",
    "torchao.float8.inference": "Float8MMConfig",
    "torchao.utils": "TorchAOBaseTensor",
}
"""What such a class must be one of, or an enum."""


@one_node
def torchao_weight(parts: Sequence[Tensor], text: str, bits: int, reads: int) -> Tensor:
    """The weight of a linear layer as the tensor of torchao that has these parts.

    ``text`` says which tensor that is, see :func:`torchao_parts`. ``bits`` are those of its codes, ``reads`` those that
    its kernels round the input of the layer to at each call, 32 where they read it in float.
    """
    kind, names, options = _template(text)
    made: Tensor = kind.__tensor_unflatten__(dict(zip(names, parts, strict=True)), dict(options), None, None)
    return made


def torchao_parts(weight: Any) -> tuple[dict[str, Tensor], str]:
    """The plain tensors by name that a tensor of torchao is made of, and the text of all else.

    Both are for :func:`torchao_weight`.

    Raises ``ValueError`` for a tensor with something that has no text.
    """
    names, options = weight.__tensor_flatten__()
    parts = {name: getattr(weight, name) for name in names}
    if not all(type(part) in (Tensor, torch.nn.Parameter) for part in parts.values()):
        raise ValueError(f"a {type(weight).__name__} has parts that are no plain tensors")
    text = _call(type(weight).__name__, {"parts": list(names), **options})
    _template(text)  # so that what is written can be read
    return {name: part.detach() for name, part in parts.items()}, text


@functools.lru_cache(4096)
def _template(text: str) -> tuple[Any, tuple[str, ...], tuple[tuple[str, Any], ...]]:
    """The class of a tensor, the names of its parts, and its other options."""
    call = ast.parse(text, mode="eval").body
    if not isinstance(call, ast.Call):
        raise ValueError(f"{text!r} is no tensor of torchao")
    options = {str(word.arg): _read(word.value) for word in call.keywords}
    return _known(call.func), tuple(options.pop("parts")), tuple(options.items())


def torchao_text(value: Any) -> str:
    """A configuration of torchao, or a part of one, as the Python call that makes it, without options that have their
    default; raises ``ValueError`` for what has no such text, such as a tensor."""
    if isinstance(value, enum.Enum):
        return f"{_checked(type(value)).__name__}.{value.name}"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _call(_checked(type(value)).__name__, value._asdict())
    if isinstance(value, list | tuple):
        inner = ", ".join(map(torchao_text, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' * (len(value) == 1)})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {each.name: each for each in dataclasses.fields(value) if each.init}
        given = {name: getattr(value, name) for name in fields}
        return _call(
            _checked(type(value)).__name__,
            {name: each for name, each in given.items() if not _is_default(fields[name], each)},
        )
    raise ValueError(f"{value!r} of type {type(value).__name__} has no text")


def _is_default(field: "dataclasses.Field[Any]", value: Any) -> bool:
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return type(default) is type(value) and bool(default == value)


def _call(name: str, options: dict[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={torchao_text(value)}' for key, value in options.items())})"


def read_torchao(text: str) -> Any:
    """What a text of :func:`torchao_text` says.

    Raises ``ValueError`` for a text that is anything else, and ``ImportError`` without torchao.
    """
    try:
        return _read(ast.parse(text, mode="eval").body)
    except (SyntaxError, TypeError) as error:
        raise ValueError(f"{text!r} is no configuration: {error}") from error


def _read(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        number: Any = node.operand.value  # a number; anything else is a TypeError
        return -number
    if isinstance(node, ast.List | ast.Tuple):
        items = [_read(each) for each in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return _member(node.value, node.attr)
    if isinstance(node, ast.Call) and not node.args:
        return _known(node.func)(**{str(word.arg): _read(word.value) for word in node.keywords})
    raise ValueError(f"{ast.unparse(node)!r} is nothing that a configuration has")


def _member(owner: ast.Name, name: str) -> Any:
    """A dtype of torch, or a member of an enum of torchao."""
    found = getattr(torch, name, None) if owner.id == "torch" else _known(owner).__members__.get(name)
    if not isinstance(found, torch.dtype | enum.Enum):
        raise ValueError(f"there is no {owner.id}.{name}")
    return found


def _known(name: ast.expr) -> Any:
    """The class of torchao of a name."""
    if not isinstance(name, ast.Name):
        raise ValueError(f"{ast.unparse(name)!r} is no class of torchao")
    for home in filter(_exists, _HOMES):
        found = getattr(importlib.import_module(home), name.id, None)
        if found is not None:
            return _checked(found)
    raise ValueError(f"torchao has no {name.id!r}")


def _checked(found: Any) -> Any:
    """A class, if a text may name it."""
    bases = [getattr(importlib.import_module(home), base) for home, base in _BASES.items() if _exists(home)]
    if not isinstance(found, type) or not issubclass(found, (enum.Enum, *bases)):
        raise ValueError(f"{getattr(found, '__name__', found)!r} is neither a configuration nor a tensor of torchao")
    return found


@functools.cache
def _exists(home: str) -> bool:
    """Whether this torchao has a module; raises ``ImportError`` without torchao."""
    import torchao  # noqa: F401

    return importlib.util.find_spec(home) is not None


def torchao_weight_of(node: Node) -> Node | None:
    """The ``torchao_weight`` node that a linear call reads as its weight; ``None`` for any other node."""
    weight = node.args[1] if node.op == "call_function" and len(node.args) > 1 else None
    return weight if isinstance(weight, Node) and weight.target is torchao_weight else None
