"""The pages of docs/results say what comes out of the records beside them."""

import re
import shlex
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from chainfx import studying
from chainfx.cli import app
from chainfx.study import StudyStore
from tools.study_results import CLAIMS_PAGE, OBSERVED, RESULTS, observations, refreshed, with_claims


@pytest.mark.parametrize("packed", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_the_verdicts_on_the_page_are_those_of_the_records(packed):
    page = packed.with_suffix(".md").read_text()
    assert refreshed(page, packed) == page, "run python -m tools.study_results"


class AskedError(Exception):
    """What a command would run."""


@pytest.mark.parametrize("packed", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_the_command_on_the_page_runs_the_design_of_the_records(packed, monkeypatch):
    def ask(design, *_, **__):
        raise AskedError(design)

    monkeypatch.setattr(studying, "Subject", SimpleNamespace(of=lambda design: None))
    monkeypatch.setattr(studying, "run_study", ask)
    monkeypatch.chdir(RESULTS.parent.parent)
    page = " ".join(packed.with_suffix(".md").read_text().split())
    (command,) = re.findall(r"`chainfx (study run [^`]* --store DIR[^`]*)`", page)
    with pytest.raises(AskedError) as caught:
        CliRunner().invoke(app, [*shlex.split(command), "--json"], catch_exceptions=False)
    assert caught.value.args[0] == StudyStore.unpack(packed)[0]


def test_there_are_results():
    assert [path.stem for path in RESULTS.glob("*.json")]


@pytest.mark.slow
def test_the_claims_on_their_page_are_those_of_all_records():
    page = CLAIMS_PAGE.read_text()
    assert with_claims(page) == page, "run python -m tools.study_results"


@pytest.mark.slow
def test_predictions_are_learnt_from_all_of_them():
    assert OBSERVED.read_text() == observations(), "run python -m tools.study_results"
