"""The text of a plan, of its edges and of its findings."""

from chainfx.passes import PruneChannels, Quantize
from chainfx.scheduler import Edge, Finding, Plan

WEAK = Edge("quantize", "prune-channels", "it is small", "the law", "property")
STRONG = Edge("prune-channels", "quantize", "it is better", "a study", "measured", overrides=(WEAK,))
TEXT = (
    "prune-channels before quantize: it is better [measured: a study]; "
    "overrides quantize before prune-channels: it is small [property: the law]"
)


def test_an_edge_names_its_reason_its_source_and_what_gave_way():
    assert str(STRONG) == TEXT


FINDING = Finding("order", "error", (1, 3), "it is worse", "a study", "turn them around", edges=(STRONG,))


def test_a_finding_says_how_bad_where_why_who_says_so_and_what_to_do():
    assert str(FINDING) == "error at 1 and 3 (order): it is worse [a study]; to mend it, turn them around"
    whole = Finding("stages", "info", (), "they are many", "a paper", "use fewer", contested="another paper")
    assert str(whole) == "info (stages): they are many [a paper]; contested: another paper; to mend it, use fewer"


def test_a_plan_has_a_line_for_every_edge_tie_and_finding():
    plan = Plan((Quantize(), PruneChannels(0.5)), (STRONG,), (("fuse", "low-rank"),), (FINDING,))
    assert str(plan).splitlines() == [
        "order: quantize -> prune-channels",
        f"  {TEXT}",
        "  tie: fuse and low-rank, kept as written",
        f"  {FINDING}",
    ]


def test_a_plan_without_passes():
    assert str(Plan((), (), ())) == "order: no passes"
