"""The commands of ``chainfx study``: what is run, shown, analysed, predicted, packed and merged."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from chainfx.errors import StudyError, why_no_file
from chainfx.report import write_plots
from chainfx.study import (
    Budget,
    CaseRecord,
    Design,
    Endpoint,
    GridSize,
    RayCluster,
    StudyResult,
    StudyStore,
    Subject,
    Training,
    Watcher,
    claims_on,
    load_design,
    observations_of,
    run_study,
    shipped_design,
    status_of,
    strengths_of,
)
from chainfx.study import analyse as analyse_study
from chainfx.study import predict as predict_order

__all__ = ["report", "study_app"]

study_app = typer.Typer(no_args_is_help=True, help="Measure in what order passes do best.")

Folder = Annotated[Path, typer.Argument(help="The folder of a study.")]
DesignName = Annotated[
    str, typer.Argument(metavar="DESIGN", help="pairwise, control, ..., a YAML file, or what pack wrote.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Data = Annotated[str, typer.Option(help="What a shipped design is run on: digits, diabetes, mnist or cifar10.")]
DataFolder = Annotated[
    Path | None, typer.Option("--folder", help="Where train.npz and test.npz of mnist or cifar10 are.")
]
Grid = Annotated[
    str, typer.Option(help="Strengths of the passes of a shipped design: small, or paper for its twenty cases.")
]
Law = Annotated[Path | None, typer.Option("--law", help="Write the measured order as an evidence file for plan.")]


@study_app.command()
def run(
    design: DesignName,
    store: Annotated[Path, typer.Option(help="The folder of the study; one that is not finished goes on.")],
    data: Data = "digits",
    folder: DataFolder = None,
    grid: Grid = "small",
    seeds: Annotated[
        str | None, typer.Option(help="How many, or from:to as in 8:12. More seeds of a study go on in its folder.")
    ] = None,
    cases: Annotated[
        int | None, typer.Option(help="So many configurations of an order at most: a reduced grid, and labelled so.")
    ] = None,
    training: Annotated[str | None, typer.Option(help="paper or equal alone, in place of both.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="How long arms train: 'per stage', 'total' for all equally long, or 'both'.")
    ] = None,
    measured: Annotated[
        bool, typer.Option("--measured", help="Also measure latency, bytes and memory of each point.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes, of one thread each.")] = 1,
    ray: Annotated[
        str | None, typer.Option(help="Run on a Ray cluster: its address, or 'local' for one of --workers CPUs.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after the stage in flight when they are over.")] = None,
    records_only: Annotated[bool, typer.Option("--records-only", help="Delete the networks when it is done.")] = False,
    law: Law = None,
    as_json: Json = False,
) -> None:
    """Run an order study, or what is missing of it, and print the verdicts on its pairs and the law they give.

    It prints the design before it begins. After Ctrl-C, --minutes or a crash the same command goes on.
    """
    chosen = _seeded(_design(design, data, folder, grid), seeds)
    if cases is not None:
        chosen = dataclasses.replace(chosen, cases=cases)
    if training is not None:
        chosen = dataclasses.replace(chosen, trainings=(cast(Training, training),))
    if budget is not None:
        chosen = dataclasses.replace(chosen, budget=cast(Budget, budget))
    if measured:
        chosen = dataclasses.replace(chosen, measured=True)
    subject = Subject.of(chosen)
    if not as_json:
        typer.echo(f"{chosen}\n{_of_data(chosen, subject)}\n")
    try:
        cluster = None if ray is None else RayCluster(address=None if ray == "local" else ray)
        done = run_study(
            chosen, store, subject=subject, workers=workers, minutes=minutes, watcher=_Teller(as_json), ray=cluster
        )
    except KeyboardInterrupt as error:
        error.add_note(f"finished stages and records are kept in {store}; the same command goes on after them")
        raise
    result = analyse_study(done)
    if records_only and result.status.recorded == result.status.cases:
        done.drop_networks()
    _show(result, law, as_json)


@study_app.command()
def show(
    design: DesignName,
    data: Data = "digits",
    folder: DataFolder = None,
    grid: Grid = "small",
    as_yaml: Annotated[bool, typer.Option("--yaml", help="As a file to begin a design of one's own with.")] = False,
) -> None:
    """Print what a design will do, and run nothing."""
    import yaml

    chosen = _design(design, data, folder, grid)
    typer.echo(yaml.safe_dump(chosen.to_dict(), sort_keys=False) if as_yaml else str(chosen))


@study_app.command()
def status(folder: Folder, as_json: Json = False) -> None:
    """Show how far a study is, how long the rest takes, and what failed."""
    found = status_of(StudyStore.open(folder))
    typer.echo(json.dumps(found.to_dict()) if as_json else str(found))


@study_app.command()
def analyse(
    folder: Annotated[Path, typer.Argument(help="The folder of a study, or the file that pack wrote.")],
    endpoint: Annotated[
        str | None, typer.Option(help=f"Judge by another cost: {', '.join(get_args(Endpoint))}.")
    ] = None,
    law: Law = None,
    as_json: Json = False,
) -> None:
    """Print the verdicts and the law from the records of a study, finished or not; nothing is run."""
    result = analyse_study(folder)
    if endpoint is not None:
        result = result.judged_by(cast(Endpoint, endpoint))
    _show(result, law, as_json)


@study_app.command()
def claims(
    folders: Annotated[list[Path], typer.Argument(help="Folders of studies, or files that pack wrote; read together.")],
    as_json: Json = False,
) -> None:
    """Print what the records of one study or several say of what is claimed about orders; nothing is run.

    Of a claim with more than twelve tests those that decide something are printed; --json has all of them.
    """
    found = claims_on([analyse_study(each) for each in folders])
    if as_json:
        typer.echo(json.dumps([each.to_dict() for each in found]))
        return
    for training in dict.fromkeys(each.training for each in found):
        texts = [str(each) for each in found if each.training == training]
        typer.echo("\n".join([f"training: {training}", *texts, ""]))


@study_app.command()
def sensitivity(
    folder: Annotated[Path, typer.Argument(help="The folder of a study of pairs, or the file that pack wrote.")],
    as_json: Json = False,
) -> None:
    """Print a verdict for every pair of strengths of two passes: where does the better order turn?"""
    result = analyse_study(folder)
    found = [each for training in result.design.trainings for each in strengths_of(result, training)]
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(each) for each in found]))
        return
    for each in found:
        decision, order = each.decision, f"{each.first} before {each.second}"
        better = {"first": "better", "second": "worse"}.get(decision.outcome, decision.outcome)
        typer.echo(f"{each.training}: {order}: {better}, {each.factor:.2f} times, confidence {decision.confidence:.3f}")


@study_app.command()
def predict(
    folder: Annotated[Path, typer.Argument(help="A study, or what pack wrote, with each pass alone (design 'alone').")],
    learn: Annotated[
        list[Path] | None, typer.Option(help="A study of pairs to learn from in place of those that ship.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict the order of passes from each of them alone, beside rules that others give; nothing is run."""
    known = None if not learn else [each for path in learn for each in observations_of(analyse_study(path))]
    found = predict_order(analyse_study(folder), known)
    typer.echo(json.dumps(found.to_dict()) if as_json else str(found))


@study_app.command()
def pack(
    folder: Folder, output: Annotated[Path, typer.Argument(help="The JSON file to write; analyse reads it too.")]
) -> None:
    """Write the design and all records of a study into one file, without the networks."""
    StudyStore.open(folder).pack(output)


@study_app.command()
def merge(
    folder: Folder,
    others: Annotated[list[Path], typer.Argument(help="Folders of the same study, whose records are copied into it.")],
) -> None:
    """Copy records and networks of other stores of the same study into a folder, which need not exist yet."""
    for each in others:
        other = StudyStore.open(each)
        mine = StudyStore.create(folder, other.design, other.subject, other.ground)
        typer.echo(f"{mine.merge(other)} new records from {each}")


def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a study, or the file that pack wrote.")],
    output: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    png: Annotated[
        Path | None, typer.Option(help="A folder to write every plot to as a PNG file; needs chainfx[plots].")
    ] = None,
) -> None:
    """Write what came of a study, finished or not, as one HTML page with its plots; it needs no network."""
    result = analyse_study(folder)
    if png is not None:
        typer.echo(f"{len(write_plots(result, png))} plots written to {png}")
    page = result.to_html()
    try:
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StudyError(
            f"--output {str(output)!r} cannot be written: {why_no_file(error)}; name a file in a folder that exists."
        ) from error
    typer.echo(f"written to {output}")


def _design(name: str, data: str, folder: Path | None, grid: str) -> Design:
    ending = Path(name).suffix
    if ending not in (".yaml", ".yml", ".json"):
        return shipped_design(name, data, folder=folder, grid=cast(GridSize, grid))
    if grid != "small":
        raise StudyError(f"--grid {grid} is for designs that ship; {name} has passes of its own.")
    return StudyStore.unpack(name)[0] if ending == ".json" else load_design(name)


def _seeded(design: Design, seeds: str | None) -> Design:
    """The design with the seeds that were asked for."""
    if seeds is None:
        return design
    first, _, last = seeds.rpartition(":")
    try:
        numbers = tuple(range(int(first or 0), int(last)))
    except ValueError as error:
        raise StudyError(f"--seeds {seeds!r} is no number; give how many, as in 8, or from:to, as in 8:12.") from error
    return dataclasses.replace(design, seeds=numbers)


def _of_data(design: Design, subject: Subject) -> str:
    """About how long it takes, how fine accuracy is, and which tiers of the design are finer than that."""
    minutes = design.stages * design.tuning.epochs * subject.seconds_of_epoch(design.tuning) / 60
    finest, judged = subject.resolution, f"judged on {len(subject.judges)} held-out samples"
    estimate = f"at least {minutes:.1f} minutes of training on one process, by the time of one step"
    if subject.data.task is not None:
        return f"{estimate}\n{judged}, by their {subject.data.task.metric.name} in place of accuracy"
    text = f"{judged}, so that accuracy comes in steps of {finest:.2%}"
    finer = [f"{tier:.1%}" for tier in design.tiers if tier < finest]
    text += f"; tiers finer than that, not to be relied on: {', '.join(finer)}" if finer else ""
    return f"{estimate}\n{text}"


def _show(result: StudyResult, law: Path | None, as_json: bool) -> None:
    typer.echo(json.dumps(result.to_dict()) if as_json else str(result))
    if law is not None:
        result.law().write(law)


class _Teller(Watcher):
    """One line for each case that is finished, on standard error, where somebody looks at it."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet or not sys.stderr.isatty()
        self.cases = self.done = 0

    def begins(self, cases: int) -> None:
        self.cases = cases

    def finished(self, record: CaseRecord) -> None:
        self.done += 1
        if not self.quiet:
            what = record.failed or f"{max(point.accuracy for point in record.points):.2%}"
            name = " > ".join(record.passes) or "original"
            typer.echo(f"{self.done}/{self.cases} seed {record.seed} {record.training} {name}: {what}", err=True)
