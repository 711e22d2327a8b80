import dataclasses
import itertools
from pathlib import Path
from typing import Any, ClassVar

import pytest
from torch.fx import GraphModule

from chainfx.errors import InputError, ScheduleError
from chainfx.passes.base import Granularity, Kind, Pass, PassContext, PassInfo, PassResult
from chainfx.scheduler.evidence import EVIDENCE, Evidence, load_evidence
from chainfx.scheduler.law import LAW, Law
from chainfx.scheduler.planning import plan


def make(name: str, kind: Kind, granularity: Granularity, **facts: Any) -> Pass:
    """An instance of a new pass class that does nothing."""

    def apply(self: Pass, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        return PassResult(graph_module, modified=False)

    info = PassInfo(name, kind, granularity, **facts)
    namespace = {"info": info, "apply": apply, "__annotations__": {"info": ClassVar[PassInfo]}}
    return dataclasses.dataclass(frozen=True)(type(name, (Pass,), namespace))()


def facts(**words: str) -> dict[str, frozenset[str]]:
    return {key: frozenset(value.split()) for key, value in words.items()}


DISTILL = make("distill", Kind.STATIC, Granularity.ARCHITECTURE, family="distillation")
PRUNE = make("prune-channels", Kind.STATIC, Granularity.NEURON, family="pruning")
QUANTIZE = make("quantize", Kind.STATIC, Granularity.SUB_NEURON, family="quantization")
EXIT = make("early-exit", Kind.DYNAMIC, Granularity.ARCHITECTURE, repeatable=False, family="exits")
FOUR = (DISTILL, PRUNE, QUANTIZE, EXIT)
NAMES = ("distill", "prune-channels", "quantize", "early-exit")


@pytest.mark.parametrize("evidence", [EVIDENCE, ()], ids=["with evidence", "law alone"])
@pytest.mark.parametrize("written", list(itertools.permutations(FOUR)))
def test_all_24_orders_give_the_law_s_order(written, evidence):
    made = plan(written, evidence=evidence)
    assert made.order == NAMES
    assert made.passes == FOUR
    assert made.ties == () and made.findings == ()


def test_the_evidence_alone_gives_the_same_order():
    assert plan(FOUR[::-1], law=Law((), "none")).order == NAMES


def test_the_law_decides_by_kind_first_then_granularity():
    assert plan((EXIT, QUANTIZE), evidence=()).order == ("quantize", "early-exit")
    assert plan((EXIT, QUANTIZE), evidence=(), law=Law(("granularity", "kind"), "mine")).order == (
        "early-exit",
        "quantize",
    )


def test_a_law_can_be_turned_around():
    turned = Law(("-kind", "-granularity"), "an experiment")
    made = plan(FOUR, law=turned, evidence=())
    assert made.order == ("early-exit", "quantize", "prune-channels", "distill")
    assert str(made.edges[0]) == "prune-channels before distill: neuron before architecture [property: an experiment]"


def test_every_pair_has_a_property_edge_and_a_cited_edge_with_section():
    edges = plan(FOUR).edges
    pairs = {(edge.before, edge.after) for edge in edges}
    assert pairs == set(itertools.combinations(NAMES, 2))
    assert [edge.kind for edge in edges].count("property") == 6
    cited = [edge for edge in edges if edge.kind == "cited"]
    assert sorted(edge.source.split(",")[1] for edge in cited) == [f" sec. 3.1.{i}" for i in range(1, 7)]
    assert all(edge.reason and edge.source for edge in edges)


def test_the_plan_prints_its_reasons():
    made = plan((EXIT, DISTILL))
    assert str(made) == (
        "order: distill -> early-exit\n"
        "  distill before early-exit: static before dynamic "
        "[property: arXiv 2403.17447, sec. 5: static to dynamic, then large granularity to small]\n"
        "  distill before early-exit: exits learn more from the student's own body than from a teacher's exits, "
        "which are worse teachers [cited: arXiv 2403.17447, sec. 3.1.3, fig. 8]"
    )


def test_no_passes_make_an_empty_plan():
    assert str(plan(())) == "order: no passes"


def test_a_tie_keeps_the_written_order_and_is_reported():
    sparse = make("prune-weights", Kind.STATIC, Granularity.NEURON)
    for written in ((PRUNE, sparse, DISTILL), (sparse, PRUNE, DISTILL)):
        made = plan(written)
        names = tuple(step.info.name for step in written[:2])
        assert made.order == ("distill", *names)
        assert made.ties == (names,)
        assert f"tie: {names[0]} and {names[1]}, kept as written" in str(made)


def test_evidence_breaks_a_tie():
    sparse = make("prune-weights", Kind.STATIC, Granularity.NEURON)
    known = Evidence("prune-weights", "prune-channels", "measured", "my study", "found so")
    made = plan((PRUNE, sparse), evidence=(known,))
    assert made.order == ("prune-weights", "prune-channels") and made.ties == ()


def test_a_pass_may_stand_twice():
    made = plan((PRUNE, QUANTIZE, PRUNE))
    assert made.order == ("prune-channels", "prune-channels", "quantize")
    assert made.ties == (("prune-channels", "prune-channels"),)
    assert len(made.edges) == 2  # not one more for the second copy


def test_a_pass_that_cannot_repeat_is_refused_by_name():
    with pytest.raises(ScheduleError) as caught:
        plan((EXIT, PRUNE, EXIT))
    assert str(caught.value) == (
        "pass 'early-exit' stands a second time at position 3, but it cannot repeat; leave one out."
    )


@pytest.mark.parametrize(("confidence", "kind"), [("cited", "cited"), ("measured", "measured")])
def test_evidence_overrides_the_law_and_says_so(confidence, kind):
    known = Evidence("quantize", "prune-channels", confidence, "my study", "it was better")
    made = plan((PRUNE, QUANTIZE), evidence=(known,))
    assert made.order == ("quantize", "prune-channels")
    (edge,) = made.edges
    assert edge.kind == kind
    assert str(edge) == (
        f"quantize before prune-channels: it was better [{kind}: my study]; "
        "overrides prune-channels before quantize: neuron before sub-neuron "
        "[property: arXiv 2403.17447, sec. 5: static to dynamic, then large granularity to small]"
    )
    assert str(edge) in str(made)


def test_measured_overrides_cited():
    known = Evidence("early-exit", "quantize", "measured", "my study", "it was better")
    made = plan(FOUR, evidence=(*EVIDENCE, known))
    assert made.order == ("distill", "prune-channels", "early-exit", "quantize")
    (edge,) = [edge for edge in made.edges if edge.kind == "measured"]
    assert [weaker.kind for weaker in edge.overrides] == ["cited", "property"]
    assert not any((e.before, e.after) == ("quantize", "early-exit") for e in made.edges)


def test_a_chain_of_stronger_edges_overrides_too():
    last = make("entropy-code", Kind.STATIC, Granularity.BIT)
    known = Evidence("entropy-code", "distill", "measured", "my study", "it was better")
    made = plan((*FOUR, last), evidence=(*EVIDENCE, known))
    assert made.order == ("entropy-code", *NAMES)


def test_facts_are_harder_than_evidence_and_law():
    calibrated = make("calibrate", Kind.DYNAMIC, Granularity.BIT, **facts(establishes="ranges"))
    needs = make("round", Kind.STATIC, Granularity.LAYER, **facts(requires="ranges"))
    known = Evidence("round", "calibrate", "measured", "my study", "it was better")
    made = plan((needs, calibrated), evidence=(known,))
    assert made.order == ("calibrate", "round")
    (edge,) = made.edges
    assert edge.reason == "calibrate establishes 'ranges', round requires it"
    assert [weaker.kind for weaker in edge.overrides] == ["measured", "property"]


def test_who_requires_a_fact_goes_before_who_invalidates_it():
    fuse = make("fuse", Kind.STATIC, Granularity.ARCHITECTURE, **facts(invalidates="batch-norm"))
    slim = make("slim", Kind.STATIC, Granularity.NEURON, **facts(requires="batch-norm"))
    made = plan((fuse, slim), evidence=())
    assert made.order == ("slim", "fuse")
    assert made.edges[0].reason == "slim requires 'batch-norm', fuse invalidates it"


def test_a_required_fact_that_nobody_establishes_is_no_error():
    assert plan((make("slim", Kind.STATIC, Granularity.NEURON, **facts(requires="batch-norm")),)).order == ("slim",)


def test_contradicting_evidence_prints_the_cycle():
    one = Evidence("quantize", "prune-channels", "measured", "study one", "it was better")
    two = Evidence("prune-channels", "quantize", "measured", "study two", "it was worse")
    with pytest.raises(ScheduleError) as caught:
        plan((QUANTIZE, PRUNE), evidence=(one, two), law=Law((), "none"))
    assert str(caught.value) == (
        "the order is contradictory: quantize -> prune-channels -> quantize; "
        "leave a pass out, mend the evidence, or use order='given'.\n"
        "  quantize before prune-channels: it was better [measured: study one]\n"
        "  prune-channels before quantize: it was worse [measured: study two]"
    )


def test_contradicting_facts_print_the_cycle():
    one = make("one", Kind.STATIC, Granularity.LAYER, **facts(establishes="a", requires="b"))
    two = make("two", Kind.STATIC, Granularity.LAYER, **facts(establishes="b", requires="a"))
    with pytest.raises(ScheduleError) as caught:
        plan((one, two))
    assert str(caught.value) == (
        "the order is contradictory: one -> two -> one; leave a pass out, mend the evidence, or use order='given'.\n"
        "  one before two: one establishes 'a', two requires it [fact: declared by the two passes]\n"
        "  two before one: two establishes 'b', one requires it [fact: declared by the two passes]"
    )


def test_a_longer_cycle_of_equal_strength_is_an_error():
    known = Evidence("quantize", "distill", "measured", "my study", "it was better")
    with pytest.raises(ScheduleError, match="distill -> prune-channels -> quantize -> distill; leave"):
        plan(FOUR, evidence=(*EVIDENCE, known))


def test_a_given_order_is_kept_and_its_broken_edges_are_found():
    made = plan((QUANTIZE, DISTILL, PRUNE), order="given")
    assert made.order == ("quantize", "distill", "prune-channels")
    broken = [(f.severity, f.positions, [(e.before, e.after, e.kind) for e in f.edges]) for f in made.findings]
    assert broken == [
        ("warning", (1, 2), [("distill", "quantize", "property"), ("distill", "quantize", "cited")]),
        ("warning", (1, 3), [("prune-channels", "quantize", "property"), ("prune-channels", "quantize", "cited")]),
    ]
    assert str(made.findings[1]) == (
        "warning at 1 and 3 (order): quantize stands before prune-channels, but quantization takes away the resolution "
        "that pruning needs to tell which channels matter least [arXiv 2403.17447, sec. 3.1.4, fig. 9]; contested: "
        "chains found by reinforcement learning often begin with quantization, in small steps that share one tuning "
        "(NAC, Shen et al., DATE 2026); the weaker of the two goes first, which is quantization where pruning removes "
        "much (arXiv 2603.18426 (Kim et al., ICLR 2026)); to mend it, put prune-channels before quantize"
    )
    assert all(f"\n  {finding}" in str(made) for finding in made.findings)


@pytest.mark.parametrize(
    ("confidence", "rating", "severity"),
    [
        ("cited", "good", "warning"),
        ("measured", "good", "error"),
        ("cited", "poor", "error"),
        ("measured", "poor", "error"),
    ],
)
def test_the_evidence_decides_how_bad_a_broken_order_is(confidence, rating, severity):
    names = ("quantize", "prune-channels") if rating == "good" else ("prune-channels", "quantize")
    known = Evidence(*names, confidence, "a study", "so", rating)
    made = plan((PRUNE, QUANTIZE), order="given", law=Law((), "none"), evidence=(known,))
    assert [finding.severity for finding in made.findings] == [severity]
    assert plan((PRUNE, QUANTIZE), evidence=(known,)).order == ("quantize", "prune-channels")


@pytest.mark.parametrize(
    ("confidence", "rating"), [("measured", "moderate"), ("contested", "good"), ("contested", "poor")]
)
def test_what_is_moderate_or_contested_orders_nothing(confidence, rating):
    known = Evidence("quantize", "distill", confidence, "a study", "so", rating)
    assert plan((DISTILL, QUANTIZE), law=Law((), "none"), evidence=(known,)).edges == ()
    assert plan((QUANTIZE, DISTILL), law=Law((), "none"), evidence=(known,)).edges == ()


def test_the_order_of_an_exact_pass_is_worth_knowing_and_no_more():
    fuse = make("fuse", Kind.STATIC, Granularity.LAYER, family="graph-optimization", exact=True)
    made = plan((fuse, QUANTIZE), order="given")
    assert [finding.severity for finding in made.findings] == ["info"]
    assert made.findings[0].fix == "put quantize before fuse"


def test_a_given_order_that_follows_the_law_has_no_findings():
    assert plan(FOUR, order="given").findings == ()


def test_a_given_order_with_a_pass_twice_names_the_second_place():
    made = plan((PRUNE, QUANTIZE, PRUNE), order="given", evidence=())
    assert [f.positions for f in made.findings] == [(2, 3)]


def test_the_same_plan_twice_is_equal():
    assert plan(FOUR[::-1]) == plan(FOUR[::-1])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (((QUANTIZE,), "best"), "order='best' is not known; use 'auto' or 'given'."),
        ((("quantize",),), "passes[0] is 'quantize', not a pass; give instances such as Quantize(weights=8)."),
    ],
)
def test_wrong_arguments(arguments, text):
    with pytest.raises(InputError) as caught:
        plan(*arguments)
    assert str(caught.value) == text


def test_a_law_with_an_unknown_key():
    with pytest.raises(ScheduleError) as caught:
        Law(("price",), "mine")
    assert str(caught.value) == (
        "the law has the key 'price', which no pass declares; use kind, granularity, -kind, -granularity."
    )


def test_evidence_from_a_file_is_used(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[[edge]]\nbefore = "early-exit"\nafter = "quantize"\n'
        'confidence = "measured"\nsource = "run 7"\nreason = "so"\n'
    )
    assert load_evidence(path) == (Evidence("early-exit", "quantize", "measured", "run 7", "so"),)
    assert plan(FOUR, evidence=(*EVIDENCE, path)).order[-1] == "quantize"


EDGE = 'before = "a"\nafter = "b"\nconfidence = "cited"\nsource = "s"\nreason = "r"\n'


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("edge = 3", "has the keys ['edge']; give it [[edge]] tables and nothing else."),
        ("", "has the keys []; give it [[edge]] tables and nothing else."),
        (
            "[[edge]]\n" + EDGE + "[other]\n",
            "has the keys ['edge', 'other']; give it [[edge]] tables and nothing else.",
        ),
        (
            "[[edge]]\n" + EDGE + '[[edge]]\nbefore = "a"\n',
            ":7, edge 2: it has the keys ['before']; give before, after, confidence, source, reason, "
            "and if needed rating, when, network, data, device.",
        ),
        (
            "[[edge]]\n" + EDGE.replace("cited", "sure"),
            "edge 1: the evidence has confidence='sure'; use one of contested, cited, measured.",
        ),
        (
            "[[edge]]\n" + EDGE.replace('"r"', '""'),
            "edge 1: the evidence has reason=''; every field is a text that is not empty.",
        ),
        (
            "[[edge]]\n" + EDGE.replace('"s"', "3"),
            "edge 1: the evidence has source=3; every field is a text that is not empty.",
        ),
        (
            "[[edge]]\n" + EDGE.replace('"b"', '"a"'),
            "edge 1: the evidence puts 'a' before itself; name two different passes.",
        ),
        (
            "[[edge]]\n" + EDGE + 'rating = "bad"',
            ":1, edge 1: the evidence has rating='bad'; use one of good, moderate, poor.",
        ),
        (
            "[[edge]]\n" + EDGE + 'when = "before.weights <= 4"',
            ":1, edge 1: the evidence has when='before.weights <= 4'; give a list of conditions.",
        ),
        *(
            (
                "[[edge]]\n" + EDGE + f"when = ['{condition}']",
                f":1, edge 1: the evidence has the condition {condition!r}; write a side, an option, a comparison and "
                "a JSON value, as in 'before.weights <= 4' or 'before.tuned == false'.",
            )
            for condition in ("weights <= 4", "before.weights < 4", "before.weights <= four", "after.scheme <= 2 2")
        ),
        (
            "[[edge",
            " is not valid TOML: Expected ']]' at the end of an array declaration (at end of document); mend it there.",
        ),
    ],
)
def test_a_wrong_evidence_file_is_one_clear_error(tmp_path: Path, content, text):
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(ScheduleError) as caught:
        load_evidence(path)
    assert str(caught.value).startswith(f"evidence file {path}")
    assert text in str(caught.value)


def test_an_evidence_file_that_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "binary.toml").write_bytes(b"\xff")
    reasons = {"none.toml": "it does not exist", ".": "it is a folder", "binary.toml": "it is not UTF-8 text"}
    for name, reason in reasons.items():
        path = tmp_path / name
        with pytest.raises(ScheduleError) as caught:
            plan(FOUR, evidence=(path,))
        assert str(caught.value) == (
            f"evidence file {path} cannot be read: {reason}; give a TOML file of [[edge]] tables."
        )


def test_the_shipped_evidence_and_law_have_sources():
    assert {item.confidence for item in EVIDENCE} == {"cited", "contested"}
    sources = [item.source for item in EVIDENCE]
    assert sum("2403.17447" in source for source in sources) == 6 and "2403.17447" in LAW.source
    known = ("arXiv ", "NAC, ", "compatibility exercise, row ", "chainfx.passes.")
    assert all(source.startswith(known) for source in sources)
    rows = [source.split(" (")[0] for source in sources if source.startswith("compatibility exercise")]
    assert sorted(rows) == [f"compatibility exercise, row {number}" for number in range(1, 6)]


def test_a_pass_that_keeps_a_fact_it_requires_does_not_count_as_its_origin():
    one, two = (
        make(name, Kind.STATIC, Granularity.LAYER, **facts(establishes="a", requires="a")) for name in ("one", "two")
    )
    assert plan((two, one)).order == ("two", "one")


def test_a_repeated_pass_does_not_contradict_itself():
    fuse = make("fuse", Kind.STATIC, Granularity.LAYER, **facts(requires="batch-norm", invalidates="batch-norm"))
    assert plan((fuse, fuse)).order == ("fuse", "fuse")


def test_a_row_on_two_passes_is_stronger_than_one_on_all_lossy_passes():
    fuse = make("fuse", Kind.STATIC, Granularity.LAYER, family="graph-optimization", exact=True)
    round_ = make("bf16", Kind.STATIC, Granularity.BIT, family="precision")
    made = plan((round_, fuse))
    assert made.order == ("fuse", "bf16")
    assert [edge.source for edge in made.edges if edge.kind == "cited"] == ["chainfx.passes.Bf16"]
    general = Evidence("lossy", "graph-optimization", "cited", "s", "r")
    assert plan((round_, fuse), evidence=(general,)).order == ("bf16", "fuse")
