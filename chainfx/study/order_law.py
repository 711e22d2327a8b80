"""From verdicts on pairs to an order of passes: the measured law, and the evidence file that carries it."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import networkx as nx

from chainfx.errors import StudyError
from chainfx.passes import Pass
from chainfx.rendering import rendered
from chainfx.scheduler import EVIDENCE, LAW, Evidence, Ground, Law, plan

__all__ = ["LawEdge", "MeasuredLaw", "law_of"]

_NO_LAW = Law((), "none")


@dataclass(frozen=True, slots=True)
class LawEdge:
    """Pass ``before`` goes before pass ``after``.

    ``kind``: ``"measured"`` with a ``confidence`` in [0, 1], or ``"cited"`` by the shipped evidence where the study
    decided nothing; its confidence, from -1 to 1, is how far the study leans that way. ``factor``: how many times
    further they compress that way than the other. ``agrees``: what the law of properties and the shipped evidence say
    of the pair: true, false, or ``None`` where they say nothing.
    """

    before: str
    after: str
    kind: Literal["measured", "cited"]
    confidence: float
    factor: float
    agrees: Mapping[str, bool | None]


@dataclass(frozen=True, slots=True)
class MeasuredLaw:
    """The order that the pairs of a study give.

    ``order``: names of the passes; ties stand as the design has them. ``unique``: whether the edges allow no other.
    ``edges`` hold; ``gave_way``: the weakest edge of each cycle, which does not: one that is cited before one that is
    measured, then the least confident. ``equivalent``: pairs that were measured to be equal, so that evidence for one
    of their orders is void. ``undecided``: pairs that were not decided. ``source``: the study, in words. ``evidence``:
    what was measured, and what the shipped evidence says of pairs that are neither equivalent nor gave way; to be used
    *in place of* the shipped one.
    """

    order: tuple[str, ...]
    unique: bool
    edges: tuple[LawEdge, ...]
    gave_way: tuple[LawEdge, ...]
    equivalent: tuple[tuple[str, str], ...]
    undecided: tuple[tuple[str, str], ...]
    source: str
    evidence: tuple[Evidence, ...]

    def write(self, path: str | Path) -> None:
        """Write :attr:`evidence` as a TOML file for ``plan(passes, evidence=[path])``.

        Raises :class:`~chainfx.errors.StudyError` if the file cannot be written.
        """
        lines = [f"# The order that was measured: {' -> '.join(self.order)}", f"# by {self.source}"]
        lines += [f"# equivalent, so that nothing orders them: {' and '.join(pair)}" for pair in self.equivalent]
        for each in self.evidence:
            lines += ["", "[[edge]]", *(f"{name} = {text}" for name, text in _fields(each))]
        try:
            Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
        except OSError as error:
            raise StudyError(f"the evidence {path} cannot be written: {error.strerror}; give another file.") from error

    def to_dict(self) -> dict[str, Any]:
        """The law as plain JSON, without the evidence, which :meth:`write` writes."""
        return dataclasses.asdict(dataclasses.replace(self, evidence=()))

    def __str__(self) -> str:
        return rendered(self, "text")


def law_of(
    passes: Sequence[Pass],
    edges: Iterable[tuple[str, str, float, float]],
    equivalent: Sequence[tuple[str, str]],
    undecided: Sequence[tuple[str, str, float, float]],
    source: str,
    ground: Ground | None = None,
) -> MeasuredLaw:
    """The law of some passes, in the order that ties keep, from edges ``(before, after, confidence, factor)``.

    ``undecided``: likewise, with the confidence to which the study leans that way, negative for the other way.
    ``ground``: on what it was measured, for the evidence.

    >>> from chainfx.passes import EarlyExit, PruneChannels, Quantize
    >>> passes = [PruneChannels(), Quantize(), EarlyExit()]
    >>> p, q, e = (one.info.name for one in passes)
    >>> law = law_of(passes, [(q, p, 0.99, 1.3), (p, e, 0.98, 1.1), (e, q, 0.96, 1.05)], [], [], "a study")
    >>> law.order, law.unique, [(edge.before, edge.after) for edge in law.gave_way]
    (('quantize', 'prune-channels', 'early-exit'), True, [('early-exit', 'quantize')])
    """
    known = {one.info.name: one for one in passes}
    place = list(known).index
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(known)
    measured = [_edge("measured", known, *each) for each in edges]
    for edge in (*measured, *(_edge("cited", known, *each) for each in _cited(known, undecided))):
        graph.add_edge(edge.before, edge.after, edge=edge)
    gave_way = []
    while not nx.is_directed_acyclic_graph(graph):
        cycle = [graph.edges[step[:2]]["edge"] for step in nx.find_cycle(graph)]
        weakest = min(cycle, key=lambda edge: (edge.kind == "measured", edge.confidence, edge.factor))
        graph.remove_edge(weakest.before, weakest.after)
        gave_way.append(weakest)
    order = tuple(nx.lexicographical_topological_sort(graph, key=place))
    held = tuple(data["edge"] for _, _, data in graph.edges(data=True))
    void = [*equivalent, *((edge.before, edge.after) for edge in gave_way)]
    return MeasuredLaw(
        order=order,
        unique=all(graph.has_edge(*pair) for pair in pairwise(order)),
        edges=held,
        gave_way=tuple(gave_way),
        equivalent=tuple(equivalent),
        undecided=tuple((first, second) for first, second, *_ in undecided),
        source=source,
        evidence=(
            *(_evidence(edge, source, ground or Ground()) for edge in held if edge.kind == "measured"),
            *_without(known, void),
        ),
    )


def _cited(
    known: Mapping[str, Pass], undecided: Iterable[tuple[str, str, float, float]]
) -> Iterator[tuple[str, str, float, float]]:
    """What the shipped evidence says of pairs that were not decided, and how far the study leans that way."""
    for first, second, lean, factor in undecided:
        said = _said(known[first], known[second])
        if (first, second) in said:
            yield first, second, lean, factor
        elif (second, first) in said:
            yield second, first, -lean, 1 / factor


def _said(first: Pass, second: Pass, evidence: Sequence[Evidence] = EVIDENCE) -> set[tuple[str, str]]:
    """The orders of two passes, by name, that evidence gives."""
    edges = plan([first, second], "given", law=_NO_LAW, evidence=evidence).edges
    return {(edge.before, edge.after) for edge in edges if edge.kind != "fact"}


def _without(known: Mapping[str, Pass], void: Iterable[tuple[str, str]]) -> list[Evidence]:
    """The shipped evidence but for what orders one of these pairs."""
    pairs = [(known[first], known[second]) for first, second in void]
    return [row for row in EVIDENCE if not any(_said(*pair, [row]) for pair in pairs)]


def _edge(
    kind: Literal["measured", "cited"],
    known: Mapping[str, Pass],
    before: str,
    after: str,
    confidence: float,
    factor: float,
) -> LawEdge:
    return LawEdge(before, after, kind, confidence, factor, _agreement(known[before], known[after]))


def _agreement(before: Pass, after: Pass) -> dict[str, bool | None]:
    """What the law of properties and the shipped evidence say of an edge."""
    there, back = LAW.reason(before.info, after.info), LAW.reason(after.info, before.info)
    said, edge = _said(before, after), (before.info.name, after.info.name)
    return {
        "properties": True if there else False if back else None,
        "evidence": True if edge in said else False if said else None,
    }


def _evidence(edge: LawEdge, source: str, ground: Ground) -> Evidence:
    reason = f"compresses {edge.factor:.2f} times further than the other order (confidence {edge.confidence:.3f})"
    return Evidence(edge.before, edge.after, "measured", source, reason, **dataclasses.asdict(ground))


def _fields(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """The fields of a table of an evidence file, as TOML, without those that have their default."""
    for each in dataclasses.fields(evidence):
        value = getattr(evidence, each.name)
        if each.compare and value != each.default:
            yield each.name, json.dumps(value, ensure_ascii=False)
