"""Pairwise evidence: what somebody measured or published about the order of two passes."""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from chainfx.errors import ScheduleError

__all__ = ["CONFIDENCES", "EVIDENCE", "Evidence", "load_evidence"]

CONFIDENCES = ("cited", "measured")


@dataclass(frozen=True, slots=True)
class Evidence:
    """Pass ``before`` goes before pass ``after`` (names), because of ``reason``, as ``source`` shows.

    ``confidence``: ``"cited"`` (published by somebody) or ``"measured"`` (by an order study of one's own), which is the
    higher. Raises :class:`ScheduleError` on a field that is empty or not one of the allowed values.
    """

    before: str
    after: str
    confidence: str
    source: str
    reason: str

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str) or not value.strip():
                raise ScheduleError(
                    f"the evidence has {field.name}={value!r}; every field is a text that is not empty."
                )
        if self.confidence not in CONFIDENCES:
            raise ScheduleError(
                f"the evidence has confidence={self.confidence!r}; use one of {', '.join(CONFIDENCES)}."
            )
        if self.before == self.after:
            raise ScheduleError(f"the evidence puts {self.before!r} before itself; name two different passes.")


def load_evidence(path: str | Path) -> tuple[Evidence, ...]:
    """The evidence in a TOML file of ``[[edge]]`` tables, as in ``scheduler/evidence.toml``.

    Raises :class:`ScheduleError`, naming the file and the edge, if it cannot be read or does not have that form.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ScheduleError(f"evidence file {path} cannot be read: {error}.") from error
    edges = data.get("edge")
    if set(data) != {"edge"} or not isinstance(edges, list):
        raise ScheduleError(
            f"evidence file {path} has the keys {sorted(data)}; it holds [[edge]] tables and nothing else."
        )
    return tuple(_parse(path, number, edge) for number, edge in enumerate(edges, start=1))


def _parse(path: str | Path, number: int, edge: Any) -> Evidence:
    names = [field.name for field in fields(Evidence)]
    keys = sorted(edge) if isinstance(edge, dict) else []
    if keys != sorted(names):
        raise ScheduleError(
            f"evidence file {path}, edge {number}: it has the keys {keys}; give exactly {', '.join(names)}."
        )
    try:
        return Evidence(**edge)
    except ScheduleError as error:
        raise ScheduleError(f"evidence file {path}, edge {number}: {error}") from error


def gather(evidence: Iterable[Evidence | str | Path]) -> tuple[Evidence, ...]:
    """Evidence as given, the files among it loaded."""
    found: list[Evidence] = []
    for item in evidence:
        found.extend((item,) if isinstance(item, Evidence) else load_evidence(item))
    return tuple(found)


EVIDENCE = load_evidence(Path(__file__).with_name("evidence.toml"))
"""The evidence that ships with chainfx: what was published about the order of two passes, each with its source."""
