"""The commands that give advice before anything is trained: ``chainfx lint`` and ``chainfx explain``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from chainfx.cli_options import MODEL, Json, Shape, write
from chainfx.errors import InputError
from chainfx.ir.graph import seeded
from chainfx.linting import explain as explain_graph
from chainfx.linting import lint, sarif
from chainfx.scheduler import EVIDENCE, SEVERITIES, StageStore

if TYPE_CHECKING:
    from torch import Tensor, nn

    from chainfx.recipe import Recipe
    from chainfx.scheduler import StageRecord

__all__ = ["explain_model", "lint_recipe"]

_TIMED = 32  # samples of the batch whose training step is timed
_FOUND = 3  # the exit code if there is a finding that is bad enough; 1 and 2 say that the command itself failed


def lint_recipe(
    recipe: Annotated[Path, typer.Argument(help="The recipe; see chainfx.recipe.")],
    order: Annotated[
        Literal["given", "auto"], typer.Option(help="given: as the passes are written; auto: as plan sorts them.")
    ] = "given",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build the network and predict the cost of each stage.")
    ] = False,
    evidence: Annotated[
        list[Path] | None, typer.Option(help="A file of evidence of your own, in addition; once for each.")
    ] = None,
    fail_on: Annotated[
        Literal["error", "warning", "info", "never"], typer.Option(help="Exit with code 3 on findings as bad as this.")
    ] = "error",
    as_json: Json = False,
    as_sarif: Annotated[bool, typer.Option("--sarif", help="Print SARIF 2.1.0.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write to this file, not to the screen.")] = None,
) -> None:
    """Say what is wrong with a recipe's chain, why, who says so, and what to do; nothing is trained."""
    from chainfx.recipe import load_recipe

    if as_json and as_sarif:
        raise InputError("--json and --sarif do not go together; leave one of them out.")
    loaded = load_recipe(recipe)
    model, inputs, samples = _network(loaded) if dry_run else (None, None, None)
    report = lint(
        loaded.passes,
        model,
        example_inputs=inputs,
        trainer=loaded.has_trainer,
        calibration=loaded.has_data,
        order=order,
        samples=samples,
        records=_records(loaded) if dry_run else (),
        evidence=(*EVIDENCE, *(evidence or ())),
    )
    if as_sarif:
        text = json.dumps(sarif(report.findings, recipe, loaded.lines), indent=2)
    else:
        text = json.dumps(report.to_dict()) if as_json else str(report)
    write(text, output)
    bad = () if fail_on == "never" else SEVERITIES[: SEVERITIES.index(fail_on) + 1]
    if report.worst in bad:
        raise typer.Exit(_FOUND)


def explain_model(
    model: Annotated[str, typer.Argument(help=f"{MODEL}.")], shape: Shape = None, as_json: Json = False
) -> None:
    """Say what each pass could do to a network, what must stay as it is, and why; nothing is trained."""
    from chainfx.counting import graph_of, parse_inputs

    with seeded(0):  # a network by name has weights at random, on which ranks depend
        graph_module, inputs = graph_of(model, parse_inputs(shape or ()))
    explained = explain_graph(graph_module, inputs)
    write(json.dumps(explained.to_dict()) if as_json else str(explained))


def _records(recipe: "Recipe") -> "tuple[StageRecord, ...]":
    """The records of the stages that the working folder of a recipe holds, if there is one."""
    if recipe.workdir is None or not recipe.workdir.is_dir():
        return ()
    return StageStore(recipe.workdir).records()


def _network(recipe: "Recipe") -> "tuple[nn.Module, tuple[Tensor, ...], int | None]":
    """The network of a recipe, its inputs, and how many samples a tuning sees."""
    data = recipe.data()
    trainer = recipe.trainer(data)
    if trainer is None or data is None:
        return recipe.model(), recipe.example_inputs(data), None
    batch = recipe.example_inputs(data, min(trainer.batch_size or _TIMED, _TIMED))
    return recipe.model(), batch, trainer.epochs * len(data.train)
