"""The command line: ``chainfx demo``, ``plan``, ``count`` and ``compile``."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from chainfx.errors import ChainfxError, InputError

if TYPE_CHECKING:
    from chainfx.passes.base import Epoch, Pass
    from chainfx.recipe import Recipe

__all__ = ["app", "main"]


class _Group(TyperGroup):
    """Turns an error of chainfx into one red line on standard error and exit code 1, unless ``--debug`` is given."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ChainfxError as error:
            if ctx.params["debug"]:
                raise
            typer.secho(f"{type(error).__name__}: {error}", fg="red", err=True)
            for note in getattr(error, "__notes__", ()):
                typer.echo(note, err=True)
            raise typer.Exit(1) from error


app = typer.Typer(cls=_Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Order = Annotated[str, typer.Option(help="auto: sort; given: keep the order and list what it breaks.")]


@app.callback()
def _options(debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False) -> None:
    """Compress trained PyTorch networks by chaining FX graph passes in a measured order."""


@app.command()
def demo() -> None:
    """Train a small ResNet on real digits, compress it with four passes, and show what each one did (3 minutes)."""
    from rich.console import Console

    from chainfx.demo import run_demo

    run_demo(Console() if sys.stdout.isatty() else Console(width=140))


@app.command()
def plan(
    passes: Annotated[list[str], typer.Argument(metavar="PASS...|RECIPE.yaml", help="Names of passes, or one recipe.")],
    order: Order = "auto",
) -> None:
    """Show in what order passes go, and why: every edge with its reason and source."""
    from chainfx.scheduler.plan import plan as make_plan

    if len(passes) == 1 and Path(passes[0]).suffix in (".yaml", ".yml"):
        from chainfx.recipe import load_recipe

        chain: list[Pass] = list(load_recipe(passes[0]).passes)
    else:
        chain = [_declared(name) for name in passes]
    typer.echo(str(make_plan(chain, order=order)))  # type: ignore[arg-type]


@app.command()
def count(
    model: Annotated[str, typer.Argument(help="A torchvision or chainfx.zoo name, or package.module:factory.")],
    shape: Annotated[str, typer.Option("--input", help="The input's shape with the batch, e.g. 1,3,224,224.")],
    convention: Annotated[str, typer.Option(help="How bit operations are counted.")] = "mac_bw_ba",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Count MACs, bit operations and storage of a network, node by node."""
    import torch

    from chainfx.compiler import count as count_costs
    from chainfx.models import resolve_model

    inputs = torch.zeros(_shape(shape))
    report = count_costs(resolve_model(model).eval(), inputs, convention=convention)
    typer.echo(json.dumps(report.to_dict()) if as_json else str(report))


@app.command("compile")
def compile_recipe(recipe: Annotated[Path, typer.Argument(help="The recipe; see chainfx.recipe.")]) -> None:
    """Compress a network as a recipe says, show what each pass did, and save the result."""
    from chainfx.recipe import load_recipe

    _compile(load_recipe(recipe))


def _compile(recipe: "Recipe") -> None:
    from chainfx.compiler import compile as compile_model

    data = recipe.data()
    trainer = recipe.trainer(data)
    model = recipe.model()
    if recipe.trains and trainer is not None:
        trainer.fit(model, seed=recipe.seed, on_epoch=_say_epoch)
        model.eval()
    without_trainer = None if data is None or trainer is not None else data.calibration(512, 128)
    compressed = compile_model(
        model,
        recipe.passes,
        example_inputs=recipe.example_inputs(data),
        trainer=trainer,
        calibration=without_trainer,
        workdir=recipe.workdir,
        order=recipe.order,
        seed=recipe.seed,
    )
    typer.echo(str(compressed.report))
    if trainer is not None:
        typer.echo(f"test accuracy: {trainer.test(model):.2%} before, {trainer.test(compressed):.2%} after")
    if recipe.output is not None:
        compressed.save(recipe.output)
        typer.echo(f"saved to {recipe.output}")


def _say_epoch(epoch: "Epoch") -> None:
    """Progress of training the original, where somebody watches."""
    if sys.stderr.isatty():
        typer.echo(f"training: epoch {epoch.index} of {epoch.total}, accuracy {epoch.metric:.2%}", err=True)


def _declared(name: str) -> "Pass":
    """A pass of that name whose options are left open: the order follows from what the class declares."""
    from chainfx.passes import registry

    cls = registry.get(name)
    return cls.__new__(cls)


def _shape(text: str) -> tuple[int, ...]:
    """The numbers of ``1,3,224,224``."""
    parts = text.split(",")
    if len(parts) < 2 or not all(part.strip().isdecimal() and int(part) for part in parts):
        raise InputError(f"--input {text!r} is not a shape; give at least two positive numbers, e.g. 1,3,224,224.")
    return tuple(int(part) for part in parts)


def main() -> None:
    """The entry point; modules in the working directory can be named as ``package.module:factory``."""
    sys.path.insert(0, str(Path.cwd()))
    app()
