"""What the runner holds passes and trainers to: facts that a network has are kept, or given up by declaration."""

from collections.abc import Iterator, Sequence

from chainfx.errors import PassError, TuningError
from chainfx.ir.graph import Codebook, FactChange, FactName, Facts, Mask
from chainfx.passes import Pass

__all__ = ["check_applied", "check_chain", "check_tuned", "lost_facts"]


def lost_facts(passes: Sequence[Pass]) -> Iterator[tuple[int, int, FactName]]:
    """Which pass of a chain loses what an earlier one made and nobody between used: both positions (from 0), the fact.

    >>> from torch import nn
    >>> from chainfx.passes import Distill, PruneWeights
    >>> list(lost_facts([PruneWeights(0.5), Distill(student=nn.Linear(4, 2))]))
    [(0, 1, 'masks')]
    """
    for position, one in enumerate(passes):
        for fact in sorted(one.invalidates - one.info.establishes):
            for place in range(position - 1, -1, -1):
                earlier = passes[place].info
                if fact in one.info.requires or fact in earlier.requires:
                    break
                if fact in earlier.establishes:
                    yield place, position, fact
                    break


def check_chain(passes: Sequence[Pass]) -> None:
    """Refuse, before anything runs, a chain in which one pass loses what another one made, and nobody used.

    Raises :class:`PassError` naming both passes and the fact.
    """
    for place, position, fact in lost_facts(passes):
        one, earlier = passes[position].info.name, passes[place].info.name
        raise PassError(
            f"{one}: it would lose the {fact} that {earlier} establishes before it; "
            f"let {one} go first, as order='auto' does, or leave {earlier} out."
        )


def check_applied(one: Pass, before: Facts, after: Facts) -> None:
    """Refuse what a pass changed without declaring it: :class:`PassError` naming the node and the fact.

    A pass may change the facts that it establishes or invalidates. Of the others, these changes follow from what it may
    do to layers and are fine: the facts of a layer that it removed or added, and a mask or codes of another shape, as
    long as pattern and number of entries stay. But something of every fact must be left.
    """
    declared = one.info.establishes | one.invalidates
    for change in before.difference(after):
        if change.fact not in declared and not _follows(change, before, after):
            raise PassError(
                f"{one.info.name}: it changed the {change}, and does not declare that; "
                f"keep it, or name {change.fact!r} in what its PassInfo establishes or invalidates."
            )
    for fact in sorted(before.names - after.names - declared):
        raise PassError(
            f"{one.info.name}: nothing is left of the {fact} that the network had, and it does not declare that; "
            f"keep some, or name {fact!r} in what its PassInfo invalidates."
        )


def check_tuned(one: Pass, before: Facts, after: Facts) -> None:
    """Refuse what a trainer changed beside parameters: :class:`TuningError` naming the node and the fact."""
    for change in before.difference(after):
        raise TuningError(
            f"{one.info.name}: tuning changed the {change}; a trainer may change the values of parameters only."
        )


def _follows(change: FactChange, before: Facts, after: Facts) -> bool:
    """Whether a change is that of a layer that went, came or has another size."""
    if change.before is None:
        return change.where not in before.layers and change.fact != "exits"
    if change.after is None:
        return change.where not in after.layers and change.fact != "exits"
    match change.before, change.after:
        case Mask() as mask, Mask() as other:
            return mask.pattern == other.pattern and mask.shape != other.shape
        case Codebook() as codebook, Codebook() as another:
            return codebook.entries == another.entries and codebook.shape != another.shape
    return False
