"""The commands of ``chainfx study``."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import chainfx.study as chainfx_study
from chainfx import studying
from chainfx.cli import app
from chainfx.scheduler import load_evidence
from chainfx.study import CLAIMS, StudyStore, analyse, load_design, shipped_design
from tests.study.designs import TINY


def chainfx(*arguments):
    return CliRunner().invoke(app, ["study", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def run(folder):
    """What ``run`` printed for the tiny design."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY.to_dict()))
    return chainfx("run", path, "--store", folder / "store", "--law", folder / "law.toml")


def test_run_prints_the_design_the_verdicts_and_the_law(run, folder):
    lines = [line.rstrip() for line in run.output.splitlines()]
    assert run.exit_code == 0 and lines[0] == "study 'pairwise' of zoo.resnet on digits"
    judged = "judged on 288 held-out samples, so that accuracy comes in steps of 0.35%"
    assert judged in lines
    (estimate,) = (line for line in lines if line.startswith("at least "))
    assert estimate.endswith(" minutes of training on one process, by the time of one step")
    assert any(line.startswith("PQ / QP") and "undecided (+7 seeds)" in line for line in lines)
    assert "order: prune-channels -> quantize" in lines
    assert lines[-1].startswith("5 of 5 cases, 0.")
    assert ("pruning", "quantization") in {(each.before, each.after) for each in load_evidence(folder / "law.toml")}


def test_status_and_analysis_read_the_records(run, folder):
    store = folder / "store"
    assert chainfx("status", store).output.startswith("5 of 5 cases, 0.")
    assert json.loads(chainfx("status", store, "--json").output)["cases"] == 5
    plain = json.loads(chainfx("analyse", store, "--json").output)
    assert [each["decision"]["outcome"] for each in plain["verdicts"]] == ["undecided"]
    assert plain["laws"]["paper"]["order"] == ["prune-channels", "quantize"]
    assert chainfx("pack", store, folder / "packed.json").exit_code == 0
    assert json.loads(chainfx("analyse", folder / "packed.json", "--json").output) == plain
    assert chainfx("analyse", store).output.rstrip() in run.output.replace("\r", "")


def test_another_endpoint_judges_the_same_records(run, folder):
    store = folder / "store"
    plain = json.loads(chainfx("analyse", store, "--json", "--endpoint", "storage").output)
    assert (
        plain["design"]["endpoint"] == "storage"
        and plain["verdicts"][0]["factor"]
        == (json.loads(chainfx("analyse", store, "--json").output)["verdicts"][0]["also"]["storage"])
    )
    refused = chainfx("analyse", store, "--endpoint", "bytes")
    assert refused.exit_code == 1 and "endpoint='bytes' cannot be; use measured=True with it." in refused.output


def test_numbers_are_judged_by_their_error(tmp_path):
    done = chainfx(
        "run", "alone", "--data", "diabetes", "--seeds", "1", "--minutes", "0", "--store", tmp_path / "store"
    )
    judged = "judged on 88 held-out samples, by their root mean squared error in place of accuracy"
    assert done.exit_code == 0 and judged in done.output.splitlines()


def test_show_prints_a_design_as_text_or_as_a_file_to_begin_with(tmp_path):
    assert chainfx("show", "recovery").output == f"{shipped_design('recovery')}\n"
    path = tmp_path / "mine.yaml"
    path.write_text(chainfx("show", "recovery", "--yaml").output)
    assert load_design(path) == shipped_design("recovery")


def test_what_pack_wrote_is_a_design_too(run, folder):
    chainfx("pack", folder / "store", folder / "whole.json")
    assert chainfx("show", folder / "whole.json").output == f"{TINY}\n"


def test_the_page_says_what_each_stage_trained(run, folder):
    page = analyse(folder / "store").to_html()
    row = "<td>all parameters, by the loss of the task, at a rate of 0.005, for 1 epochs</td><td>P, Q, PQ, QP</td>"
    assert row in page


def test_report_writes_the_page(run, folder):
    written = folder / "report.html"
    done = CliRunner().invoke(app, ["report", str(folder / "store"), "--output", str(written)])
    assert (done.exit_code, done.output) == (0, f"written to {written}\n")
    assert written.read_text(encoding="utf-8") == analyse(folder / "store").to_html()


def test_claims_are_read_from_several_studies_together(run, folder):
    store = folder / "store"
    plain = json.loads(chainfx("claims", store, store, "--json").output)
    assert [each["name"] for each in plain] == list(CLAIMS)
    assert {each["outcome"] for each in plain} == {"not tested", "undecided"}
    text = chainfx("claims", store).output
    assert text.startswith("training: paper\ncombining helps (the whole is more than its parts): undecided (")


def test_sensitivity_has_a_line_for_every_pair_of_strengths(run, folder):
    (line,) = chainfx("sensitivity", folder / "store").output.splitlines()
    assert line.startswith("paper: prune-channels(ratio=0.25, round_to=1) before quantize(4, 4): undecided, ")
    (plain,) = json.loads(chainfx("sensitivity", folder / "store", "--json").output)
    assert plain["decision"]["outcome"] == "undecided"


def test_predict_reads_each_pass_alone(run, folder):
    store = folder / "store"
    plain = json.loads(chainfx("predict", store, "--json").output)
    assert [(each["before"], each["after"]) for each in plain["predictions"]] == [("prune-channels", "quantize")]
    learnt_from = json.loads(Path(chainfx_study.__file__).with_name("observed.json").read_text())
    assert plain["networks"] == len({each["network"] for each in learnt_from})
    nothing = chainfx("predict", store, "--learn", store)
    assert nothing.output.startswith("order: prune-channels -> quantize\n")
    assert "learnt from 0 measured pairs of 0 networks" in nothing.output


def test_a_reduced_grid_of_one_training_is_another_design(folder, run):
    store = folder / "reduced"
    options = ("--cases", "1", "--training", "equal", "--budget", "total", "--measured")
    chainfx("run", "pairwise", "--store", store, *options, "--minutes", "0")
    found = StudyStore.open(store).design
    assert (found.cases, found.trainings, found.budget, found.reduced) == (1, ("equal",), "total", True)
    assert found.measured and not TINY.measured


def test_who_interrupts_a_study_is_told_where_it_is_kept(folder, run, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(studying, "run_study", interrupted)
    done = chainfx("run", folder / "tiny.yaml", "--store", folder / "store")
    kept = f"finished stages and records are kept in {folder / 'store'}; the same command goes on after them"
    assert done.exit_code == 130 and done.output.splitlines()[-2:] == ["interrupted", kept]


def test_the_grid_of_the_paper_is_shown():
    assert chainfx("show", "pairwise", "--grid", "paper").output == f"{shipped_design('pairwise', grid='paper')}\n"


def test_merge_makes_a_store_and_records_alone_may_stay(run, folder):
    merged = folder / "merged"
    done = chainfx("merge", merged, folder / "store", folder / "store")
    assert done.output.splitlines() == [
        f"5 new records from {folder / 'store'}",
        f"0 new records from {folder / 'store'}",
    ]
    again = chainfx("run", folder / "tiny.yaml", "--store", merged, "--records-only", "--json")
    assert json.loads(again.output)["status"]["recorded"] == 5
    assert not (merged / "stages").exists() and len(StudyStore.open(merged).records()) == 5


def test_seeds_are_a_number_or_a_range(folder, run):
    for seeds, expected in (("2", (0, 1)), ("3:5", (3, 4))):
        store = folder / f"seeds{len(expected)}{expected[0]}"
        chainfx("run", folder / "tiny.yaml", "--store", store, "--seeds", seeds, "--minutes", "0")
        assert StudyStore.open(store).design.seeds == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "all", "--store", "x"), "StudyError: there is no design 'all'; use one of pairwise, "),
        (("run", "pairwise", "--store", "x", "--data", "svhn"), "StudyError: no design ships for data 'svhn'; "),
        (
            ("run", "pairwise", "--store", "x", "--seeds", "many"),
            "StudyError: --seeds 'many' is no number; give how many, as in 8, or from:to, as in 8:12.",
        ),
        (("analyse", __file__), "holds no packed study that can be read; give what 'study pack' wrote."),
        (
            ("show", "x.yaml", "--grid", "paper"),
            "StudyError: --grid paper is for designs that ship; x.yaml has passes of ",
        ),
        (("status", "x"), "StudyError: x holds no study that can be read; give the folder of 'study run'."),
    ],
)
def test_wrong_arguments(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = chainfx(*arguments)
    assert done.exit_code == 1 and message in done.output
    assert not (tmp_path / "x").exists()
