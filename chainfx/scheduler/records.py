"""What happened at each stage of a chain, as frozen values with a JSON form, and where finished stages are kept."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from torch.fx import GraphModule

from chainfx.bitops import CostReport
from chainfx.errors import ArtifactError
from chainfx.ir.artifact import load_graph, save_graph
from chainfx.ir.graph import content_hash
from chainfx.passes import Skipped

__all__ = ["Costs", "StageRecord", "StageStore", "stage_fingerprint"]


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

    ``metric``: validation accuracy in [0, 1] after the stage, exits in effect, ``None`` without a trainer.
    ``exit_rates``: share of validation samples that leaves at each exit. ``seconds``: wall time of the stage when it
    was computed.
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

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The record that :meth:`to_dict` wrote."""
        nested = {
            "before": Costs(**plain["before"]),
            "after": Costs(**plain["after"]),
            "skipped": tuple(Skipped(**item) for item in plain["skipped"]),
        }
        return cls(**{**plain, **nested})


def stage_fingerprint(parent: str, spec: Mapping[str, Any], surroundings: Mapping[str, Any]) -> str:
    """The hash of what determines a stage: the parent stage, the pass with its options, and its surroundings.

    ``surroundings``: trainer and calibration fingerprints, seed.
    """
    return content_hash(parent, spec, surroundings)


class StageStore:
    """Finished stages in a folder, each in a sub-folder named by its fingerprint."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(f"{folder} cannot be made a working folder: {error.strerror}; give another.") from error
        self.folder = folder

    def find(self, fingerprint: str) -> tuple[StageRecord, GraphModule] | None:
        """The stored stage, or ``None`` if it was not finished; a damaged one raises :class:`ArtifactError`."""
        place = self._place(fingerprint)
        if not (place / "manifest.json").exists():
            return None
        graph_module, extra = load_graph(place)
        try:
            return StageRecord.from_dict(extra["record"]), graph_module
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"{place} holds no stage record of this chainfx; delete it to redo it.") from error

    def keep(self, record: StageRecord, graph_module: GraphModule) -> None:
        """Store a finished stage; it counts as finished only once its manifest is written, which happens last."""
        save_graph(graph_module, self._place(record.fingerprint), {"record": record.to_dict()})

    def _place(self, fingerprint: str) -> Path:
        return self.folder / fingerprint[:24]
