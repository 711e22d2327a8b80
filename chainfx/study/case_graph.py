"""Which cases of a study can be run now: those whose chain but for the last pass is finished."""

from collections.abc import Iterable

from chainfx.study.design import Case

__all__ = ["CaseGraph"]


class CaseGraph:
    """The cases of a study as a graph: each goes on from the one that its chain begins with.

    ``cases``: with every beginning among them, as :meth:`~chainfx.study.Design.all_cases` gives them. What is ready is
    taken once, and given back if the worker that had it died.

    >>> from chainfx.study import shipped_design
    >>> graph = CaseGraph(shipped_design("pairwise", seeds=1).all_cases())
    >>> first = graph.take()  # the original of the seed, under one training, then under the other
    >>> first.passes, graph.take().passes, graph.take()
    ((), (), None)
    >>> graph.finish(first)
    >>> len(graph.take().passes)
    1
    """

    def __init__(self, cases: Iterable[Case]) -> None:
        self._behind: dict[Case, list[Case]] = {}
        self._ready: list[Case] = []
        for case in cases:
            before = _before(case)
            if before is None:
                self._ready.append(case)
            else:
                self._behind.setdefault(before, []).append(case)
        self._ready.reverse()  # taken from the end, the first seed first

    def take(self) -> Case | None:
        """A case that can be run; ``None`` if all that can be are taken."""
        return self._ready.pop() if self._ready else None

    def give_back(self, case: Case) -> None:
        """A case that was taken has to be run again."""
        self._ready.append(case)

    def finish(self, case: Case) -> None:
        """A case has its record: those that go on from it can be run."""
        self._ready += reversed(self._behind.pop(case, []))


def _before(case: Case) -> Case | None:
    """The case that one goes on from; ``None`` for the original network."""
    return case.beginning(len(case.steps) - 1) if case.steps else None
