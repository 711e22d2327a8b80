"""What the rules of lint look at: the stages as they will run, and what there is to run them with."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chainfx.linting.machine import Machine
from chainfx.linting.network import Network
from chainfx.passes import Pass
from chainfx.scheduler import Evidence, Finding, Severity

__all__ = ["Chain", "Step"]


@dataclass(frozen=True, slots=True)
class Step:
    """A stage: the pass, its ``position`` in the chain as written (from 1), and whether a trainer tunes it."""

    one: Pass
    position: int
    tuned: bool

    @property
    def name(self) -> str:
        """The name of the pass."""
        return self.one.info.name

    @property
    def family(self) -> str:
        """The family of the pass."""
        return self.one.info.family

    def option(self, name: str) -> object:
        """The value of an option; ``None`` if the pass has no such option."""
        return getattr(self.one, name, None)

    def bits(self, name: str) -> int:
        """The number of bits that an option gives; 32, which is float, if the pass has no such option."""
        value = self.option(name)
        return value if isinstance(value, int) else 32

    def finding(self, rule: str, severity: Severity, reason: str, source: str, fix: str) -> Finding:
        """A finding about this stage alone."""
        return Finding(rule, severity, (self.position,), reason, source, fix)


@dataclass(frozen=True, slots=True)
class Chain:
    """The stages in the order in which they will run, and their surroundings.

    ``trainer`` and ``calibration``: whether there is a trainer, and whether there are calibration data. ``network`` is
    ``None`` where only the passes are known; ``dry``: whether a dry run looks at the graph after each stage as well.
    """

    steps: tuple[Step, ...]
    trainer: bool
    calibration: bool
    evidence: tuple[Evidence, ...]
    machine: Machine
    network: Network | None = None
    dry: bool = False

    @property
    def lossy(self) -> tuple[Step, ...]:
        """The stages whose pass is not exact."""
        return tuple(step for step in self.steps if not step.one.info.exact)

    def of(self, *families: str) -> tuple[Step, ...]:
        """The stages whose pass is of one of some families."""
        return tuple(step for step in self.steps if step.family in families)

    def pairs(self) -> Iterator[tuple[Step, Step]]:
        """Every two stages, the one that runs first first."""
        for place, later in enumerate(self.steps):
            yield from ((earlier, later) for earlier in self.steps[:place])

    @staticmethod
    def steps_of(passes: Sequence[Pass], written: Sequence[Pass], trainer: bool) -> tuple[Step, ...]:
        """Passes as they run, each with its position in the chain as written."""
        left = list(enumerate(written, start=1))
        steps = []
        for one in passes:
            at = next(index for index, (_, other) in enumerate(left) if other is one)
            steps.append(Step(one, left.pop(at)[0], trainer and one.info.tunes))
        return tuple(steps)
