"""What happened at each stage of a chain, as frozen values with a JSON form."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from torch.fx import GraphModule

from chainfx.bitops import CostReport
from chainfx.errors import CostError
from chainfx.passes import Metric, Skipped
from chainfx.scheduler.keys import Surroundings

__all__ = ["Costs", "Stage", "StageRecord"]


@dataclass(frozen=True, slots=True)
class Costs:
    """The totals of a cost report, for one sample: bit operations under the named convention, storage in bits.

    The expected values equal the worst case in a network without exits; they are ``None`` where the exit rates of a
    network with exits were not measured.
    """

    convention: str
    macs: int
    bitops: float
    expected_macs: float | None
    expected_bitops: float | None
    storage_bits: int
    parameters: int

    @classmethod
    def of(cls, report: CostReport, *, measured: bool) -> Self:
        """The totals of a report; ``measured``: whether it was made with exit rates (or there are no exits)."""
        return cls(
            report.convention,
            report.macs,
            float(report.bitops),
            float(report.expected_macs) if measured else None,
            float(report.expected_bitops) if measured else None,
            report.storage_bits,
            report.parameters,
        )


@dataclass(frozen=True)
class StageRecord:
    """One finished stage: what was applied, what it cost and gave.

    ``spec`` and ``revision``: the pass with its options, and the revision it declared. ``fingerprint``: the hash of the
    stage's :class:`~chainfx.scheduler.StageKey`, under which it is stored; ``parent``: that of the stage before.
    ``before`` and ``after``: totals of the cost before and after the stage. ``metric``: what the trainer measured on
    validation data after the stage, exits in effect, ``None`` without a trainer; ``measured_by``: what that is,
    accuracy in [0, 1] unless the trainer says otherwise. ``exit_rates``: share of validation samples that leaves at
    each exit. ``seconds``: wall time of the stage when it was computed. ``report``: the whole cost report of the
    network after the stage, with the measured exit rates. ``surroundings``: what else determined the stage, the
    versions of chainfx and torch among it. Both are ``None`` in records that chainfx 0.1 wrote. ``remarks``: sentences
    that a user should read, such as that the stage does not pay, or lost much accuracy and why that may be.
    ``requests``: what the trainer was asked for in each round, as :meth:`~chainfx.passes.TuneRequest.plain` has it.
    """

    index: int
    name: str
    spec: Mapping[str, Any]
    label: str
    fingerprint: str
    parent: str
    before: Costs
    after: Costs
    metric: float | None
    exit_rates: Mapping[str, float] = field(default_factory=dict)
    modified: bool = True
    tuned: bool = False
    seconds: float = 0.0
    skipped: tuple[Skipped, ...] = ()
    profile: Mapping[str, Any] = field(default_factory=dict)
    report: CostReport | None = None
    revision: int = 1
    surroundings: Surroundings | None = None
    measured_by: Metric = field(default_factory=Metric)
    remarks: tuple[str, ...] = ()
    requests: tuple[Mapping[str, Any], ...] = ()

    def costs_under(self, convention: str) -> Costs:
        """The totals after the stage under another convention, such as ``"strict"``; nothing is counted again.

        Raises :class:`~chainfx.errors.CostError` on an unknown convention, and for a record of chainfx 0.1.
        """
        if self.report is None:
            raise CostError(
                f"the record of stage {self.label!r} has totals under {self.after.convention!r} alone, as chainfx 0.1 "
                f"wrote it; count its network again under {convention!r}."
            )
        return Costs.of(self.report.reprice(convention), measured=self.after.expected_macs is not None)

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON; :meth:`from_dict` rebuilds it."""
        described = dataclasses.asdict(dataclasses.replace(self, report=None))
        described["report"] = None if self.report is None else self.report.to_dict()
        plain: dict[str, Any] = json.loads(json.dumps(described))
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The record that :meth:`to_dict` wrote, of this version of chainfx or another.

        Fields that this version does not know are left out, those that it has in addition get their defaults.
        """
        known = {f.name: plain[f.name] for f in dataclasses.fields(cls) if f.name in plain}
        report, surroundings = plain.get("report"), plain.get("surroundings")
        nested = {
            "before": Costs(**plain["before"]),
            "after": Costs(**plain["after"]),
            "skipped": tuple(Skipped(**item) for item in plain["skipped"]),
            "report": None if report is None else CostReport.from_dict(report),
            "surroundings": None if surroundings is None else Surroundings.from_dict(surroundings),
            "measured_by": Metric(**plain.get("measured_by", {})),
            "remarks": tuple(plain.get("remarks", ())),
            "requests": tuple(plain.get("requests", ())),
        }
        return cls(**{**known, **nested})


@dataclass(frozen=True)
class Stage:
    """A finished stage: its record and its graph in train form. Stage 0 is the network as captured.

    ``resumed``: it was read from a working folder, not computed.
    """

    record: StageRecord
    graph_module: GraphModule
    resumed: bool = False
