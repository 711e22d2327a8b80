"""The text of what lint found."""

from chainfx.linting import LintReport, StagePrediction
from chainfx.passes import PruneChannels, Quantize
from chainfx.report.lint_report import findings_text
from chainfx.scheduler import Costs, Finding

ORDER = Finding("order", "error", (1, 2), "the first is worse", "a study", "turn them around", contested="a paper")
WHOLE = Finding("stages", "info", (), "they are many", "an exercise", "use fewer")
CHAIN = (Quantize(4), PruneChannels(0.5))


def costs(macs, bitops, storage=8192):
    return Costs("mac_bw_ba", macs, bitops, macs, bitops, storage, 100)


def test_every_finding_has_its_place_its_source_and_what_to_do():
    assert findings_text([ORDER, WHOLE]).splitlines() == [
        "  error at 1 and 2, order: the first is worse",
        "    source: a study",
        "    contested: a paper",
        "    fix: turn them around",
        "  info, stages: they are many",
        "    source: an exercise",
        "    fix: use fewer",
    ]


def test_the_report_has_the_chain_the_corrected_chain_and_the_costs():
    stages = (
        StagePrediction(0, "original", costs(10, 100.0)),
        StagePrediction(1, "quantize(4, 8)", costs(10, 25.0), 240.0),
    )
    text = str(LintReport(CHAIN, (ORDER, WHOLE), CHAIN[::-1], stages)).splitlines()
    assert text[0] == "chain: quantize(4, 8) -> prune-channels(ratio=0.5)"
    assert text[8:10] == ["1 error, 1 info", "corrected: prune-channels(ratio=0.5) -> quantize(4, 8)"]
    assert text[-2].split() == ["original", "10", "1.0x", "100", "1.0", "KiB", "-"]
    assert text[-1].split() == ["quantize(4,", "8)", "10", "4.0x", "100", "1.0", "KiB", "4", "min"]


def test_a_chain_without_findings():
    assert str(LintReport(CHAIN, (), CHAIN)) == "chain: quantize(4, 8) -> prune-channels(ratio=0.5)\nnothing found"


def test_long_times_and_short_ones():
    stages = [StagePrediction(0, "original", costs(1, 1.0), seconds) for seconds in (3.4, 5000.0, 9000.0)]
    text = str(LintReport((), (), (), tuple(stages)))
    assert [line.split()[-2:] for line in text.splitlines()[-3:]] == [["3", "s"], ["83", "min"], ["2.5", "h"]]
