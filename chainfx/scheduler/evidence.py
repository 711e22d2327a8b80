"""Pairwise evidence: what somebody measured or published about one pass after another."""

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from chainfx.errors import ScheduleError, why_no_file
from chainfx.passes import Pass, PassInfo
from chainfx.scheduler.ground import Ground

__all__ = ["CONFIDENCES", "EVIDENCE", "LOSSY", "RATINGS", "TUNED", "Evidence", "load_evidence"]

CONFIDENCES = ("contested", "cited", "measured")
RATINGS = ("good", "moderate", "poor")
LOSSY = "lossy"
"""In evidence, the name of every pass that is not exact."""

TUNED = "tuned"

_CONDITION = re.compile(r"(before|after)\.(\w+) (<=|>=|==|!=) (.+)")


@dataclass(frozen=True, slots=True)
class _Condition:
    """What a row of evidence asks of one of its two passes: an option, or whether it is tuned."""

    side: str
    option: str
    sign: str
    value: Any

    def holds(self, pair: Mapping[str, Pass], tunes: bool) -> bool:
        """Whether the pass on that side has such an option; ``tunes``: whether a trainer serves."""
        one = pair[self.side]
        seen = tunes and one.info.tunes if self.option == TUNED else getattr(one, self.option, None)
        if self.sign in ("==", "!="):
            return bool(seen == self.value) == (self.sign == "==")
        if not isinstance(seen, int | float):
            return False
        return bool(seen <= self.value) if self.sign == "<=" else bool(seen >= self.value)


@cache
def _condition(text: str) -> _Condition:
    """The condition in a text such as ``before.weights <= 4``; raises :class:`ValueError` if it has another form."""
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise ValueError
    condition = _Condition(found[1], found[2], found[3], json.loads(found[4]))
    if condition.sign in ("<=", ">=") and not isinstance(condition.value, int | float):
        raise ValueError
    return condition


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a chain in which ``before`` comes before ``after``: the ``rating`` of that order.

    ``before`` and ``after`` name a pass, a family of passes (:attr:`chainfx.passes.PassInfo.family`), or ``"lossy"``,
    every pass that is not exact. The rating ``"good"`` says that this is the order to use, ``"poor"`` that the other
    one is; ``"moderate"`` orders nothing, and says that the two together ask for caution. ``reason`` says why,
    ``source`` where it can be looked up.

    ``confidence``: ``"cited"`` (published by somebody) or ``"measured"`` (by an order study of one's own), which is the
    higher; ``"contested"`` (published, and others publish the contrary) orders nothing, and is shown beside what does.

    ``when``: conditions that must all hold, each a text such as ``before.weights <= 4``: a side, an option of the pass,
    ``<=``, ``>=``, ``==`` or ``!=``, and a JSON value. The option ``tuned`` says whether a trainer tunes the pass.

    ``network``, ``data`` and ``device``: on what it was measured, as :class:`Ground` says them; empty where that is not
    known, or stands in ``source``.

    ``origin``: the file and line that it was read from. Raises :class:`ScheduleError` on a field that is empty or not
    one of the allowed values.

    >>> from chainfx.passes import PruneWeights, Quantize
    >>> few = ("before.weights <= 4",)
    >>> row = Evidence("quantization", "pruning", "cited", "a paper", "levels hide ranks", "poor", few)
    >>> row.applies(Quantize(4), PruneWeights(0.5)), row.applies(Quantize(8), PruneWeights(0.5))
    (True, False)
    """

    before: str
    after: str
    confidence: str
    source: str
    reason: str
    rating: str = "good"
    when: tuple[str, ...] = ()
    network: str = ""
    data: str = ""
    device: str = ""
    origin: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for name in ("before", "after", "confidence", "source", "reason", "rating"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise ScheduleError(f"the evidence has {name}={value!r}; every field is a text that is not empty.")
        for name, allowed in (("confidence", CONFIDENCES), ("rating", RATINGS)):
            if getattr(self, name) not in allowed:
                raise ScheduleError(
                    f"the evidence has {name}={getattr(self, name)!r}; use one of {', '.join(allowed)}."
                )
        for name in ("network", "data", "device"):
            if not isinstance(getattr(self, name), str):
                raise ScheduleError(f"the evidence has {name}={getattr(self, name)!r}; it is a text, or left out.")
        if self.before == self.after:
            raise ScheduleError(f"the evidence puts {self.before!r} before itself; name two different passes.")
        for text in self.when:
            try:
                _condition(text)
            except (TypeError, ValueError) as error:
                raise ScheduleError(
                    f"the evidence has the condition {text!r}; write a side, an option, a comparison and a JSON value, "
                    f"as in 'before.weights <= 4' or 'before.tuned == false'."
                ) from error

    def applies(self, first: Pass, second: Pass, tunes: bool = True) -> bool:
        """Whether this speaks of a chain with pass ``first`` before pass ``second``; ``tunes``: a trainer serves."""
        named = is_meant(self.before, first.info) and is_meant(self.after, second.info)
        pair = {"before": first, "after": second}
        return named and all(_condition(text).holds(pair, tunes) for text in self.when)

    @property
    def is_general(self) -> bool:
        """Whether it speaks of all lossy passes."""
        return LOSSY in (self.before, self.after)

    @property
    def ground(self) -> Ground:
        """On what it was measured."""
        return Ground(self.network, self.data, self.device)

    @property
    def asks(self) -> tuple[tuple[str, str], ...]:
        """The side and the option of every condition."""
        return tuple((found.side, found.option) for found in map(_condition, self.when))


def is_meant(name: str, info: PassInfo) -> bool:
    """Whether evidence about ``name`` speaks of a pass."""
    return name in (info.name, info.family) or (name == LOSSY and not info.exact)


def load_evidence(path: str | Path) -> tuple[Evidence, ...]:
    """The evidence in a TOML file of ``[[edge]]`` tables, as in ``scheduler/evidence.toml``.

    Raises :class:`ScheduleError`, naming the file, the line and the edge, if it cannot be read or does not have that
    form.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        data = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ScheduleError(
            f"evidence file {path} cannot be read: {why_no_file(error)}; give a TOML file of [[edge]] tables."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ScheduleError(f"evidence file {path} is not valid TOML: {error}; mend it there.") from error
    edges = data.get("edge")
    if set(data) != {"edge"} or not isinstance(edges, list):
        raise ScheduleError(
            f"evidence file {path} has the keys {sorted(data)}; give it [[edge]] tables and nothing else."
        )
    headers = (number for number, line in enumerate(text.splitlines(), start=1) if re.match(r"\s*\[\[edge\]\]", line))
    lines = dict(enumerate(headers, start=1))
    places = {
        number: f"{path}:{lines[number]}" if number in lines else str(path) for number in range(1, len(edges) + 1)
    }
    return tuple(_parse(places[number], number, edge) for number, edge in enumerate(edges, start=1))


def _parse(place: str, number: int, edge: Any) -> Evidence:
    where = f"evidence file {place}, edge {number}"
    named = [each for each in fields(Evidence) if each.name != "origin"]
    required = [each.name for each in named if each.default is MISSING]
    optional = [each.name for each in named if each.default is not MISSING]
    keys = sorted(edge) if isinstance(edge, dict) else []
    if not set(required) <= set(keys) <= {*required, *optional}:
        raise ScheduleError(
            f"{where}: it has the keys {keys}; give {', '.join(required)}, and if needed {', '.join(optional)}."
        )
    when = edge.get("when", [])
    if not isinstance(when, list):
        raise ScheduleError(f"{where}: the evidence has when={when!r}; give a list of conditions.")
    try:
        return Evidence(**{**edge, "when": tuple(when)}, origin=place)
    except ScheduleError as error:
        raise ScheduleError(f"{where}: {error}") from error


def gather(evidence: Iterable[Evidence | str | Path]) -> tuple[Evidence, ...]:
    """Evidence as given, the files among it loaded."""
    found: list[Evidence] = []
    for item in evidence:
        found.extend((item,) if isinstance(item, Evidence) else load_evidence(item))
    return tuple(found)


EVIDENCE = load_evidence(Path(__file__).with_name("evidence.toml"))
"""The evidence that ships with chainfx: what was published about one pass after another, each with its source."""
