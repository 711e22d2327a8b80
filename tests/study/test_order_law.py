import pytest

from chainfx.errors import StudyError
from chainfx.passes import Distill, EarlyExit, PruneChannels, Quantize
from chainfx.scheduler import load_evidence, plan
from chainfx.study.order_law import law_of

D, P, Q, E = "distill", "prune-channels", "quantize", "early-exit"
INFOS = [each.info for each in (Distill, PruneChannels, Quantize, EarlyExit)]
PAPER = [(D, P), (D, Q), (D, E), (P, Q), (P, E), (Q, E)]


def law(edges, equivalent=(), undecided=(), infos=INFOS):
    return law_of(
        infos, [(*edge, 0.99, 1.2) if len(edge) == 2 else edge for edge in edges], equivalent, undecided, "us"
    )


def test_the_paper_s_edges_give_the_paper_s_order_and_no_other():
    found = law(PAPER)
    assert (found.order, found.unique, found.gave_way) == ((D, P, Q, E), True, ())
    assert all(edge.agrees == {"properties": True, "evidence": True} for edge in found.edges)


def test_an_order_is_unique_only_if_neighbours_are_ordered():
    found = law([(D, P), (P, E)], undecided=[(P, Q)])
    assert found.order == (D, P, Q, E) and not found.unique


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
    assert (Q, P, "measured") in pairs and (D, P, "cited") in pairs
    assert not any({before, after} == {D, Q} or (before, after) == (P, Q) for before, after, _ in pairs)
    path = tmp_path / "law.toml"
    found.write(path)
    assert load_evidence(path) == found.evidence
    assert "# equivalent, so that nothing orders them: distill and quantize" in path.read_text()
    order = plan([PruneChannels(0.5), Quantize(4, 4), EarlyExit()], evidence=[path])
    assert order.order == (Q, P, E)
    (edge,) = (edge for edge in order.edges if (edge.before, edge.after) == (Q, P))
    assert (edge.kind, edge.source) == ("measured", "us")
    assert edge.reason == "compresses 1.31 times further than the other order (confidence 0.995)"


def test_evidence_that_cannot_be_written(tmp_path):
    with pytest.raises(StudyError, match=r"cannot be written: Is a directory; give another file\.$"):
        law(PAPER).write(tmp_path)


def test_the_text_of_a_law():
    found = law([(E, D), (P, Q, 0.9, 1.2), (Q, P)], equivalent=[(D, Q)], undecided=[(D, P)])
    assert str(found) == (
        "order: quantize -> prune-channels -> early-exit -> distill (other orders agree with the edges as well)\n"
        "  quantize before prune-channels: 1.20 times further, confidence 0.990, properties disagree, "
        "evidence disagree\n"
        "  early-exit before distill: 1.20 times further, confidence 0.990, properties disagree, evidence disagree\n"
        "  prune-channels before quantize gave way: the least confident edge of a cycle (0.900)\n"
        "  distill and quantize: equivalent\n"
        "  distill and prune-channels: undecided, what is cited stays"
    )
