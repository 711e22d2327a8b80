import pytest

from chainfx.errors import StudyError
from chainfx.passes import Distill, EarlyExit, PruneChannels, Quantize
from chainfx.scheduler import Ground, load_evidence, plan
from chainfx.study.order_law import law_of

D, P, Q, E = "distill", "prune-channels", "quantize", "early-exit"
PASSES = [Distill(width=0.5), PruneChannels(), Quantize(), EarlyExit()]
PAPER = [(D, P), (D, Q), (D, E), (P, Q), (P, E), (Q, E)]


def law(edges, equivalent=(), undecided=(), passes=PASSES):
    measured = [(*edge, 0.99, 1.2) if len(edge) == 2 else edge for edge in edges]
    leaning = [(*pair, 0.5, 1.1) if len(pair) == 2 else pair for pair in undecided]
    return law_of(passes, measured, equivalent, leaning, "us")


def test_the_paper_s_edges_give_the_paper_s_order_and_no_other():
    found = law(PAPER)
    assert (found.order, found.unique, found.gave_way) == ((D, P, Q, E), True, ())
    assert all(edge.agrees == {"properties": True, "evidence": True} for edge in found.edges)


def test_an_order_is_unique_only_if_neighbours_are_ordered():
    found = law([(D, P), (P, E)], undecided=[(P, Q)])
    assert found.order == (D, P, Q, E) and not found.unique
    assert [(edge.before, edge.after, edge.kind) for edge in found.edges][-1] == (P, Q, "cited")


def test_edges_against_law_and_evidence_say_so():
    (edge,) = law([(E, Q)]).edges
    assert edge.agrees == {"properties": False, "evidence": False}


def test_in_a_cycle_the_least_confident_edge_gives_way():
    found = law([(P, Q, 0.99, 1.3), (Q, E, 0.97, 1.3), (E, P, 0.98, 1.3), (D, P)])
    assert [(edge.before, edge.after) for edge in found.gave_way] == [(Q, E)]
    assert found.order == (D, E, P, Q) and len(found.edges) == 3


def test_two_cycles_each_lose_an_edge():
    found = law([(P, Q), (Q, P, 0.9, 1.1), (D, E), (E, D, 0.8, 1.1)])
    # the graph has one edge a direction: of each pair the less confident one goes
    assert {(edge.before, edge.after) for edge in found.gave_way} == {(Q, P), (E, D)}


def test_what_is_equivalent_releases_the_cited_edge_and_what_is_undecided_leaves_it(tmp_path):
    found = law([(Q, P, 0.995, 1.31)], equivalent=[(D, Q)], undecided=[(D, P)])
    pairs = {(each.before, each.after, each.confidence) for each in found.evidence}
    families = ("distillation", "pruning", "cited"), ("distillation", "quantization", "cited")
    assert (Q, P, "measured") in pairs and families[0] in pairs and families[1] not in pairs
    assert families[1] in {(each.before, each.after, each.confidence) for each in law(PAPER).evidence}
    path = tmp_path / "law.toml"
    found.write(path)
    assert load_evidence(path) == found.evidence
    assert "# equivalent, so that nothing orders them: distill and quantize" in path.read_text()
    order = plan([PruneChannels(0.5), Quantize(4, 4), EarlyExit()], evidence=[path])
    assert order.order == (Q, P, E)
    (edge,) = (edge for edge in order.edges if (edge.before, edge.after) == (Q, P))
    assert (edge.kind, edge.source) == ("measured", "us")
    assert edge.reason == "compresses 1.31 times further than the other order (confidence 0.995)"


def test_cited_edges_give_way_to_measured_ones_and_the_plan_has_no_circle(tmp_path):
    """Measured: exits before pruning. P, Q, E would be a circle, in which the study leans least to Q before E."""
    undecided = [(D, P, 0.8, 1.1), (P, Q, 0.9, 1.4), (Q, E, -0.3, 0.9), (D, E, 0.1, 1.0)]
    found = law([(D, Q), (E, P)], undecided=undecided)
    assert [(edge.before, edge.after, edge.confidence) for edge in found.gave_way] == [(Q, E, -0.3)]
    assert (found.order, found.unique) == ((D, E, P, Q), True)
    found.write(tmp_path / "law.toml")
    passes = [Quantize(), PruneChannels(0.5), EarlyExit(), Distill(width=0.5)]
    assert plan(passes, evidence=[tmp_path / "law.toml"]).order == found.order
    surer = law([(E, P, 0.96, 1.1)], undecided=[(P, Q, 0.99, 1.4), (Q, E, 0.98, 1.2)])
    assert [(edge.before, edge.after) for edge in surer.gave_way] == [(Q, E)]
    turned = law([(E, P)], undecided=[(Q, P, -0.9, 0.7), (E, Q, 0.3, 1.1)])
    assert [(edge.before, edge.after, edge.confidence) for edge in turned.gave_way] == [(Q, E, -0.3)]
    (edge,) = (edge for edge in turned.edges if edge.kind == "cited")
    assert (edge.before, edge.after, edge.confidence, edge.factor) == (P, Q, 0.9, pytest.approx(1 / 0.7))


def test_evidence_carries_what_it_was_measured_on(tmp_path):
    ground = Ground("10 parameters #1", "(1, 8, 8) #2", "x86_64 cpu")
    found = law_of(PASSES, [(Q, P, 0.99, 1.2)], [], [], "us", ground)
    measured, *cited = found.evidence
    assert measured.ground == ground and {each.ground for each in cited} == {Ground()}
    found.write(tmp_path / "law.toml")
    assert load_evidence(tmp_path / "law.toml")[0].ground == ground


def test_evidence_that_cannot_be_written(tmp_path):
    with pytest.raises(StudyError, match=r"cannot be written: Is a directory; give another file\.$"):
        law(PAPER).write(tmp_path)


def test_the_text_of_a_law():
    found = law([(E, D), (P, Q, 0.9, 1.2), (Q, P)], equivalent=[(D, Q)], undecided=[(D, P), (P, E, -0.2, 0.9)])
    assert str(found) == (
        "order: quantize -> early-exit -> distill -> prune-channels (other orders agree with the edges as well)\n"
        "  distill before prune-channels: undecided, as cited; the study leans that way (0.50)\n"
        "  quantize before prune-channels: 1.20 times further, confidence 0.990, properties disagree, "
        "evidence disagree\n"
        "  early-exit before distill: 1.20 times further, confidence 0.990, properties disagree, evidence disagree\n"
        "  prune-channels before quantize gave way, the weakest edge of a cycle: confidence 0.900\n"
        "  prune-channels before early-exit gave way, the weakest edge of a cycle: cited; "
        "the study leans the other way (0.20)\n"
        "  distill and quantize: equivalent"
    )
