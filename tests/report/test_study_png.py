"""Plots of a study as files."""

import sys

import pytest
from typer.testing import CliRunner

from chainfx.cli import app
from chainfx.errors import StudyError
from chainfx.report import write_plots
from chainfx.report.study_png import _draw, _name
from chainfx.study import Arm, analyse
from tests.study.test_analysis import design, filled, further

pytest.importorskip("matplotlib", reason="the extra 'plots' is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    filled(folder, design(), further)
    return folder


def test_the_command_writes_a_picture_of_every_comparison(folder, tmp_path):
    place = tmp_path / "deep" / "plots"
    options = ["--output", str(tmp_path / "page.html"), "--png", str(place)]
    done = CliRunner().invoke(app, ["report", str(folder), *options])
    assert done.output.splitlines()[0] == f"3 plots written to {place}"
    assert sorted(path.name for path in place.iterdir()) == ["paper-PE-EP.png", "paper-PQ-QP.png", "paper-QE-EQ.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in place.iterdir())


def test_a_plot_has_every_point_and_a_front_of_each_kind(folder):
    from matplotlib.figure import Figure

    result = analyse(folder)
    axes = Figure().add_subplot()
    _draw(axes, result, result.design.comparisons[0], result.verdicts[0])
    shown = [("P", "Q"), ("PQ",), ("QP",)]
    counts = [sum(len(result.points(Arm(tuple(one)), "paper")) for one in arms) for arms in shown]
    assert [len(each.get_offsets()) for each in axes.collections] == counts
    assert len(axes.lines) == 3 and axes.get_title().startswith("PQ / QP: PQ better")
    assert axes.collections[1].get_offsets()[0].tolist() == pytest.approx([6.0, 0.0], rel=0.05)
    assert axes.collections[1].get_offsets()[:, 1].min() == pytest.approx(-0.02)


def test_arms_have_names_that_files_can_have():
    names = [_name(str(arm)) for arm in (Arm(("P", "D"), "fresh"), Arm(("Q-", "Q")), Arm(("D~", "P")), Arm(("P+",)))]
    assert names == ["PD_fresh", "QmildQ", "DrecoveryP", "Pplus"]


def test_without_matplotlib_the_error_names_what_to_install(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(StudyError) as caught:
        write_plots(analyse(folder), tmp_path)
    assert str(caught.value) == "--png draws with matplotlib, which is missing; install chainfx[plots]."


def test_a_folder_that_cannot_be_made(folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StudyError) as caught:
        write_plots(analyse(folder), tmp_path / "file")
    assert str(caught.value) == f"--png '{tmp_path / 'file'}' takes no files (File exists)."
