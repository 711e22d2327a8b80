"""The page of a study: whole in itself, with every point and its recipe."""

import re
import xml.etree.ElementTree as ET

import pytest
from typer.testing import CliRunner

from chainfx.cli import app
from chainfx.study import Arm, analyse
from tests.study.test_analysis import design, filled, further


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    filled(folder, design(), further)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return analyse(folder).to_html()


def test_the_page_asks_for_nothing_from_elsewhere(page):
    assert re.findall(r"(?:src|href|url)\s*[=(]\s*\"?([^\"\s>)]+)", page) == ["data:,"]
    assert "http" not in page and len(page) < 2e6


def test_every_plot_is_well_formed_and_has_every_point(page, folder):
    plots = [ET.fromstring(each) for each in re.findall(r"<svg (?!class).*?</svg>", page, flags=re.DOTALL)]
    assert [each.get("aria-label") for each in plots] == ["PQ against QP", "PE against EP", "QE against EQ"]
    result = analyse(folder)
    shown = [result.points(Arm(tuple(steps)), "paper") for steps in ("P", "Q", "PQ", "QP")]
    circles = plots[0].findall("circle")
    assert len(circles) == sum(map(len, shown)) == 8 * (2 + 2 + 4 + 4)
    assert len(plots[0].findall("polyline")) == 3
    titles = [circle.find("title").text for circle in circles if circle.get("class") == "first"]
    assert titles[0] == "prune-channels(ratio=0.25) > quantize(8, 8): 6.0x, accuracy +0.00% (seed 0)"
    assert "exits at 0.5" in page


def test_points_stand_where_ratio_and_loss_say(page):
    (plot,) = (ET.fromstring(each) for each in re.findall(r"<svg (?!class).*?</svg>", page, flags=re.DOTALL)[:1])
    circles = [circle for circle in plot.findall("circle") if circle.get("class") == "second"]
    places = {(float(circle.get("cx")), float(circle.get("cy"))) for circle in circles}
    assert all(48 <= x <= 430 and 10 <= y <= 260 for x, y in places)
    assert {y for _, y in places} == {10.0, 35.0, 60.0}  # a loss of 0, 0.01 and 0.02 of at most 0.1, on 250 pixels


def test_the_command_writes_the_page(folder, page, tmp_path):
    done = CliRunner().invoke(app, ["report", str(folder), "--output", str(tmp_path / "page.html")])
    assert done.output == f"written to {tmp_path / 'page.html'}\n"
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page
    failed = CliRunner().invoke(app, ["report", str(folder), "--output", str(tmp_path)])
    assert (
        failed.exit_code == 1
        and f"StudyError: --output '{tmp_path}' cannot be written: it is a folder; name a file in a folder that exists."
        in failed.output
    )


def test_maps_say_which_order_is_better_at_which_strengths(page):
    maps = re.findall(r'<table class="map">.*?</table>', page)
    captions = [re.search(r"<caption>(.*?)</caption>", each)[1] for each in maps]
    assert captions[0] == "prune-channels (rows) before quantize (columns)" and len(captions) == 3
    cells = re.findall(r'<td style="background: rgba\(([\d, ]+), ([\d.]+)\)">(.*?)</td>', maps[0])
    assert len(cells) == 4 and {colour for colour, _, _ in cells} == {"0, 114, 178"}
    assert all(text.endswith(" better") and float(text.split()[0]) > 1 for _, _, text in cells)
    assert re.findall(r"<tr><th>(.*?)</th>", maps[0]) == ["", "ratio=0.25", "ratio=0.5"]


def test_the_law_is_drawn_with_an_arc_for_every_edge(page, folder):
    (drawn,) = (ET.fromstring(each) for each in re.findall(r'<svg class="dag".*?</svg>', page))
    law = analyse(folder).law()
    assert [text.text for text in drawn.findall("text")] == list(law.order)
    titles = [path.find("title").text for path in drawn.findall("path")]
    edges = [*law.edges, *law.gave_way]
    assert [title.split(":")[0] for title in titles] == [f"{edge.before} before {edge.after}" for edge in edges]
    assert {path.get("class") for path in drawn.findall("path")} == {edge.kind for edge in edges}
