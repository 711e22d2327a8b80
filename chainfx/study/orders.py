"""Which orders a study tries, and which of them it compares: the paper's experiments, by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Literal

from chainfx.errors import StudyError
from chainfx.passes import (
    Distill,
    Fuse,
    Kind,
    Pass,
    PostTrainingQuantize,
    PruneChannels,
    PruneWeights,
    Quantize,
)

__all__ = ["MARKS", "ORDERS", "Arm", "Comparison", "Orders", "letter_of", "orders_of"]

Student = Literal["derived", "fresh"]
Passes = Mapping[str, Pass]

MARKS = "+-~*^"
"""What a step of an arm may have behind its letter, see :class:`Arm`."""


def letter_of(step: str) -> str:
    """The letter of a step, without its mark."""
    return step.rstrip(MARKS)


@dataclass(frozen=True, slots=True)
class Arm:
    """An order of passes that a study tries, with all their options.

    ``steps``: the letters that the design gives its passes; ``"P+"`` is one pass as strong as two of ``P``, ``"Q-"`` a
    milder one, ``"D~"`` recovery by the distillation ``D`` without a smaller student, ``"D*"`` its student without a
    teacher, and ``"D^"`` its student taught by contrast (:mod:`chainfx.study.strength`,
    :mod:`chainfx.study.students`). ``student``: what a distillation behind other passes trains: what is ``"derived"``
    from the compressed network before it, or a ``"fresh"`` standard network.
    ``salt``: another salt gives the same arm other random numbers.
    """

    steps: tuple[str, ...]
    student: Student = "derived"
    salt: int = 0

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of the steps, each once, sorted: arms with equal letters have the same configurations."""
        return tuple(sorted({letter_of(step) for step in self.steps}))

    def __str__(self) -> str:
        name = ("" if all(len(letter_of(step)) == 1 for step in self.steps) else " ").join(self.steps)
        marks = [word for word, holds in (("fresh", self.student == "fresh"), ("again", self.salt)) if holds]
        return name + "".join(f" ({word})" for word in marks)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two arms to be compared: does ``first`` compress further than ``second`` at equal accuracy?

    ``primary``: its verdict is corrected for the number of verdicts of its family; the others are descriptive.
    """

    first: Arm
    second: Arm
    primary: bool = True

    def __str__(self) -> str:
        return f"{self.first} against {self.second}"


@dataclass(frozen=True, slots=True)
class Orders:
    """The arms of a study and what is compared; arms that no comparison names are run and shown."""

    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...]


def orders_of(name: str, passes: Passes) -> Orders:
    """The orders that ``name`` (a key of :data:`ORDERS`) makes of passes, each under its letter.

    >>> from chainfx.passes import PruneChannels
    >>> orders = orders_of("pairwise", {"D": Distill(width=0.5), "P": PruneChannels(0.5)})
    >>> [str(arm) for arm in orders.arms]
    ['D', 'P', 'DP', 'PD', 'PD (fresh)']
    >>> [str(each) for each in orders.comparisons if each.primary]
    ['DP against PD']
    """
    comparisons = tuple(ORDERS[name](passes))
    alone = [Arm((letter,)) for letter in passes]
    compared = [arm for each in comparisons for arm in (each.first, each.second)]
    return Orders(tuple(dict.fromkeys([*alone, *compared])), comparisons)


def _pairwise(passes: Passes) -> list[Comparison]:
    """Every pair both ways (figures 6 to 11); distillation behind a static pass also with a fresh student."""
    found = [Comparison(Arm(pair), Arm(pair[::-1])) for pair in combinations(passes, 2)]
    fresh = [
        Comparison(Arm(steps[::-1]), Arm(steps, "fresh"), primary=False)
        for steps in permutations(passes, 2)
        if passes[steps[0]].info.kind is Kind.STATIC and isinstance(passes[steps[1]], Distill)
    ]
    return found + fresh


def _pairs(passes: Passes) -> list[Comparison]:
    """Every pair both ways, over all strengths: where the weaker step should go first, the verdict turns."""
    return [Comparison(Arm(pair), Arm(pair[::-1])) for pair in combinations(passes, 2)]


def _alone(passes: Passes) -> list[Comparison]:
    """Each pass alone at all its strengths; nothing is compared. The curves are what a prediction needs."""
    return []


def _recovery(passes: Passes) -> list[Comparison]:
    """Distillation without a smaller student, behind the other passes: against none, first, and a student first."""
    taught = _letter(passes, Distill)
    rest = tuple(letter for letter in passes if letter != taught)
    last = Arm((*rest, f"{taught}~"))
    return [
        Comparison(last, Arm(rest)),
        Comparison(last, Arm((f"{taught}~", *rest))),
        Comparison(last, Arm((taught, *rest))),
        Comparison(Arm((taught, *rest, f"{taught}~")), Arm((taught, *rest))),
    ]


def _student(passes: Passes) -> list[Comparison]:
    """A taught student against the same one without a teacher, and against one taught by contrast (CRD).

    Alone, and before every other pass.
    """
    taught = _letter(passes, Distill)
    behind: list[tuple[str, ...]] = [(), *((letter,) for letter in passes if letter != taught)]
    return [Comparison(Arm((taught, *rest)), Arm((f"{taught}{mark}", *rest))) for mark in "*^" for rest in behind]


def _compatibility(passes: Passes) -> list[Comparison]:
    """The five ratings of the compatibility exercise, each as a comparison that can contradict it.

    Few-bit quantization without training before pruning of weights against the other order (poor, and good); pruning
    of the student against none (moderate); quantization-aware training with graph optimization against without it
    (good); a teacher that was pruned before its student was made against pruning behind it (poor).
    """
    kinds = (PostTrainingQuantize, PruneWeights, Distill, PruneChannels, Quantize, Fuse)
    bits, masks, taught, prune, tuned, graph = (_letter(passes, kind) for kind in kinds)
    return [
        Comparison(Arm((masks, bits)), Arm((bits, masks))),
        Comparison(Arm((taught, prune)), Arm((taught,))),
        Comparison(Arm((tuned, graph)), Arm((tuned,))),
        Comparison(Arm((taught, prune)), Arm((prune, taught))),
        Comparison(Arm((taught, prune)), Arm((prune, taught), "fresh"), primary=False),
    ]


def _letter(passes: Passes, kind: type[Pass]) -> str:
    """The letter of the pass of a class; raises :class:`~chainfx.errors.StudyError` if there is none."""
    found = [letter for letter, one in passes.items() if isinstance(one, kind)]
    if not found:
        raise StudyError(f"these orders are about {kind.info.name}, which the design has under no letter; give it one.")
    return found[0]


def _control(passes: Passes) -> list[Comparison]:
    """Every pair in one order against itself with other random numbers: no verdict must come of it."""
    return [Comparison(Arm(pair), Arm(pair, salt=1)) for pair in combinations(passes, 2)]


def _insertion(passes: Passes) -> list[Comparison]:
    """Behind the first letter, each of the others between the pair of the rest, which stands both ways (figure 12)."""
    head, *rest = passes
    return [
        Comparison(Arm((head, one, third, other)), Arm((head, other, third, one)))
        for third in rest
        for one, other in combinations([letter for letter in rest if letter != third], 2)
    ]


def _every_insertion(passes: Passes) -> list[Comparison]:
    """Every pair both ways with every third pass between the two: twelve tests of four passes."""
    return [
        Comparison(Arm((one, third, other)), Arm((other, third, one)))
        for one, other in combinations(passes, 2)
        for third in passes
        if third not in (one, other)
    ]


def _chain(passes: Passes) -> list[Comparison]:
    """The whole chain as written against each pair as written (figure 13)."""
    letters = tuple(passes)
    return [Comparison(Arm(letters), Arm(pair)) for pair in combinations(passes, 2)]


def _permutations(passes: Passes) -> list[Comparison]:
    """The order as written against every other one that begins with its first letter (table 1)."""
    letters = tuple(passes)
    return [Comparison(Arm(letters), Arm((letters[0], *rest))) for rest in [*permutations(letters[1:])][1:]]


def _every_permutation(passes: Passes) -> list[Comparison]:
    """The order as written against every other one."""
    letters = tuple(passes)
    return [Comparison(Arm(letters), Arm(other)) for other in [*permutations(letters)][1:]]


def _ablation(passes: Passes) -> list[Comparison]:
    """The chain cut behind each pass against one pass more (figure 15)."""
    letters = tuple(passes)
    return [Comparison(Arm(letters[: n + 1]), Arm(letters[:n])) for n in range(1, len(letters))]


def _repetition(passes: Passes) -> list[Comparison]:
    """A pass twice against one at the strength of both, and behind the whole chain (figure 14); not the last letter.

    Two quantizations are a mild one before the one that counts.
    """
    letters = tuple(passes)
    again = letters[:-1]
    twice = [
        Comparison(Arm((f"{letter}-", letter)), Arm((letter,)))
        if letter == again[-1]
        else Comparison(Arm((letter, letter)), Arm((f"{letter}+",)))
        for letter in again
    ]
    return twice + [Comparison(Arm((*letters, letter)), Arm(letters)) for letter in again]


ORDERS: Mapping[str, Callable[[Passes], list[Comparison]]] = {
    "pairwise": _pairwise,
    "control": _control,
    "insertion": _insertion,
    "insertion-all": _every_insertion,
    "chain": _chain,
    "permutations": _permutations,
    "permutations-all": _every_permutation,
    "ablation": _ablation,
    "repetition": _repetition,
    "recovery": _recovery,
    "weakest-first": _pairs,
    "sensitivity": _pairs,
    "compatibility": _compatibility,
    "student": _student,
    "alone": _alone,
}
"""The experiments of the paper (arXiv 2403.17447) by name, then ours; each docstring says what is compared."""
