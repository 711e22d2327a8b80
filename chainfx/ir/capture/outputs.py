"""What a network returns, in the classes of the original: named tuples, dataclasses, dictionaries of their own kind.

A graph returns tensors, and tuples, lists and dictionaries of them. :func:`taken_apart` makes that of what the code of
a model returns, and an :class:`OutputForm` that says how to put it together again. The form of a saved network names
classes: :func:`class_named` knows an exact list of them, and makes one with the same fields in place of any other.
"""

import collections
import dataclasses
import importlib
import keyword
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.fx import Proxy

from chainfx.errors import CaptureError

__all__ = ["OutputForm", "each_tensor", "taken_apart"]

Kind = Literal["tuple", "list", "dict", "named tuple", "dataclass", "mapping", "model output"]

_PLAIN = (Proxy, Tensor, bool, int, float, str, type(None), torch.dtype, torch.device, torch.Size)
_OWN: dict[Any, Kind] = {tuple: "tuple", list: "list", dict: "dict"}
_DEEPEST = 20
_OUTPUTS = "transformers.modeling_outputs"
_OF_TRANSFORMERS = {
    "BackboneOutput",
    "BaseModelOutput",
    "BaseModelOutputWithCrossAttentions",
    "BaseModelOutputWithNoAttention",
    "BaseModelOutputWithPast",
    "BaseModelOutputWithPastAndCrossAttentions",
    "BaseModelOutputWithPooling",
    "BaseModelOutputWithPoolingAndCrossAttentions",
    "BaseModelOutputWithPoolingAndNoAttention",
    "BaseModelOutputWithPoolingAndProjection",
    "CausalLMOutput",
    "CausalLMOutputWithCrossAttentions",
    "CausalLMOutputWithPast",
    "DepthEstimatorOutput",
    "ImageClassifierOutput",
    "ImageClassifierOutputWithNoAttention",
    "ImageSuperResolutionOutput",
    "MaskedImageModelingOutput",
    "MaskedLMOutput",
    "MultipleChoiceModelOutput",
    "NextSentencePredictorOutput",
    "QuestionAnsweringModelOutput",
    "SemanticSegmenterOutput",
    "Seq2SeqLMOutput",
    "Seq2SeqModelOutput",
    "Seq2SeqQuestionAnsweringModelOutput",
    "Seq2SeqSequenceClassifierOutput",
    "SequenceClassifierOutput",
    "SequenceClassifierOutputWithPast",
    "TokenClassifierOutput",
    "Wav2Vec2BaseModelOutput",
    "XVectorOutput",
}


@dataclass(frozen=True, slots=True)
class OutputForm:
    """How the plain output of a graph becomes what the original returns.

    ``kind``: of the object. ``keys``: of its parts, none for tuples and lists. ``parts``: their forms in the same
    order, ``None`` for a part that stays as the graph gives it. ``name``: of the class with its module, empty for what
    is Python's own. ``made_by``: the class itself.

    >>> form = OutputForm("named tuple", ("scores", "boxes"), (None, None), "detector.Found")
    >>> form.put((1, 2))
    Found(scores=1, boxes=2)
    """

    kind: Kind
    keys: tuple[Any, ...]
    parts: "tuple[OutputForm | None, ...]"
    name: str = ""
    made_by: Any = field(default=None, compare=False, repr=False)

    def put(self, plain: Any) -> Any:
        """The output of the graph in the classes of the original."""
        values = list(plain.values()) if isinstance(plain, dict) else plain
        done = [value if part is None else part.put(value) for part, value in zip(self.parts, values, strict=True)]
        if self.kind == "list":
            return done
        if self.kind == "tuple":
            return tuple(done)
        named = dict(zip(self.keys, done, strict=True))
        if self.kind == "dict":
            return named
        made_by = self.made_by or class_named(self.name, self.kind, self.keys)
        return made_by(named) if self.kind == "mapping" else made_by(**named)

    def fits(self, plain: Any) -> bool:
        """Whether the output of a graph, nodes in place of tensors, has such parts."""
        plain_kind: Any = {"tuple": tuple, "list": list, "named tuple": tuple}.get(self.kind, dict)
        if not isinstance(plain, plain_kind) or len(plain) != len(self.parts):
            return False
        if isinstance(plain, dict) and tuple(plain) != self.keys:
            return False
        values = plain.values() if isinstance(plain, dict) else plain
        return all(part is None or part.fits(value) for part, value in zip(self.parts, values, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, for :meth:`from_dict`."""
        parts = [part and part.to_dict() for part in self.parts]
        return {"kind": self.kind, "keys": list(self.keys), "parts": parts, "name": self.name}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], depth: int = 0) -> "OutputForm":
        """What :meth:`to_dict` wrote; raises ``KeyError``, ``TypeError`` or ``ValueError`` for anything else."""
        kind, keys, name = data["kind"], tuple(data["keys"]), data["name"]
        if kind not in get_args(Kind) or depth > _DEEPEST or not isinstance(name, str):
            raise ValueError(f"an output is not a {kind!r}")
        parts = tuple(None if part is None else cls.from_dict(part, depth + 1) for part in data["parts"])
        if kind in ("tuple", "list"):
            valid = not keys
        else:
            valid = len(set(keys)) == len(keys) == len(parts) and all(type(key) in (str, int) for key in keys)
        if kind in ("named tuple", "dataclass", "model output"):
            valid = valid and all(map(_is_word, [*keys, name.rpartition(".")[2]]))
            valid = valid and not any(str(key).startswith("_") for key in keys)
        if not valid:
            raise ValueError(f"a {kind} has not the parts {keys}")
        return cls(kind, keys, parts, name)

    def __reduce__(self) -> Any:
        """By name alone where the class cannot be imported, as one that was made in place of it."""
        owner: Any = sys.modules.get(getattr(self.made_by, "__module__", ""))
        for word in getattr(self.made_by, "__qualname__", "").split("."):
            owner = getattr(owner, word, None)
        kept = self.made_by if owner is self.made_by else None
        return OutputForm, (self.kind, self.keys, self.parts, self.name, kept)

    def __deepcopy__(self, memo: dict[int, Any]) -> "OutputForm":
        return self


def taken_apart(value: Any, owner: str) -> tuple[Any, OutputForm | None]:
    """What a model returned as tensors, tuples, lists and dictionaries, and the form to put it together again.

    The form is ``None`` for what is plain already. Tensors may be proxies. Raises
    :class:`~chainfx.errors.CaptureError`, which calls the model ``owner``, for objects that are none of these.
    """
    kind = _kind_of(value, owner)
    if kind is None:
        return value, None
    keys, values = _parts_of(value, kind)
    done = [taken_apart(each, owner) for each in values]
    forms = tuple(form for _, form in done)
    plain: Any = [part for part, _ in done]
    if kind in ("tuple", "named tuple"):
        plain = tuple(plain)
    elif kind != "list":
        plain = dict(zip(keys, plain, strict=True))
    if kind in ("tuple", "list", "dict"):
        return plain, None if not any(forms) else OutputForm(kind, keys, forms)
    made_by = type(value)
    return plain, OutputForm(kind, keys, forms, f"{made_by.__module__}.{made_by.__qualname__}", made_by)


def each_tensor(plain: Any, change: Callable[[Any], Any]) -> Any:
    """A plain output with every tensor, or proxy of one, changed; numbers, texts and ``None`` stay."""
    if isinstance(plain, dict):
        return {key: each_tensor(value, change) for key, value in plain.items()}
    if isinstance(plain, tuple | list):
        return type(plain)(each_tensor(value, change) for value in plain)
    return change(plain) if isinstance(plain, Tensor | Proxy) else plain


def _kind_of(value: Any, owner: str) -> Kind | None:
    """The kind of an object with parts; ``None`` for tensors, plain values, and the tuples that torch itself makes."""
    if isinstance(value, _PLAIN) or type(value).__module__ == "torch.return_types":
        return None
    if type(value) in _OWN:
        return _OWN[type(value)]
    if isinstance(value, collections.defaultdict):
        return "dict"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return "named tuple"
    if isinstance(value, dict):
        return "model output" if dataclasses.is_dataclass(value) else "mapping"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return "dataclass"
    raise CaptureError(
        f"{owner} returns a {type(value).__name__}, which no graph can hold; have it return tensors, alone or in "
        f"tuples, lists, dictionaries, named tuples and dataclasses{_advice(value)}."
    )


def _advice(value: Any) -> str:
    return " (without a cache of keys and values: use_cache=False)" if type(value).__name__.endswith("Cache") else ""


def _parts_of(value: Any, kind: Kind) -> tuple[tuple[Any, ...], list[Any]]:
    if kind in ("tuple", "list"):
        return (), list(value)
    if kind == "named tuple":
        return tuple(value._fields), list(value)
    if kind == "dataclass":
        names = tuple(each.name for each in dataclasses.fields(value) if each.init)
        return names, [getattr(value, name) for name in names]
    return tuple(value), list(value.values())


def class_named(name: str, kind: Kind, keys: tuple[Any, ...]) -> Any:
    """The class of a saved form: one of an exact list, else one with the same name and fields."""
    module, _, word = name.rpartition(".")
    if name == "collections.OrderedDict":
        return collections.OrderedDict
    if kind == "mapping":
        return dict
    if kind == "model output" and module == _OUTPUTS and word in _OF_TRANSFORMERS:
        known = getattr(_of_transformers(_OUTPUTS), word, None)
        if known is not None:
            return known
    return _alike(word, kind, tuple(map(str, keys)))


@cache
def _alike(word: str, kind: Kind, keys: tuple[str, ...]) -> Any:
    if kind == "named tuple":
        return collections.namedtuple(word, keys)  # its fields are known here only
    base = getattr(_of_transformers("transformers.utils"), "ModelOutput", None) if kind == "model output" else None
    fields = [(key, Any, field(default=None)) for key in keys]
    return dataclasses.make_dataclass(word, fields, bases=(base,) if base else ())


def _of_transformers(module: str) -> Any:
    """A module of transformers, or ``None`` where that is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def _is_word(text: Any) -> bool:
    return isinstance(text, str) and text.isidentifier() and not keyword.iskeyword(text)
