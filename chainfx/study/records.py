"""The records of a study: what came of each case, as JSON that outlives the networks."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from chainfx.errors import StudyError
from chainfx.ir.graph import content_hash
from chainfx.study.design import Case
from chainfx.study.points import Point
from chainfx.study.tuning import Training

__all__ = ["CaseRecord", "Origin"]


@dataclass(frozen=True, slots=True)
class Origin:
    """What cases must share to be compared: the trained network they began with, and what they ran on.

    ``network``: hash of the original as it was trained for the seed. ``machine``: kind of processor and device, by
    which rounding may differ. Two machines of one kind may share the cases of a seed, others may not.
    """

    network: str
    machine: str
    chainfx: str
    torch: str


@dataclass(frozen=True, slots=True)
class CaseRecord:
    """What came of one case: its points, or why it failed.

    ``case``: :attr:`Case.hash`; ``seed``, ``salt``, ``training``, ``epochs``, ``steps`` and ``passes`` (their labels)
    say the same to a reader. ``stage``: the fingerprint under which its network is kept. ``points``: one, or one a
    threshold of its exits; empty if it failed. ``storage_bits``: of the network. ``seconds``: of its last stage.
    ``failed``: why, as a sentence, else ``None``. ``trained``: in words what the last stage trained, empty if nothing
    or by a former version. ``given_up``: it was not run because the one that it goes on from had lost too much; its
    points are those of that one.
    """

    case: str
    seed: int
    salt: int
    training: Training
    epochs: int
    steps: tuple[str, ...]
    passes: tuple[str, ...]
    origin: Origin
    stage: str | None
    points: tuple[Point, ...]
    storage_bits: int
    seconds: float
    failed: str | None = None
    trained: str = ""
    given_up: bool = False

    @classmethod
    def of(cls, case: Case, origin: Origin, **outcome: Any) -> Self:
        """The record of a case."""
        labels = tuple(one.label for one in case.passes)
        return cls(case.hash, case.seed, case.salt, case.training, case.epochs, case.steps, labels, origin, **outcome)

    @property
    def name(self) -> str:
        """The name of its file: another machine, version or original is another record of the same case."""
        return record_name(self.case, self.origin)

    def cost(self, point: Point, name: str) -> float:
        """What a point of the case costs: under a convention of bit operations, ``"storage"``, or what was measured.

        Raises :class:`~chainfx.errors.StudyError` for what the record does not have.
        """
        if name == "storage":
            return self.storage_bits
        known = {**point.bitops, **point.measured}
        if name not in known:
            raise StudyError(
                f"the record of {' > '.join(self.passes) or 'the original'} has no {name!r}; it has storage, "
                f"{', '.join(known)}."
            )
        return known[name]

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The record that :meth:`to_dict` wrote; what only another version knows is left out."""
        known = {f.name: plain[f.name] for f in dataclasses.fields(cls) if f.name in plain}
        points = tuple(Point.from_dict(each) for each in plain["points"])
        steps, passes = tuple(plain["steps"]), tuple(plain["passes"])
        return cls(**{**known, "steps": steps, "passes": passes, "points": points, "origin": Origin(**plain["origin"])})


def record_name(case: str, origin: Origin) -> str:
    """The name of the file of a case's record."""
    return f"{content_hash(case, dataclasses.asdict(origin))[:32]}.json"
