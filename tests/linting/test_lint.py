"""Lint beside plan, its rules, its bad input, its dry run and its forms."""

import itertools
import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import chainfx
from chainfx import zoo
from chainfx.errors import InputError, LintError, ScheduleError
from chainfx.linting import Machine, sarif
from chainfx.linting.network import Network
from chainfx.passes import (
    Bf16,
    Distill,
    EarlyExit,
    Fuse,
    Granularity,
    Kind,
    LowRank,
    OptimizeGraph,
    Pass,
    PassInfo,
    PassResult,
    PostTrainingQuantize,
    PruneChannels,
    PruneHeads,
    PruneWeights,
    Quantize,
)
from chainfx.scheduler import EVIDENCE, SEVERITIES, Evidence, Finding
from tests.linting.chains import STUDENT
from tests.nets import graph_of, images, small_resnet
from tests.trainers import FakeTrainer

PASSES = (
    *(Distill(depth=0.5), STUDENT, LowRank(energy=0.9), PruneChannels(0.5), PruneHeads(0.5), PruneWeights(0.5)),
    *(Quantize(2, 4), Quantize(), PostTrainingQuantize(4, 4), PostTrainingQuantize()),
    *(EarlyExit(), Fuse(), OptimizeGraph()),
)


@given(st.lists(st.sampled_from(PASSES), max_size=5, unique_by=lambda one: one.info.name), st.booleans())
def test_lint_and_plan_agree_on_every_chain(passes, trainer):
    made = chainfx.plan(passes, tunes=trainer)
    report = chainfx.lint(passes, trainer=trainer)
    given_findings = chainfx.plan(passes, "given", tunes=trainer).findings
    wrong = [finding for finding in report.findings if finding.rule == "order"]
    assert (wrong == []) == (made.passes == tuple(passes))
    assert [one.info.name for one in report.corrected] == list(made.order)
    assert tuple(wrong) == tuple(sorted(given_findings, key=lambda found: SEVERITIES.index(found.severity)))
    again = chainfx.lint(report.corrected, trainer=trainer)
    assert again.corrected == report.corrected and not any(finding.rule == "order" for finding in again.findings)


def rules(passes, *wanted, **options):
    options.setdefault("machine", Machine(integers=True, sparse=False))
    findings = chainfx.lint(passes, **options).findings
    return [(f.severity, f.rule, f.positions) for f in findings if not wanted or f.rule in wanted]


def test_an_empty_chain_has_no_findings():
    report = chainfx.lint([])
    assert report.findings == () and report.worst is None
    assert str(report) == "chain: no passes\nnothing found"


def test_order_auto_looks_at_the_order_that_plan_makes_and_names_the_written_positions():
    chain = [Quantize(), PruneWeights(pattern="2:4"), STUDENT]
    assert [positions for _, _, positions in rules(chain, "order", "lost-fact")] == [(1, 3), (2, 3), (1, 2)]
    assert rules(chain, "order", "lost-fact", order="auto") == []
    assert rules(chain, "kernels", order="auto") == [("warning", "kernels", (2,))]


def test_a_lossy_stage_without_tuning_before_another():
    chain = [PruneChannels(0.5), LowRank(energy=0.9)]
    assert rules(chain, "recovery") == []
    assert rules(chain, "recovery", "post-training", trainer=False) == [
        ("warning", "recovery", (1, 2)),
        ("warning", "post-training", (1,)),
        ("warning", "post-training", (2,)),
    ]
    assert rules([PostTrainingQuantize(), Fuse()], "recovery", "post-training") == []


def test_a_pass_twice_and_an_exact_pass_twice():
    assert rules([PruneChannels(0.2), PruneChannels(0.3)], "repeated") == [("info", "repeated", (1, 2))]
    assert rules([Fuse(), Fuse()], "repeated") == []


@dataclass(frozen=True)
class Sharing(Pass):
    """Needs masks; that is all that is known of it."""

    info: ClassVar[PassInfo] = PassInfo("sharing", Kind.STATIC, Granularity.BIT, requires=frozenset({"masks"}))

    def apply(self, graph_module, context, /):
        return PassResult(graph_module, modified=False)


def test_needs_that_nothing_serves():
    assert rules([EarlyExit()], "need", trainer=False) == [("error", "need", (1,)), ("error", "need", (1,))]
    assert rules([Quantize()], "need", trainer=False) == []
    (finding,) = [f for f in chainfx.lint([Quantize()], trainer=False, calibration=False).findings if f.rule == "need"]
    assert finding.reason == "quantize: this pass needs calibration data and there is none"
    assert finding.fix == "give calibration=[batches of inputs] or a trainer"
    (finding,) = [f for f in chainfx.lint([Sharing(), Fuse()]).findings if f.rule == "need"]
    assert finding.reason == "sharing requires masks, which no pass before it establishes"
    assert rules([PruneWeights(0.5), Sharing()], "need") == []


def test_facts_that_the_network_has_serve_too():
    x = images(2)
    masked = chainfx.compile(small_resnet((1, 1)), [PruneWeights(0.5)], example_inputs=x, order="given")
    graph_module = masked.graph_module
    assert rules([Sharing()], "need", model=graph_module, example_inputs=x) == []


@pytest.mark.parametrize(
    ("one", "machine", "expected"),
    [
        (Quantize(8, 8), Machine(True, False), []),
        (Quantize(8, 8), Machine(False, False), ["warning"]),
        (Quantize(8, 4), Machine(True, False), ["info"]),
        (Quantize(4, 32), Machine(True, False), ["info"]),
        (Quantize(32, 32, first=None, last=None), Machine(False, False), []),
        (PruneWeights(0.5), Machine(True, True), ["info"]),
        (PruneWeights(pattern="2:4"), Machine(True, False), ["warning"]),
        (PruneWeights(pattern="2:4"), Machine(True, True), []),
        (PruneWeights(pattern="1:4"), Machine(True, True), ["warning"]),
    ],
)
def test_what_the_machine_has_no_kernels_for(one, machine, expected):
    assert [severity for severity, _, _ in rules([one], "kernels", machine=machine)] == expected


WITHOUT_VNNI = Machine(integers=True, sparse=False, saturates=True, bfloat16=False)


@pytest.mark.parametrize(
    ("one", "tuned", "severity", "layers", "fix"),
    [
        (Quantize(4, 8), True, "info", "first and last", "use first=7, last=7"),
        (Quantize(4, 8, first=None), True, "info", "last", "use last=7"),
        (Quantize(8, 8), False, "warning", "", "use weights=7, first=7, last=7"),
        (Quantize(8, 8, first=7, last=7), True, "warning", "", "use weights=7, scheme='uniform'"),
        (Quantize(7, 8, first=7, last=7), True, "warning", "", "use weights=7, scheme='uniform'"),
        (Quantize(7, 8, 7, 7, scheme="dorefa"), False, "warning", "", "use weights=7, scheme='uniform'"),
        (Quantize(7, 8, first=7, last=7), False, None, "", ""),
        (Quantize(8, 7, first=7, last=7), True, None, "", ""),
        (Quantize(4, 8, first=32, last=32), True, None, "", ""),
        (Quantize(4, 8, first=7, last=7, scheme="exponential"), True, None, "", ""),
        (PostTrainingQuantize(8, 8), False, "warning", "", "use weights=7"),
        (PostTrainingQuantize(7, 8), False, None, "", ""),
    ],
)
def test_layers_that_stay_in_float_without_vnni(one, tuned, severity, layers, fix):
    def told(machine):
        found = chainfx.lint([one], trainer=tuned, machine=machine).findings
        return [each for each in found if "VNNI" in each.reason]

    findings = told(WITHOUT_VNNI)
    assert [(each.severity, each.fix) for each in findings] == ([(severity, fix)] if severity else [])
    if layers:
        assert findings[0].reason == (
            f"quantize leaves its {layers} layers in float here: without VNNI, products of integers are added in 16 "
            "bits"
        )
    assert told(Machine(integers=True, sparse=False)) == []


def test_bfloat16_where_the_processor_has_none():
    (found,) = chainfx.lint([Bf16()], machine=WITHOUT_VNNI).findings
    assert (found.severity, found.rule) == ("warning", "kernels")
    assert found.reason == (
        "this machine has no instructions for bfloat16, and layers of bf16 take many times as long here"
    )
    assert chainfx.lint([Bf16()], machine=Machine(integers=True, sparse=False)).findings == ()


def test_the_machine_is_looked_at():
    assert Machine.here().integers == bool(set(torch.backends.quantized.supported_engines) - {"none"})
    deployed = chainfx.deploy.Machine.here()
    assert Machine.here().saturates == (deployed.saturates and deployed.instructions.startswith("AVX"))


def test_channel_counts_that_fill_no_block():
    assert rules([PruneChannels(0.5, round_to=1)], "channels") == [("info", "channels", (1,))]
    assert rules([PruneChannels(0.5)], "channels") == []
    assert rules([PruneChannels(0.5, round_to=16)], "channels") == []


def test_channel_counts_are_those_of_the_graph_where_there_is_one():
    """36 and 42 are no multiples of 8; of 72 half are 36, rounded up to 8 they are 40; 10 are too few to matter."""
    x = torch.zeros(1, 3)
    sizes = (3, 36, 72, 20, 42)
    net = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))

    def told(*chain):
        findings = chainfx.lint(chain, net, example_inputs=x).findings
        return [(found.positions, found.reason) for found in findings if found.rule == "channels"]

    network = "the network has numbers of channels that are no multiples of 8, the blocks of kernels: 0 (36)"
    assert told(Quantize()) == [((), network)] and told(Fuse()) == []  # 42 is what the network gives
    left = "prune-channels leaves numbers of channels that are no multiples of 8, the blocks of kernels: 1 (36)"
    assert told(PruneChannels(0.5, round_to=1), Quantize()) == [((), network), ((1,), left)]
    assert told(PruneChannels(0.5, round_to=8)) == told(PruneChannels(0.5)) == [((), network)]
    small = chainfx.compile(net, [PruneChannels(0.5, round_to=1)], example_inputs=x)
    assert [(f.positions, f.rule) for f in small.report.findings if f.rule == "channels"] == [
        ((1,), "channels"),
        ((), "channels"),
    ]


class Reader(nn.Module):
    """One block of attention on words, and a score for each word or for each of two classes."""

    def __init__(self, scores=20):
        super().__init__()
        self.words, self.q, self.k, self.v = nn.Embedding(20, 8), *(nn.Linear(8, 8) for _ in range(3))
        self.out = nn.Linear(8, scores)

    def forward(self, ids):
        x = self.words(ids)
        q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


WORDS = torch.arange(12).reshape(2, 6)
NETS = {
    "convolutional": (small_resnet, images(2)),
    "transformer": (lambda: Reader(2).eval(), WORDS),
    "language model": (lambda: Reader().eval(), WORDS),
    "other": (lambda: nn.Linear(4, 2), torch.zeros(1, 4)),
}


@pytest.mark.parametrize("kind", NETS)
def test_advice_follows_from_the_kind_of_network(kind):
    make, x = NETS[kind]
    graph_module = graph_of(make(), x)
    assert Network.of(graph_module, (x,)).kind == kind
    chain = [PruneChannels(0.5), PruneHeads(0.5), Quantize(8, 8)]
    expected = {
        "transformer": [("info", "architecture", (1,))],
        "language model": [("warning", "architecture", (3,)), ("info", "architecture", (1,))],
    }.get(kind, [("error", "architecture", (2,))])
    assert rules(chain, "architecture", model=graph_module, example_inputs=x) == expected
    alone = [Quantize(4, 32, first=None, last=None)]
    assert rules(alone, "architecture", model=graph_module, example_inputs=x) == []


def test_as_many_classes_as_words_make_no_language_model():
    class Classifier(Reader):
        def forward(self, ids):
            return super().forward(ids).mean(1)

    assert Network.of(graph_of(Classifier().eval(), WORDS), (WORDS,)).kind == "transformer"


def test_depthwise_layers_lose_most_and_gain_least():
    x = images(1, 32, 3)
    graph_module = graph_of(zoo.mobilenet_v2(width=0.1).eval(), x)
    assert 0.01 < Network.of(graph_module, (x,)).depthwise < 0.5
    for granularity, severity in (("tensor", "warning"), ("channel", "info")):
        chain = [Quantize(granularity=granularity)]
        assert rules(chain, "depthwise", model=graph_module, example_inputs=x) == [(severity, "depthwise", (1,))]
    x = images(1)
    assert rules([Quantize()], "depthwise", model=small_resnet((1, 1)), example_inputs=x) == []


def test_a_dry_run_predicts_the_costs_of_the_run():
    x = images(4)
    chain = [
        Distill(depth=0.5),
        PruneChannels(0.4),
        Quantize(4, 4),
        EarlyExit(exits=1, threshold=2.0, keep=True),
        Fuse(),
    ]
    report = chainfx.lint(chain, small_resnet(), example_inputs=x, samples=1000)
    small = chainfx.compile(small_resnet(), chain, example_inputs=x, trainer=FakeTrainer(x))
    for stage, record in zip(report.stages, small.report.records, strict=True):
        seen = (stage.costs.macs, stage.costs.bitops, stage.costs.parameters, stage.costs.storage_bits)
        after = record.after
        assert (stage.label, seen) == (record.label, (after.macs, after.bitops, after.parameters, after.storage_bits))
    assert [stage.position for stage in report.stages] == [0, 1, 2, 3, 4, 5]
    assert [stage.seconds is None for stage in report.stages] == [True, False, False, False, False, True]
    timed = "a training step of batch 4, timed here"
    assert [stage.basis for stage in report.stages] == ["", timed, timed, timed, timed, ""]
    again = chainfx.lint(chain, small_resnet(), example_inputs=x, records=small.report.records)
    assert [stage.basis for stage in again.stages][1] == "the record of the stage, which was run before"
    assert [s.seconds for s in again.stages[1:5]] == [record.seconds for record in small.report.records[1:5]]


@pytest.mark.parametrize("criterion", ["max-sigmoid", "token-margin"])
def test_a_dry_run_takes_the_confidence_of_any_task(criterion):
    layers = (nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    inputs = torch.zeros(2, 5, 6) if criterion == "token-margin" else torch.zeros(2, 6)
    report = chainfx.lint([EarlyExit(exits=1, criterion=criterion)], nn.Sequential(*layers), example_inputs=inputs)
    assert not [finding for finding in report.findings if finding.rule == "dry-run"]
    assert [stage.position for stage in report.stages] == [0, 1]


def test_a_stage_that_cannot_be_applied_is_found_and_ends_the_prediction():
    chain = [Fuse(), Distill(depth=(9, 9)), Quantize()]
    report = chainfx.lint(chain, small_resnet((1, 1)), example_inputs=images(2))
    (finding,) = [finding for finding in report.findings if finding.rule == "dry-run"]
    assert (finding.severity, finding.positions) == ("error", (2,))
    assert finding.reason.startswith("distill(depth=(9, 9)) cannot be applied to this network: distill: depth=(9, 9) ")
    assert [stage.label for stage in report.stages] == ["original", "fuse()"]


def test_a_stage_that_changes_nothing_is_found():
    report = chainfx.lint([Fuse()], nn.Linear(4, 2), example_inputs=torch.zeros(1, 4))
    assert [(f.severity, f.reason) for f in report.findings] == [("info", "fuse() changes nothing in this network")]


def test_a_model_needs_inputs_and_inputs_may_have_names():
    with pytest.raises(InputError) as caught:
        chainfx.lint([Fuse()], nn.Linear(4, 2))
    assert str(caught.value) == ("example_inputs is missing: a network is captured with one batch of inputs; give it.")
    x = {"input": torch.zeros(1, 4)}
    assert len(chainfx.lint([Quantize()], nn.Linear(4, 2), example_inputs=x).stages) == 2


ROW = '[[edge]]\nbefore = "quantize"\nafter = "pruning"\nconfidence = "measured"\nsource = "s"\nreason = "r"\n'


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            ROW + ROW.replace("pruning", "prunning"),
            "evidence file {path}:7: after='prunning' is no pass and no family; did you mean 'pruning'? known are ",
        ),
        (
            ROW + 'when = ["after.bits <= 4"]\n',
            "evidence file {path}:1: the condition on after.bits can never hold: 'pruning' has the options ",
        ),
    ],
)
def test_evidence_that_matches_nothing_is_an_error_with_its_line(tmp_path, content, text):
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(ScheduleError) as caught:
        chainfx.lint([Fuse()], evidence=(*EVIDENCE, path))
    assert str(caught.value).startswith(text.format(path=path))


def test_evidence_that_contradicts_itself_names_both_lines(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(ROW + ROW.replace("quantize", "q").replace("pruning", "quantize").replace('"q"', '"prune-weights"'))
    with pytest.raises(ScheduleError) as caught:
        chainfx.lint([PruneWeights(0.5), Quantize()], evidence=(path,))
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("the order is contradictory: ")
    assert [line.rpartition(" (")[2] for line in lines] == [f"{path}:7)", f"{path}:1)"]


def test_a_study_of_ones_own_decides():
    mine = Evidence("quantization", "pruning", "measured", "my study, p = 0.008", "it kept 0.4 points more")
    report = chainfx.lint([PruneWeights(0.5), Quantize()], evidence=(*EVIDENCE, mine))
    assert report.worst == "error" and report.findings[0].source == "my study, p = 0.008"
    assert [one.info.name for one in report.corrected] == ["quantize", "prune-weights"]


def test_a_report_is_json_and_a_finding_comes_back():
    report = chainfx.lint(
        [PostTrainingQuantize(4, 4), PruneWeights(0.5)], small_resnet((1, 1)), example_inputs=images(2)
    )
    plain = json.loads(json.dumps(report.to_dict()))
    assert set(plain) == {"passes", "findings", "corrected", "stages"}
    assert plain["corrected"] == ["prune-weights(ratio=0.5)", "post-training-quantize(8, 8)"]
    back = Finding.from_dict(plain["findings"][0])
    assert str(back) == str(report.findings[0])
    assert plain["stages"][0]["costs"]["macs"] == report.stages[0].costs.macs


def test_sarif_has_a_rule_a_level_and_a_line_for_every_finding():
    report = chainfx.lint([PostTrainingQuantize(4, 4), PruneWeights(0.5)])
    log = sarif(report.findings, "r.yaml", {1: 4, 2: 5})
    (run,) = log["runs"]
    assert log["version"] == "2.1.0" and run["tool"]["driver"]["name"] == "chainfx lint"
    assert {rule["id"] for rule in run["tool"]["driver"]["rules"]} == {finding.rule for finding in report.findings}
    places = [each["locations"][0]["physicalLocation"] for each in run["results"]]
    assert {place["artifactLocation"]["uri"] for place in places} == {"r.yaml"}
    seen = [(each["level"], place["region"]["startLine"]) for each, place in zip(run["results"], places, strict=True)]
    levels = {"error": "error", "warning": "warning", "info": "note"}
    assert seen == [(levels[f.severity], 3 + min(f.positions)) for f in report.findings]


def test_compile_attaches_the_findings_and_shows_them_before_training(capfd):
    x = images(4)
    chain = [Quantize(4, 4), PruneChannels(0.4)]
    small = chainfx.compile(small_resnet((1, 1)), chain, example_inputs=x, trainer=FakeTrainer(x), order="given")
    found = small.report.findings
    told = [finding for finding in found if finding.severity != "info"]
    assert [(f.severity, f.rule, f.positions) for f in told] == [("warning", "order", (1, 2))] and len(found) > 1
    shown = capfd.readouterr().err.splitlines()
    assert shown[0] == str(told[0]) and shown[1].startswith("original:")
    assert "found before it ran:" in str(small.report) and "broken" not in small.report.plan
    assert chainfx.scheduler.ChainReport.from_dict(json.loads(json.dumps(small.report.to_dict()))).findings
    chainfx.compile(small_resnet((1, 1)), chain, example_inputs=x, trainer=FakeTrainer(x))
    assert "order" not in capfd.readouterr().err


def test_errors_can_be_refused():
    x, trainer = images(4), FakeTrainer(images(4))
    chain = [PruneWeights(0.5), Distill(student=small_resnet((1, 1)))]
    with pytest.raises(LintError) as caught:
        chainfx.compile(small_resnet((1, 1)), chain, example_inputs=x, trainer=trainer, order="given", refuse="errors")
    first, *errors = str(caught.value).splitlines()
    assert first == (
        "the chain prune-weights -> distill is not run because lint finds errors in it (refuse='errors'); "
        "mend it or leave refuse out."
    )
    assert len(errors) == 1 and errors[0].startswith("  error at 1 and 2 (order): prune-weights stands before distill")
    assert trainer.requests == []
    chainfx.compile(small_resnet((1, 1)), [Fuse()], example_inputs=x, refuse="errors")
    with pytest.raises(InputError) as wrong:
        chainfx.compile(small_resnet((1, 1)), [Fuse()], example_inputs=x, refuse="all")
    assert str(wrong.value) == "refuse='all' is not known; use 'errors' or None."
