"""From verdicts on pairs to an order of passes: the measured law, and the evidence file that carries it."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import networkx as nx

from chainfx.errors import StudyError
from chainfx.passes import PassInfo
from chainfx.rendering import rendered
from chainfx.scheduler import EVIDENCE, LAW, Evidence

__all__ = ["LawEdge", "MeasuredLaw", "law_of"]


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
    of their orders is void. ``undecided``: pairs that were not decided. ``source``: the study, in words.
    """

    order: tuple[str, ...]
    unique: bool
    edges: tuple[LawEdge, ...]
    gave_way: tuple[LawEdge, ...]
    equivalent: tuple[tuple[str, str], ...]
    undecided: tuple[tuple[str, str], ...]
    source: str

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        """The evidence of the law, to be used *in place of* the shipped one.

        It has the edges that hold, measured and cited, and what is cited of pairs that were not studied.
        """
        measured = [
            Evidence(
                edge.before,
                edge.after,
                "measured",
                self.source,
                f"compresses {edge.factor:.2f} times further than the other order (confidence {edge.confidence:.3f})",
            )
            for edge in self.edges
            if edge.kind == "measured"
        ]
        void = {
            frozenset((edge.before, edge.after)) for edge in (*self.edges, *self.gave_way) if edge not in self._cited
        }
        void |= set(map(frozenset, self.equivalent))
        cited = [each for each in EVIDENCE if frozenset((each.before, each.after)) not in void]
        return (*measured, *cited)

    @property
    def _cited(self) -> tuple[LawEdge, ...]:
        """The cited edges that hold."""
        return tuple(edge for edge in self.edges if edge.kind == "cited")

    def write(self, path: str | Path) -> None:
        """Write :attr:`evidence` as a TOML file for ``plan(passes, evidence=[path])``.

        Raises :class:`~chainfx.errors.StudyError` if the file cannot be written.
        """
        lines = [f"# The order that was measured: {' -> '.join(self.order)}", f"# by {self.source}"]
        lines += [f"# equivalent, so that nothing orders them: {' and '.join(pair)}" for pair in self.equivalent]
        for each in self.evidence:
            lines += ["", "[[edge]]", *(f"{name} = {_quoted(getattr(each, name))}" for name in Evidence.__slots__)]
        try:
            Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
        except OSError as error:
            raise StudyError(f"the evidence {path} cannot be written: {error.strerror}; give another file.") from error

    def to_dict(self) -> dict[str, Any]:
        """The law as plain JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return rendered(self, "text")


def law_of(
    infos: Sequence[PassInfo],
    edges: Iterable[tuple[str, str, float, float]],
    equivalent: Iterable[tuple[str, str]],
    undecided: Sequence[tuple[str, str, float, float]],
    source: str,
) -> MeasuredLaw:
    """The law of some passes, in the order that ties keep, from edges ``(before, after, confidence, factor)``.

    ``undecided``: likewise, with the confidence to which the study leans that way, negative for the other way.

    >>> from chainfx.passes import EarlyExit, PruneChannels, Quantize
    >>> p, q, e = (each.info for each in (PruneChannels, Quantize, EarlyExit))
    >>> edges = [(q.name, p.name, 0.99, 1.3), (p.name, e.name, 0.98, 1.1), (e.name, q.name, 0.96, 1.05)]
    >>> law = law_of([p, q, e], edges, [], [], "a study")
    >>> law.order, law.unique, [(edge.before, edge.after) for edge in law.gave_way]
    (('quantize', 'prune-channels', 'early-exit'), True, [('early-exit', 'quantize')])
    """
    known = {info.name: info for info in infos}
    place = list(known).index
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(known)
    made = [_edge("measured", known, *each) for each in edges] + [
        _edge("cited", known, *each) for each in _cited(undecided)
    ]
    for edge in made:
        graph.add_edge(edge.before, edge.after, edge=edge)
    gave_way = []
    while not nx.is_directed_acyclic_graph(graph):
        cycle = [graph.edges[step[:2]]["edge"] for step in nx.find_cycle(graph)]
        weakest = min(cycle, key=lambda edge: (edge.kind == "measured", edge.confidence, edge.factor))
        graph.remove_edge(weakest.before, weakest.after)
        gave_way.append(weakest)
    order = tuple(nx.lexicographical_topological_sort(graph, key=place))
    unique = all(graph.has_edge(*pair) for pair in pairwise(order))
    held = tuple(data["edge"] for _, _, data in graph.edges(data=True))
    pairs = tuple((first, second) for first, second, *_ in undecided)
    return MeasuredLaw(order, unique, held, tuple(gave_way), tuple(equivalent), pairs, source)


def _cited(undecided: Iterable[tuple[str, str, float, float]]) -> list[tuple[str, str, float, float]]:
    """What the shipped evidence cites of pairs that were not decided, and how far the study leans that way."""
    shipped = {(each.before, each.after) for each in EVIDENCE}
    there = [each for each in undecided if each[:2] in shipped]
    back = [(second, first, -lean, 1 / factor) for first, second, lean, factor in undecided]
    return there + [each for each in back if each[:2] in shipped]


def _edge(
    kind: Literal["measured", "cited"],
    known: Mapping[str, PassInfo],
    before: str,
    after: str,
    confidence: float,
    factor: float,
) -> LawEdge:
    return LawEdge(before, after, kind, confidence, factor, _agreement(known[before], known[after]))


def _agreement(before: PassInfo, after: PassInfo) -> dict[str, bool | None]:
    """What the law of properties and the shipped evidence say of a measured edge."""
    properties = True if LAW.reason(before, after) else False if LAW.reason(after, before) else None
    cited = {(each.before, each.after) for each in EVIDENCE}
    there, back = (before.name, after.name) in cited, (after.name, before.name) in cited
    return {"properties": properties, "evidence": True if there else False if back else None}


def _quoted(text: str) -> str:
    """A TOML basic string."""
    return json.dumps(text, ensure_ascii=False)
