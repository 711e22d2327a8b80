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


def test_a_finding_says_where_the_passes_stand():
    finding = Finding(STRONG, position=3, after_position=1)
    assert str(finding) == f"prune-channels stands at 3, behind quantize at 1, but {TEXT}"


def test_a_plan_has_a_line_for_every_edge_tie_and_finding():
    finding = Finding(STRONG, 2, 1)
    plan = Plan((Quantize(), PruneChannels(0.5)), (STRONG,), (("fuse", "low-rank"),), (finding,))
    assert str(plan).splitlines() == [
        "order: quantize -> prune-channels",
        f"  {TEXT}",
        "  tie: fuse and low-rank, kept as written",
        f"  broken: {finding}",
    ]


def test_a_plan_without_passes():
    assert str(Plan((), (), ())) == "order: no passes"
