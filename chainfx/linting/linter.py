"""The entry of lint: all rules on one chain, and what would be better."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.fx import GraphModule

from chainfx.errors import InputError
from chainfx.ir.capture import capture, signature_of
from chainfx.linting.chain import Chain
from chainfx.linting.chain_rules import CHAIN_RULES, milder
from chainfx.linting.machine import Machine
from chainfx.linting.network import Network
from chainfx.linting.network_rules import NETWORK_RULES
from chainfx.linting.predicting import StagePrediction, predict
from chainfx.passes import Pass, get_pass, pass_names
from chainfx.rendering import rendered
from chainfx.scheduler import (
    EVIDENCE,
    LAW,
    SEVERITIES,
    Evidence,
    Finding,
    Law,
    Severity,
    StageRecord,
    check_evidence,
    gather,
    plan,
    worst,
)

__all__ = ["LintReport", "findings_of", "lint"]

Order = Literal["auto", "given"]
Inputs = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


@dataclass(frozen=True)
class LintReport:
    """What lint found in a chain; ``print`` shows it.

    ``passes``: the chain as written. ``findings``: the worst first. ``corrected``: the chain in the right order, with
    milder options where these are too strong. ``stages``: what each stage will cost, the original first, if there was
    a network.
    """

    passes: tuple[Pass, ...]
    findings: tuple[Finding, ...]
    corrected: tuple[Pass, ...]
    stages: tuple[StagePrediction, ...] = ()

    @property
    def worst(self) -> Severity | None:
        """The severity of the worst finding; ``None`` without findings."""
        return worst(self.findings)

    def __str__(self) -> str:
        return rendered(self, "text")

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON; passes as their labels."""
        return {
            "passes": [one.label for one in self.passes],
            "findings": [finding.to_dict() for finding in self.findings],
            "corrected": [one.label for one in self.corrected],
            "stages": [stage.to_dict() for stage in self.stages],
        }


def lint(
    passes: Sequence[Pass],
    model: nn.Module | None = None,
    *,
    example_inputs: Inputs | None = None,
    trainer: bool = True,
    calibration: bool = True,
    order: Order = "given",
    samples: int | None = None,
    records: Sequence[StageRecord] = (),
    law: Law = LAW,
    evidence: Iterable[Evidence | str | Path] = EVIDENCE,
    machine: Machine | None = None,
) -> LintReport:
    """Say whether a chain is a good idea before it is run: what is wrong, why, who says so, and what to do.

    Parameters:
        passes: the passes with their options, as one means to run them.
        model: the network, which is captured and not changed; with it lint knows its kind and does a dry run.
        example_inputs: one batch of inputs of the network; needed with ``model``.
        trainer, calibration: whether there will be a trainer, and whether calibration data will be given.
        order: ``"given"`` looks at the order as written; ``"auto"`` at the one that :func:`chainfx.plan` makes of it.
        samples: how many samples a tuning sees (epochs times the size of the training data), for the time estimate.
        records: of stages that were run before (``small.report.records``), whose time is taken for the same stage.
        law, evidence: as for :func:`chainfx.plan`; a row of one's own evidence that can match nothing is an error.
        machine: what there are kernels for; this machine unless given.

    Raises:
        ChainfxError: with one sentence, for what is no pass, evidence that contradicts itself or matches nothing, and a
            network that cannot be captured.

    Example:
        >>> from chainfx.passes import PruneWeights, Quantize
        >>> report = lint([Quantize(4), PruneWeights(0.5)], trainer=False)
        >>> report.worst, [one.label for one in report.corrected]
        ('error', ['prune-weights(ratio=0.5)', 'quantize(8, 8)'])
    """
    if model is not None and example_inputs is None:
        raise InputError("example_inputs is missing: a network is captured with one batch of inputs; give it.")
    known = gather(evidence)
    _check_known(known, passes)
    planned = plan(passes, order="given", law=law, evidence=known, tunes=trainer)
    ordered = plan(passes, law=law, evidence=known, tunes=trainer)
    running = planned.passes if order == "given" else ordered.passes
    steps = Chain.steps_of(running, planned.passes, trainer)
    graph_module, inputs = (None, ()) if model is None else _captured(model, example_inputs)
    network = None if graph_module is None else Network.of(graph_module, inputs)
    chain = Chain(steps, trainer, calibration, known, machine or Machine.here(), network, dry=network is not None)
    found = _merged(planned.findings if order == "given" else (), _by_rules(chain))
    stages: tuple[StagePrediction, ...] = ()
    if graph_module is not None:
        stages, more = predict(graph_module, steps, inputs, trainer=trainer, samples=samples, records=records)
        found += more
    mended = [
        step.one if step.tuned else milder(step.one) for step in Chain.steps_of(planned.passes, planned.passes, trainer)
    ]
    corrected = plan(mended, law=law, evidence=known, tunes=trainer).passes
    return LintReport(planned.passes, _sorted(found), corrected, stages)


def findings_of(
    passes: Sequence[Pass],
    order_findings: Sequence[Finding],
    graph_module: GraphModule,
    example_inputs: tuple[Tensor, ...],
    *,
    trainer: bool,
    calibration: bool,
) -> tuple[Finding, ...]:
    """What the rules find in a chain that is about to run on a captured network, beside what a plan found already."""
    steps = Chain.steps_of(passes, passes, trainer)
    network = Network.of(graph_module, example_inputs)
    chain = Chain(steps, trainer, calibration, EVIDENCE, Machine.here(), network)
    return _sorted(_merged(order_findings, _by_rules(chain)))


def _merged(order_findings: Sequence[Finding], others: Sequence[Finding]) -> list[Finding]:
    """All findings, without a lost fact where the order of the same two passes is found wrong because of facts."""
    known = {found.positions for found in order_findings if any(edge.kind == "fact" for edge in found.edges)}
    return [*order_findings, *(other for other in others if other.rule != "lost-fact" or other.positions not in known)]


def _by_rules(chain: Chain) -> list[Finding]:
    return [finding for rule in (*CHAIN_RULES, *NETWORK_RULES) for finding in rule(chain)]


def _sorted(found: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))


def _captured(model: nn.Module, inputs: Any) -> tuple[GraphModule, tuple[Tensor, ...]]:
    """The graph of a network, which may be captured already, and its inputs in the order of the graph."""
    given = (inputs,) if isinstance(inputs, Tensor) else inputs if isinstance(inputs, Mapping) else tuple(inputs)
    if isinstance(model, GraphModule):
        return model, tuple(given)
    return capture(model, given), signature_of(model, given)[1]


def _check_known(evidence: Iterable[Evidence], passes: Sequence[Pass]) -> None:
    """Refuse evidence of one's own that can match nothing; what ships with chainfx is tested."""
    own = [row for row in evidence if row not in EVIDENCE]
    if own:
        installed = [get_pass(name) for name in pass_names()]
        check_evidence(own, [*installed, *(type(one) for one in passes if isinstance(one, Pass))])
