"""In what order passes go, and why: a topological sort of edges that each carry a reason and a source."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise, permutations
from pathlib import Path
from typing import Literal, Self

import networkx as nx

from chainfx.errors import InputError, ScheduleError
from chainfx.passes import Pass
from chainfx.rendering import rendered
from chainfx.scheduler.edges import STRENGTH, Edge, EdgeKind
from chainfx.scheduler.evidence import EVIDENCE, Evidence, gather
from chainfx.scheduler.findings import Finding, order_finding
from chainfx.scheduler.ground import Ground
from chainfx.scheduler.law import LAW, Law

__all__ = ["Plan", "plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """The order of a chain of passes, and every edge that decided it.

    ``passes`` in order, ``order`` their names. ``edges``: every edge that holds. ``ties``: pairs of names that no edge
    orders, in written order. ``findings``: for ``order="given"`` one for every two passes whose order breaks edges; in
    a plan that :func:`chainfx.compile` runs, all that :func:`chainfx.lint` finds.
    """

    passes: tuple[Pass, ...]
    edges: tuple[Edge, ...]
    ties: tuple[tuple[str, str], ...]
    findings: tuple[Finding, ...] = ()

    @property
    def order(self) -> tuple[str, ...]:
        """The names of the passes in order."""
        return tuple(step.info.name for step in self.passes)

    def used_on(self, ground: Ground) -> Self:
        """The plan for a network, its data and a device: edges that were measured elsewhere say so."""
        edges = tuple(replace(edge, elsewhere=edge.ground.differs(ground)) for edge in self.edges)
        return replace(self, edges=edges)

    def __str__(self) -> str:
        return rendered(self, "text")


@dataclass(slots=True)
class _Link:
    """An edge between two positions of the written chain."""

    first: int
    second: int
    edge: Edge
    overridden: list[Edge]


def plan(
    passes: Sequence[Pass],
    order: Literal["auto", "given"] = "auto",
    *,
    law: Law = LAW,
    evidence: Iterable[Evidence | str | Path] = EVIDENCE,
    tunes: bool = True,
    ground: Ground | None = None,
) -> Plan:
    """Put passes in order, or check the order they are given in.

    Edges come from ``law`` (declared kind and granularity), ``evidence`` (:class:`Evidence` or paths of TOML files;
    what is given replaces the shipped :data:`EVIDENCE`, so add to that one), and from facts (who establishes a fact
    goes before who requires it, who requires it before who invalidates it; of a fact that no pass requires, who
    invalidates it goes before who establishes it, which would else be lost). Facts are stronger than measured evidence,
    that than cited evidence, and that than the law; an edge that stronger ones contradict is overridden, and the plan
    says by which. A fact that no pass establishes is the business of the pass that requires it.

    ``ground``: the network, data and device that the plan is for, as :meth:`Ground.of` names them; edges of evidence
    that was measured on others say so.

    ``order="auto"`` sorts, ties keep the written order; ``"given"`` keeps the written order and reports what it breaks.
    Raises :class:`ScheduleError` when edges of equal strength contradict each other (the text shows the cycle) and when
    a pass stands twice that is not repeatable, :class:`InputError` when something is not a pass.

    Complexity: O(n**4) for n passes in the worst case, n being a handful.
    """
    chain, known = _checked(passes, order), gather(evidence)
    links = _resolve(len(chain), list(_links(chain, law, known, tunes)))
    graph = _graph(len(chain), links)
    edges = tuple(dict.fromkeys(_finished(link) for link in links))
    ties = _ties(chain, graph)
    if order == "given":
        found = Plan(chain, edges, ties, tuple(_findings(chain, links, known, tunes)))
        return found.used_on(ground or Ground())
    if not nx.is_directed_acyclic_graph(graph):
        raise ScheduleError(_cycle_text(chain, graph))
    positions = nx.lexicographical_topological_sort(graph, key=int)
    return Plan(tuple(chain[position] for position in positions), edges, ties).used_on(ground or Ground())


def _checked(passes: Sequence[Pass], order: str) -> tuple[Pass, ...]:
    if order not in ("auto", "given"):
        raise InputError(f"order={order!r} is not known; use 'auto' or 'given'.")
    seen: set[str] = set()
    for position, step in enumerate(passes, start=1):
        if not isinstance(step, Pass):
            raise InputError(
                f"passes[{position - 1}] is {step!r}, not a pass; give instances such as Quantize(weights=8)."
            )
        name = step.info.name
        if name in seen and not step.info.repeatable:
            raise ScheduleError(
                f"pass {name!r} stands a second time at position {position}, but it cannot repeat; leave one out."
            )
        seen.add(name)
    return tuple(passes)


def _findings(
    chain: Sequence[Pass], links: Sequence[_Link], evidence: Sequence[Evidence], tunes: bool
) -> Iterator[Finding]:
    """What a given order breaks: one finding for two positions, in the order of the chain."""

    def places(link: _Link) -> tuple[int, int]:
        return link.second, link.first

    broken = sorted((link for link in links if link.first > link.second), key=places)
    for (first, second), found in groupby(broken, key=places):
        yield order_finding(chain, first, second, [_finished(link) for link in found], evidence, tunes)


def _links(chain: Sequence[Pass], law: Law, evidence: Sequence[Evidence], tunes: bool) -> Iterator[_Link]:
    """Every edge that the law, the evidence and the facts give between two positions."""
    required = frozenset(fact for step in chain for fact in step.info.requires)
    for first, second in permutations(range(len(chain)), 2):
        before, after = chain[first].info, chain[second].info
        if before.name == after.name:
            continue
        reason = law.reason(before, after)
        found = [] if reason is None else [Edge(before.name, after.name, reason, law.source, "property")]
        found += [
            _from_evidence(row, before.name, after.name)
            for row in _ordering(evidence, chain[first], chain[second], tunes)
        ]
        for fact in sorted((before.establishes - before.requires) & after.requires):
            found.append(
                _fact(before.name, after.name, f"{before.name} establishes {fact!r}, {after.name} requires it")
            )
        for fact in sorted(before.requires & chain[second].invalidates):
            found.append(
                _fact(before.name, after.name, f"{before.name} requires {fact!r}, {after.name} invalidates it")
            )
        for fact in sorted((chain[first].invalidates - before.establishes - required) & after.establishes):
            found.append(
                _fact(before.name, after.name, f"{before.name} invalidates {fact!r}, which {after.name} establishes")
            )
        yield from (_Link(first, second, edge, []) for edge in found)


def _ordering(evidence: Sequence[Evidence], first: Pass, second: Pass, tunes: bool) -> list[Evidence]:
    """The rows that put ``first`` before ``second``; those on all lossy passes give way to any on these two."""
    rows = [row for row in evidence if _orders(row, first, second, tunes)]
    differs = any(not row.is_general and _orders(row, second, first, tunes) for row in evidence)
    return [row for row in rows if not (row.is_general and differs)]


def _orders(row: Evidence, first: Pass, second: Pass, tunes: bool) -> bool:
    """Whether evidence says that pass ``first`` goes before pass ``second``."""
    if row.confidence == "contested" or row.rating == "moderate":
        return False
    written = (second, first) if row.rating == "poor" else (first, second)
    return row.applies(*written, tunes)


def _from_evidence(row: Evidence, before: str, after: str) -> Edge:
    kind: EdgeKind = "measured" if row.confidence == "measured" else "cited"
    poor = row.rating == "poor"
    reason = f"the other order is poor: {row.reason}" if poor else row.reason
    return Edge(before, after, reason, row.source, kind, rated_poor=poor, origin=row.origin, ground=row.ground)


def _fact(before: str, after: str, reason: str) -> Edge:
    return Edge(before, after, reason, "declared by the two passes", "fact")


def _resolve(count: int, links: Sequence[_Link]) -> list[_Link]:
    """The links that hold: from strong to weak, without those that a path of stronger links contradicts."""
    kept: list[_Link] = []
    for kind in reversed(STRENGTH):
        stronger = _graph(count, kept)
        for link in (link for link in links if link.edge.kind == kind):
            if not nx.has_path(stronger, link.second, link.first):
                kept.append(link)
                continue
            way = nx.shortest_path(stronger, link.second, link.first)
            for step in pairwise(way):
                stronger.edges[step]["link"].overridden.append(link.edge)
    return sorted(kept, key=links.index)


def _graph(count: int, links: Sequence[_Link]) -> "nx.DiGraph[int]":
    """The positions and, between two of them, the strongest link."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(count))
    for link in sorted(links, key=lambda link: STRENGTH.index(link.edge.kind)):
        graph.add_edge(link.first, link.second, link=link)
    return graph


def _finished(link: _Link) -> Edge:
    return replace(link.edge, overrides=tuple(dict.fromkeys(link.overridden)))


def _ties(chain: Sequence[Pass], graph: "nx.DiGraph[int]") -> tuple[tuple[str, str], ...]:
    reachable = {position: nx.descendants(graph, position) for position in graph}
    return tuple(
        (chain[first].info.name, chain[second].info.name)
        for first in graph
        for second in range(first + 1, len(chain))
        if second not in reachable[first] and first not in reachable[second]
    )


def _cycle_text(chain: Sequence[Pass], graph: "nx.DiGraph[int]") -> str:
    cycle = [(first, second) for first, second, *_ in nx.find_cycle(graph)]
    names = [chain[first].info.name for first, _ in cycle]
    lines = [
        f"the order is contradictory: {' -> '.join([*names, names[0]])}; "
        "leave a pass out, mend the evidence, or use order='given'."
    ]
    held = [_finished(graph.edges[step]["link"]) for step in cycle]
    lines += [f"  {edge}" + (f" ({edge.origin})" if edge.origin else "") for edge in held]
    return "\n".join(lines)
