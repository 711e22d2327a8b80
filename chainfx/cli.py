"""The command line: ``chainfx demo``, ``lint``, ``explain``, ``plan``, ``count``, ``compile``, ``bench`` and more."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from chainfx.bitops import CostDiff, CostReport
from chainfx.cli_advice import explain_model, lint_recipe
from chainfx.cli_export import export_artefact
from chainfx.cli_options import MODEL, Json, Shape, write
from chainfx.errors import ChainfxError, InputError
from chainfx.passes import Pass, PassSummary, get_pass, pass_names
from chainfx.report import render
from chainfx.studying import report, study_app
from chainfx.version import __version__

if TYPE_CHECKING:
    from torch import nn

    from chainfx.deploy import CompressedModel
    from chainfx.recipe import Recipe
    from chainfx.search import SearchResult
    from chainfx.training import Trainer

__all__ = ["app", "main"]


_INTERRUPTED = 130  # what shells expect of a program that Ctrl-C ended


class _Group(TyperGroup):
    """Turns an error of chainfx into one red line on standard error and exit code 1, unless ``--debug`` is given.

    After Ctrl-C it says what is kept and how to go on, with exit code 130.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ChainfxError as error:
            if ctx.params["debug"]:
                raise
            _say(f"{type(error).__name__}: {error}", error)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            _say("interrupted", error)
            raise typer.Exit(_INTERRUPTED) from error


def _say(line: str, error: BaseException) -> None:
    """The line in red on standard error, and below it what was noted on the error."""
    typer.secho(line, fg="red", err=True)
    for note in getattr(error, "__notes__", ()):
        typer.echo(note, err=True)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Order = Annotated[str, typer.Option(help="auto: sort; given: keep the order and list what it breaks.")]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"chainfx {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version of chainfx.")
    ] = False,
) -> None:
    """Compress trained PyTorch networks by chaining FX graph passes in a measured order."""


app.add_typer(study_app, name="study")
app.command("report")(report)


@app.command()
def demo() -> None:
    """Train a small ResNet on real digits, compress it with four passes, and show what each one did (3 minutes)."""
    from rich.console import Console

    from chainfx.demo import run_demo

    try:
        run_demo(Console() if sys.stdout.isatty() else Console(width=140))
    except KeyboardInterrupt as error:
        text = "interrupted; the demo keeps nothing, and begins from the start when it is run again"
        typer.secho(text, fg="red", err=True)
        raise typer.Exit(_INTERRUPTED) from error


app.command("lint")(lint_recipe)
app.command("explain")(explain_model)
app.command("export")(export_artefact)


@app.command("passes")
def list_passes(as_json: Json = False) -> None:
    """List every installed pass: what it does, its options and their defaults."""
    found = [PassSummary.of(get_pass(name)) for name in pass_names()]
    write(json.dumps([each.to_dict() for each in found]) if as_json else "\n\n".join(map(str, found)))


@app.command()
def plan(
    passes: Annotated[list[str], typer.Argument(metavar="PASS...|RECIPE.yaml", help="Names of passes, or one recipe.")],
    order: Order = "auto",
    evidence: Annotated[
        list[Path] | None, typer.Option(help="A file of evidence in place of the shipped one; once for each.")
    ] = None,
) -> None:
    """Show in what order passes go, and why: every edge with its reason and source."""
    from chainfx.scheduler import EVIDENCE
    from chainfx.scheduler import plan as make_plan

    if len(passes) == 1 and Path(passes[0]).suffix in (".yaml", ".yml"):
        from chainfx.recipe import load_recipe

        recipe = load_recipe(passes[0])
        chain, tunes = list(recipe.passes), recipe.has_trainer
    else:
        chain, tunes = [_declared(name) for name in passes], True
    made = make_plan(chain, order=order, tunes=tunes, evidence=evidence or EVIDENCE)  # type: ignore[arg-type]  # plan refuses other words itself
    typer.echo(str(made))


@app.command()
def count(
    model: Annotated[str, typer.Argument(help=f"{MODEL}; or a report that --json wrote.")],
    shape: Shape = None,
    convention: Annotated[
        str | None, typer.Option(help="How bit operations are counted: mac_bw_ba unless said.")
    ] = None,
    exit_rates: Annotated[
        str | None, typer.Option(help="Share of all samples that leaves at each exit, e.g. exit1=0.3,exit2=0.2.")
    ] = None,
    against: Annotated[str | None, typer.Option(help="Show what changes from MODEL to this one, node by node.")] = None,
    cross_check: Annotated[bool, typer.Option("--cross-check", help="Compare MACs with other tools' counts.")] = False,
    depth: Annotated[int | None, typer.Option(help="Levels of modules to unfold, 0 for the totals alone.")] = None,
    sort: Annotated[str, typer.Option(help="Within a module: order (as they run), macs or bitops.")] = "order",
    memory: Annotated[bool, typer.Option("--memory", help="Show bytes moved, energy and the peak of memory.")] = False,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values, one line a node.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write to this file, not to the screen.")] = None,
) -> None:
    """Count MACs, bit operations and storage: as a tree of modules, as JSON or CSV, or against another network."""
    from chainfx.counting import cross_checked, difference_of, inputs_of, parse_inputs, parse_rates, report_of

    arranged, formatted = (
        {"--depth": depth is not None, "--sort": sort != "order", "--memory": memory},
        {"--json": as_json, "--csv": as_csv},
    )
    priced = {"--against": against, "--convention": convention, "--exit-rates": exit_rates}
    _alone("--cross-check", cross_check, {**formatted, **priced, **arranged})
    _alone("--against", against, arranged)
    _alone("--json", as_json, {"--csv": as_csv, **arranged})
    _alone("--csv", as_csv, arranged)
    inputs, rates = parse_inputs(shape or ()), None if exit_rates is None else parse_rates(exit_rates)
    if cross_check:
        write(str(cross_checked(model, inputs)), output)
        return
    report = report_of(model, inputs, convention)
    if against is not None:
        other = report_of(against, inputs or inputs_of(report), convention)
        shown: CostReport | CostDiff = difference_of(report, other, rates)
        text = str(shown)
    else:
        shown = report if rates is None else report.reprice(exit_rates=rates)
        text = render(shown, depth=depth, sort=sort, memory=memory)  # type: ignore[arg-type]  # render refuses other words
    write(json.dumps(shown.to_dict()) if as_json else shown.to_csv() if as_csv else text, output)


@app.command()
def channels(
    model: Annotated[str, typer.Argument(help=f"{MODEL}.")], shape: Shape = None, as_json: Json = False
) -> None:
    """Show which channels of a network go together, and which cannot be removed and why."""
    from chainfx.counting import channels_of, parse_inputs

    analysis = channels_of(model, parse_inputs(shape or ()))
    write(json.dumps(analysis.to_dict()) if as_json else str(analysis))


@app.command()
def bench(
    artefact: Annotated[Path, typer.Argument(help="The folder of a saved CompressedModel.")],
    against: Annotated[
        str | None, typer.Option(help=f"Time this network in turns with it. {MODEL}.", show_default=False)
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="A batch size; 1, 8 and 64 unless given.")] = None,
    seconds: Annotated[float, typer.Option(help="Time at most for each network and batch size.")] = 2.0,
    eager: Annotated[bool, typer.Option("--eager", help="Do not compile what runs in float.")] = False,
    as_json: Json = False,
    output: Annotated[Path | None, typer.Option(help="Write to this file, not to the screen.")] = None,
) -> None:
    """Measure how fast a compressed network is: on integers, in float, and against another network."""
    from chainfx.benchmark import BATCHES
    from chainfx.benchmark import bench as measure
    from chainfx.counting import network_of
    from chainfx.deploy import load

    small = load(artefact)
    other = None if against is None else network_of(against, small.example_inputs)[0]
    report = measure(small, other, batches=batch or BATCHES, seconds=seconds, compiled=not eager)
    write(json.dumps(report.to_dict()) if as_json else str(report), output)


@app.command("compile")
def compile_recipe(
    recipe: Annotated[Path, typer.Argument(help="The recipe; see chainfx.recipe.")],
    warn_drop: Annotated[
        float | None,
        typer.Option(min=0, help="Warn of a stage that loses more; 0.05, for 5 points, unless the recipe says it."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where to compute, such as cuda or cpu.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="What to measure in: float32, bfloat16 or float16; unless the recipe says it.")
    ] = None,
) -> None:
    """Compress a network as a recipe says, show what each pass did, and save the result.

    With a search in the recipe, show its front first; what is saved is the network that it chose.
    """
    from chainfx.recipe import load_recipe

    loaded = load_recipe(recipe)
    if warn_drop is not None:
        loaded = replace(loaded, warn_drop=warn_drop)
    given: dict[str, Any] = {"device": device, "precision": precision}
    asked = {name: value for name, value in given.items() if value is not None}
    loaded = replace(loaded, execution=replace(loaded.execution, **asked))
    try:
        _compile(loaded)
    except KeyboardInterrupt as error:
        if loaded.workdir is None:
            error.add_note("nothing is kept; with a workdir in the recipe the same command goes on after a stage")
        else:
            error.add_note(f"finished stages are kept in {loaded.workdir}; the same command goes on after them")
        raise


def _compile(recipe: "Recipe") -> None:
    from chainfx.compiler import compile as compile_model

    data = recipe.data()
    trainer = recipe.trainer(data)
    model = recipe.model()
    if recipe.trains and trainer is not None:
        _train(model, trainer, recipe.seed)
    without_trainer = None if data is None or trainer is not None else data.calibration(512, 128)
    compress: Callable[..., Any] = partial(
        compile_model,
        model,
        recipe.passes,
        example_inputs=recipe.example_inputs(data),
        trainer=trainer,
        calibration=without_trainer,
        workdir=recipe.workdir,
        order=recipe.order,
        refuse=recipe.refuse,
        seed=recipe.seed,
        warn_drop=recipe.warn_drop,
        tuning=recipe.tuning,
        execution=recipe.execution,
    )
    compressed = compress() if recipe.search is None else _found(compress(search=recipe.search))
    typer.echo(str(compressed.report))
    if trainer is not None:
        measured, before, after = trainer.metric, trainer.test(model), trainer.test(compressed)
        typer.echo(f"test {measured.name}: {measured.text(before)} before, {measured.text(after)} after")
    if recipe.output is not None:
        compressed.save(recipe.output)
        typer.echo(f"saved to {recipe.output}")


def _found(result: "SearchResult") -> "CompressedModel":
    """The network that a search chose, behind its front."""
    typer.echo(f"{result}\n")
    if result.model is None:
        raise InputError("the search chose no network, so that there is none to save; see above what is nearest.")
    return result.model


def _train(model: "nn.Module", trainer: "Trainer", seed: int) -> None:
    """Train the original network, and show the progress."""
    from chainfx.progress import TerminalListener

    listener = TerminalListener()
    listener.start("training the original network")
    try:
        trainer.fit(model, seed=seed, on_epoch=listener.epoch)
    finally:
        listener.close()
    model.eval()


def _declared(name: str) -> Pass:
    """A pass of that name whose options are left open: the order follows from what the class declares."""
    cls = get_pass(name)
    return cls.__new__(cls)


def _alone(name: str, given: object, others: Mapping[str, object]) -> None:
    """An error if an option is given together with one that would have no effect beside it."""
    found = [other for other, value in others.items() if given and value]
    if found:
        raise InputError(f"{name} and {found[0]} do not go together; leave one of them out.")


def main() -> None:
    """The entry point; modules in the working directory can be named as ``package.module:factory``."""
    sys.path.insert(0, str(Path.cwd()))
    app()
