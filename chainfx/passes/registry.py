"""The passes that can be named in a recipe or a record: chainfx's own and those of installed packages.

A package offers a pass by an entry point of the group ``chainfx.passes`` whose name is the pass name.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Self

from chainfx.errors import PassError
from chainfx.passes.base import Pass
from chainfx.rendering import rendered

__all__ = ["PassSummary", "get_pass", "pass_from_spec", "pass_names"]


@dataclass(frozen=True)
class PassSummary:
    """What a pass class says of itself, for lists of passes; ``print`` shows it in lines of at most 80 columns.

    ``kind``, ``granularity`` and ``needs`` are what the class declares in its :class:`~chainfx.passes.PassInfo`, in
    words. ``purpose`` is the first paragraph of its docstring on one line, empty without a docstring. ``options`` has
    the default of every option that has one, in the order of the class; ``required`` names the options that must be
    given.
    """

    name: str
    kind: str
    granularity: str
    needs: tuple[str, ...]
    purpose: str
    options: Mapping[str, Any]
    required: tuple[str, ...]

    @classmethod
    def of(cls, described: type[Pass]) -> Self:
        """The summary of a pass class.

        >>> from chainfx.passes import Fuse
        >>> PassSummary.of(Fuse).purpose
        'Fold each BatchNorm into the convolution or linear layer whose output only it reads.'
        """
        info, fields = described.info, dataclasses.fields(described)  # type: ignore[arg-type]  # as in passes.base
        defaults = {f.name: _default(f) for f in fields}
        return cls(
            name=info.name,
            kind=info.kind.word,
            granularity=info.granularity.word,
            needs=tuple(sorted(info.needs)),
            purpose=_purpose(described),
            options={name: value for name, value in defaults.items() if value is not dataclasses.MISSING},
            required=tuple(name for name, value in defaults.items() if value is dataclasses.MISSING),
        )

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain JSON; a default that has no JSON form is written as Python shows it."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), default=repr))
        return plain

    def __str__(self) -> str:
        return rendered(self, "text")


def _default(field: "dataclasses.Field[Any]") -> Any:
    """The default of an option, ``dataclasses.MISSING`` if it must be given."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _purpose(described: type[Pass]) -> str:
    """The first paragraph of a docstring on one line; a dataclass without one gets its signature, which is no text."""
    text = described.__doc__ or ""
    return (
        ""
        if text.startswith(f"{described.__name__}(")
        else " ".join(text.partition("\n\n")[0].split()).replace("``", "`")
    )


@cache
def _found() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group="chainfx.passes"):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise PassError(
                f"two packages offer a pass named {point.name!r}: {other.value} and {point.value}; uninstall one."
            )
    return found


def pass_names() -> tuple[str, ...]:
    """The names of all installed passes, sorted."""
    return tuple(sorted(_found()))


def get_pass(name: str) -> type[Pass]:
    """The pass class of that name; raises :class:`PassError` with close matches if there is none."""
    if name not in _found():
        close = get_close_matches(name, pass_names(), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise PassError(f"there is no pass named {name!r}; {hint}installed are {', '.join(pass_names())}.")
    try:
        cls = _found()[name].load()
    except (ImportError, AttributeError) as error:
        raise PassError(
            f"the pass {name!r} ({_found()[name].value}) cannot be imported: {error}; mend or remove its package."
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Pass)):
        raise PassError(f"the entry point {name!r} ({_found()[name].value}) is not a Pass; mend its package.")
    if cls.info.name != name:
        raise PassError(f"the entry point {name!r} names a pass that calls itself {cls.info.name!r}; make them equal.")
    return cls


def pass_from_spec(spec: Mapping[str, Any]) -> Pass:
    """The pass that :meth:`Pass.spec` described."""
    return get_pass(str(spec["pass"])).from_spec(spec)
