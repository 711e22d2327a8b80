"""Recipes: a whole compression, from model and data to passes and output, in about fifteen lines of YAML.

::

    model: {name: zoo.resnet20, weights: resnet20.safetensors, options: {num_classes: 10}}
    data: {source: npz, path: $DATA/cifar10_train.npz, test: $DATA/cifar10_test.npz}
    trainer: {epochs: 20, learning_rate: 0.05, augment: {padding: 4, flip: true}}
    passes:
      - distill: {depth: 0.7}
      - prune-channels: {ratio: 0.3}
      - quantize: {weights: 4, activations: 8}
      - early-exit
    tuning:
      quantize: {epochs: 40, loss: task}
    execution: {device: cuda, precision: bfloat16}
    workdir: work
    output: small

Paths are relative to the recipe; ``$VARIABLES`` and ``~`` in them are expanded.
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import torch
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, create_model
from pydantic_core import ErrorDetails
from torch import Tensor, nn

from chainfx.errors import ChainfxError, RecipeError, why_no_file
from chainfx.ir.graph import seeded
from chainfx.models import resolve_model
from chainfx.passes import Execution, Pass, Tunings, get_pass, pass_names
from chainfx.search import Search
from chainfx.training import Augment, Data, SplitOptions, Trainer, open_data
from chainfx.zoo import load_weights

__all__ = ["Recipe", "load_recipe", "resolve_model"]

Key = tuple[str | int, ...]
Section = TypeVar("Section", bound=BaseModel)


def _expanded(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, str):
        return value
    text = os.path.expandvars(str(Path(value).expanduser()))
    unset = re.search(r"\$\{?(\w+)", text)
    if unset:
        raise ValueError(f"environment variable {unset[1]} is not set")
    base: Path = info.context or Path()
    return base / text


RecipePath = Annotated[Path, BeforeValidator(_expanded)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class _Model(_Section):
    name: str
    weights: RecipePath | None = None
    options: dict[str, Any] = {}
    train: bool = False


class _Source(_Section):
    source: str


def _source(**own: Any) -> type[_Source]:
    """The section of a data source: its own keys, and the options of every split."""
    hints = get_type_hints(SplitOptions)
    split: dict[str, Any] = {f.name: (hints[f.name], f.default) for f in dataclasses.fields(SplitOptions)}
    return create_model("Data", __base__=_Source, **own, **split)


_PLACES = {"path": (RecipePath, ...), "test": (RecipePath | None, None)}


class _Top(_Section):
    model: dict[str, Any]
    passes: list[Any]
    data: dict[str, Any] | None = None
    input: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=2)] | None = None
    trainer: dict[str, Any] | None = None
    order: Literal["auto", "given"] = "auto"
    refuse: Literal["errors"] | None = None
    seed: int = 0
    warn_drop: Annotated[float, Field(ge=0)] | None = 0.05
    tuning: dict[str, dict[str, Any] | None] | None = None
    execution: dict[str, Any] | None = None
    search: dict[str, Any] | None = None
    workdir: RecipePath | None = None
    output: RecipePath | None = None


_SOURCES: Mapping[str, type[_Source]] = {
    "digits": _source(),
    "npz": _source(**_PLACES, samples=(int | None, None), test_samples=(int | None, None)),
    "folder": _source(**_PLACES, size=(int | None, None)),
}
_TORCHVISION = _source(root=(RecipePath, ...))


@dataclass(frozen=True)
class Recipe:
    """A checked recipe; its methods build what it describes. ``passes`` are as written, the plan orders them.

    ``trains``: the model is to be trained from scratch first. ``warn_drop``, ``tuning``, ``execution`` and ``search``:
    as of :func:`chainfx.compile`. Every error in building names the line of the recipe.
    """

    path: Path
    passes: tuple[Pass, ...]
    order: Literal["auto", "given"]
    refuse: Literal["errors"] | None
    seed: int
    workdir: Path | None
    output: Path | None
    trains: bool
    warn_drop: float | None
    tuning: Mapping[str, Mapping[str, Any]]
    execution: Execution
    search: Search | None
    _model: _Model
    _data: _Source | None
    _trainer: Mapping[str, Any] | None
    _input: tuple[int, ...] | None
    _text: "_Text"

    @property
    def has_data(self) -> bool:
        """Whether the recipe names data."""
        return self._data is not None

    @property
    def has_trainer(self) -> bool:
        """Whether the recipe has a trainer."""
        return self._trainer is not None

    @property
    def lines(self) -> Mapping[int, int]:
        """The line of the recipe at which each pass stands, by the position of the pass, from 1."""
        return {position: self._text.lines["passes", position - 1] for position in range(1, len(self.passes) + 1)}

    def model(self) -> nn.Module:
        """The network, with the weights the recipe names, else at random as the recipe's seed says; in eval mode."""
        options = {key: _tuples(value) for key, value in self._model.options.items()}
        with self._text.located("model"), seeded(self.seed):
            model = resolve_model(self._model.name, **options)
            if self._model.weights is not None:
                load_weights(model, self._model.weights)
        return model.eval()

    def data(self) -> Data | None:
        """The data, if the recipe names any."""
        if self._data is None:
            return None
        options = {key: value for key, value in self._data if key != "source"}
        with self._text.located("data"):
            return open_data(self._data.source, **options)

    def trainer(self, data: Data | None) -> Trainer | None:
        """The default trainer with the recipe's options, if it has a ``trainer``."""
        if self._trainer is None or data is None:
            return None
        with self._text.located("trainer"):
            return Trainer(data, **self._trainer, execution=self.execution)

    def example_inputs(self, data: Data | None, samples: int = 1) -> tuple[Tensor, ...]:
        """One batch of inputs: normal noise of the ``input`` shape, else some ``samples`` of the data."""
        if self._input is not None:
            generator = torch.Generator(device="cpu").manual_seed(self.seed)
            return (torch.randn(self._input, generator=generator, device="cpu"),)
        if data is None:
            raise self._text.error((), "needs 'input' (a shape such as [1, 3, 32, 32]) or 'data'; add one of them")
        return data.example_inputs(samples)


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe, without building model or data.

    Raises :class:`~chainfx.errors.RecipeError`, naming the line, on anything the recipe should not or should have.
    """
    path = Path(path)
    text = _Text.read(path)
    top = text.section(_Top, text.content, ())
    model = text.section(_Model, top.model, ("model",))
    trainer = None if top.trainer is None else _trainer_options(text, top.trainer)
    if top.data is None and top.trainer is not None:
        raise text.error(("trainer",), "a trainer needs 'data' to train on; add it")
    if model.train and trainer is None:
        raise text.error(("model", "train"), "training the model needs a 'trainer'; add one")
    for key, folder in (("workdir", top.workdir), ("output", top.output)):
        if folder is not None and folder.is_file():
            raise text.error((key,), f"{key}='{folder}' is a file; give a folder, which need not exist yet")
    passes = tuple(_pass(text, item, ("passes", index)) for index, item in enumerate(top.passes))
    return Recipe(
        path=path,
        passes=passes,
        order=top.order,
        refuse=top.refuse,
        seed=top.seed,
        workdir=top.workdir,
        output=top.output,
        trains=model.train,
        warn_drop=top.warn_drop,
        tuning=_tuning(text, top, passes),
        execution=_execution(text, top.execution),
        search=None if top.search is None else _search(text, top.search, trainer),
        _model=model,
        _data=None if top.data is None else _data_section(text, top.data),
        _trainer=trainer,
        _input=top.input,
        _text=text,
    )


def _data_section(text: "_Text", raw: dict[str, Any]) -> _Source:
    source = raw.get("source")
    if not isinstance(source, str):
        raise text.error(("data",), "needs a 'source'; use digits, npz, folder or the name of a torchvision data set")
    return text.section(_SOURCES.get(source, _TORCHVISION), raw, ("data",))


def _trainer_options(text: "_Text", raw: dict[str, Any]) -> dict[str, Any]:
    at: Key = ("trainer",)
    options = text.options(Trainer, {**raw, "augment": None}, at, without=("data", "execution"))
    augment = raw.get("augment", False)
    if isinstance(augment, dict):
        with text.located(*at, "augment"):
            return options | {"augment": Augment(**text.options(Augment, augment, (*at, "augment")))}
    if augment not in (True, False, None):
        raise text.error((*at, "augment"), f"augment={augment!r}: use true, false or a mapping of padding and flip")
    return options | {"augment": Augment() if augment else None}


def _tuning(text: "_Text", top: _Top, passes: tuple[Pass, ...]) -> Mapping[str, Mapping[str, Any]]:
    """The options by pass, checked as they are for the passes of the recipe."""
    found = {name: options or {} for name, options in (top.tuning or {}).items()}
    for name, options in found.items():
        with text.located("tuning", name):
            Tunings.of({name: options}, [one.info.name for one in passes])
    return found


def _execution(text: "_Text", raw: dict[str, Any] | None) -> Execution:
    with text.located("execution"):
        return Execution(**text.options(Execution, raw or {}, ("execution",)))


def _search(text: "_Text", raw: dict[str, Any], trainer: Any) -> Search:
    if trainer is None:
        raise text.error(("search",), "a search needs a 'trainer', which measures its trials; add one")
    options, settings = raw.get("options", {}), {name: value for name, value in raw.items() if name != "options"}
    with text.located("search"):
        return Search.from_plain(options, **text.options(Search, settings, ("search",), without=("options",)))


def _pass(text: "_Text", item: Any, at: Key) -> Pass:
    """The pass of one entry of ``passes``: a name, or a name with a mapping of options."""
    if isinstance(item, str):
        item = {item: {}}
    if not (isinstance(item, dict) and len(item) == 1 and isinstance(next(iter(item.values())) or {}, dict)):
        raise text.error(at, f"{item!r} is not a pass; write '- name' or '- name: {{option: value}}'")
    name, raw = next(iter(item.items()))
    with text.located(*at):
        if name not in pass_names():
            hint = _hint(str(name), pass_names())
            raise text.error((*at, name), f"unknown pass {name!r}; {hint}installed are {', '.join(pass_names())}")
        cls = get_pass(name)
        return cls(**text.options(cls, raw or {}, (*at, name)))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _hint(name: str, known: Any) -> str:
    close = get_close_matches(name, [str(key) for key in known], n=1)
    return f"did you mean {close[0]!r}? " if close else ""


@dataclass(frozen=True)
class _Text:
    """The content of a recipe, and the line at which each key stands."""

    path: Path
    content: Any
    lines: Mapping[Key, int]

    @classmethod
    def read(cls, path: Path) -> "_Text":
        """Parse the file; raises :class:`RecipeError` if it is missing or no YAML mapping."""
        try:
            text = path.read_text(encoding="utf-8")
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            content = yaml.safe_load(text)
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(
                f"{path}: the recipe cannot be read: {why_no_file(error)}; give a YAML file, see chainfx.recipe."
            ) from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{path}:{mark.line + 1}" if mark else f"{path}"
            problem = getattr(error, "problem", None) or error
            raise RecipeError(f"{where}: not valid YAML: {problem}; mend it there.") from error
        if not isinstance(content, dict):
            raise RecipeError(
                f"{path}: a recipe is a mapping, and this is none; give it of the keys "
                f"{', '.join(sorted(_Top.model_fields))} those that it needs."
            )
        lines: dict[Key, int] = {}
        for key, line in _marks(node, ()):
            if key in lines:
                raise RecipeError(
                    f"{path}:{line}: {_dotted(key)} stands twice, first in line {lines[key]}; remove one."
                )
            lines[key] = line
        return cls(path, content, lines)

    def error(self, at: Key, problem: str) -> RecipeError:
        """The error for a key: file, the line of the nearest key around it that stands there, and the problem."""
        while at and at not in self.lines:
            at = at[:-1]
        where = f"{self.path}:{self.lines[at]}" if at else f"{self.path}"
        return RecipeError(f"{where}: {problem}.")

    @contextmanager
    def located(self, *at: str | int) -> Iterator[None]:
        """Make an error of chainfx about the section ``at`` name its line, or that of the option it speaks of."""
        try:
            yield
        except RecipeError:
            raise
        except ChainfxError as error:
            inside = [key for key in self.lines if key[: len(at)] == at and re.search(rf"\b{key[-1]}=", str(error))]
            raise self.error(max(inside, key=len, default=at), str(error).removesuffix(".")) from error

    def section(self, cls: type[Section], raw: Any, at: Key) -> Section:
        """The section ``at`` checked against its model."""
        try:
            return cls.model_validate(raw, context=self.path.parent)
        except ValidationError as error:
            keys = [self._key(at, item["loc"]) for item in error.errors()]
            alike = [item for key, item in zip(keys, error.errors(), strict=True) if key == keys[0]]
            raise self.error((*at, *keys[0]), self._problem(cls, at, alike)) from error

    def _key(self, at: Key, loc: Key) -> Key:
        """The place of a pydantic error without the members of unions it tried: keys and indices."""
        return tuple(part for part in loc if (*at, part) in self.lines or isinstance(part, int)) or loc[:1]

    def _problem(self, cls: type[BaseModel], at: Key, alike: list[ErrorDetails]) -> str:
        first = alike[0]
        name = str(first["loc"][0])
        section = _dotted(at) or "the recipe"
        allowed = ", ".join(sorted(cls.model_fields))
        if first["type"] == "extra_forbidden":
            return f"unknown key {name!r} in {section}; {_hint(name, cls.model_fields)}allowed are {allowed}"
        if first["type"] == "missing":
            return f"{section} has no {name!r}; its keys are {allowed}"
        reasons = dict.fromkeys(item["msg"].removeprefix("Value error, ").replace("Input s", "s") for item in alike)
        return f"{_dotted((*at, name))}={first['input']!r}: {' or '.join(reasons)}"

    def options(self, cls: type[Any], raw: dict[str, Any], at: Key, without: tuple[str, ...] = ()) -> dict[str, Any]:
        """The given fields of a dataclass, checked against its types; lists become tuples."""
        hints = get_type_hints(cls)
        fields = [f for f in dataclasses.fields(cls) if f.init and f.name not in without]
        kinds: dict[str, Any] = {
            f.name: (hints[f.name], ... if f.default is dataclasses.MISSING else f.default) for f in fields
        }
        checked = self.section(create_model(cls.__name__, __base__=_Section, **kinds), raw, at)
        return {name: getattr(checked, name) for name in raw}


def _dotted(key: Key) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).removeprefix(".")


def _marks(node: yaml.Node | None, at: Key) -> Iterator[tuple[Key, int]]:
    """Every key below a node with its line, from 1."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*at, key.value), key.start_mark.line + 1
            yield from _marks(value, (*at, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*at, index), value.start_mark.line + 1
            yield from _marks(value, (*at, index))
