"""Charts of a whole study: every order in one plot, and what each stage of the chain adds."""

import re
import xml.etree.ElementTree as ET

import pytest

from chainfx.report.study_charts import charts_html, fronts_together, stages_of
from chainfx.study import analyse
from tests.study.test_analysis import design, filled


def steadily(letters, seed):
    """What a chain compresses does not depend on the seed."""
    return 1.0


@pytest.fixture(scope="module")
def ablation(tmp_path_factory):
    return analyse(filled(tmp_path_factory.mktemp("ablation"), design(orders="ablation"), steadily))


@pytest.fixture(scope="module")
def charts(ablation):
    found = re.findall(r"<svg.*?</svg>", charts_html(ablation, "paper"), flags=re.DOTALL)
    return {drawn.get("aria-label"): drawn for drawn in map(ET.fromstring, found)}


def test_every_order_that_is_compared_has_a_front_in_one_plot(ablation, charts):
    assert list(fronts_together(ablation, "paper")) == ["PQ", "P", "PQE"]
    lines = charts["all orders"].findall("g/polyline")
    assert len(lines) == 3 and len({group.get("style") for group in charts["all orders"].findall("g")}) == 3


def test_a_point_of_each_seed_stands_for_a_stage(ablation, charts):
    stages = stages_of(ablation, "paper")
    assert list(stages) == ["P", "PQ", "PQE"] and [len(points) for points in stages.values()] == [8, 8, 8]
    # a loss of 0.01 is one point more than none, and the stronger of two strengths counts twice as far
    assert {(point.ratio, round(point.loss, 6)) for point in stages["P"]} == {(4.0, 0.01)}
    dots = [each for each in charts["what each stage adds"].findall("circle") if each.get("class") == "alone"]
    assert len(dots) == 2 * 3 * 8
    titles = [each.find("title").text for each in charts["what each stage adds"].findall("rect")]
    assert titles[0] == "P: mean 4x" and titles[3] == "P: mean -1.0%"


def test_pairs_have_neither(tmp_path):
    result = analyse(filled(tmp_path, design(), steadily))
    assert charts_html(result, "paper") == "" and not stages_of(result, "paper")


@pytest.mark.slow
def test_both_are_files_too(ablation, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra 'plots' is not installed")
    from chainfx.report import write_plots

    written = [path.name for path in write_plots(ablation, tmp_path)]
    assert written[-2:] == ["paper-orders.png", "paper-stages.png"] and len(written) == 4
