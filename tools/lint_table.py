"""Run the failed chain of the compatibility exercise and its correction on real data, and print the tables of the docs.

Usage: .venv/bin/python -W ignore -m tools.lint_table          (about a minute on one thread)

The network is a small ResNet trained on scikit-learn's digits. Both chains end in the same small network of its own,
distilled for the same ten epochs; accuracy is on the 360 test images, used here only, and bytes are those of the saved
folder.
The failed chain is run as the exercise has it: nothing is tuned before the distillation, and the student learns from
what is left of the teacher. ``chainfx.compile`` refuses that student, which would lose bit widths and masks in silence;
so the third step is done by hand, with the trainer.
"""

import copy
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.fx import GraphModule

import chainfx
from chainfx import zoo
from chainfx.deploy import CompressedModel
from chainfx.ir.graph import Answer
from chainfx.passes import (
    Distill,
    Fuse,
    OptimizeGraph,
    Pass,
    PostTrainingQuantize,
    PruneWeights,
    TuneRequest,
)
from chainfx.scheduler import ChainReport, Stage
from chainfx.training import Data, Trainer, digits

_EPOCHS = 10


@dataclass(frozen=True)
class Row:
    """A step of a chain: its accuracy on the test images and the bytes of the saved network."""

    step: str
    accuracy: float
    size: int


def main() -> None:
    """Run both chains and print their tables."""
    torch.set_num_threads(1)
    data = digits(validation=0.2)
    trainer = Trainer(data, epochs=_EPOCHS, batch_size=64, fine_tune_scale=0.2)
    torch.manual_seed(0)
    network = zoo.resnet(blocks=(2, 2, 2), width=16, in_channels=1, num_classes=data.num_classes)
    trainer.fit(network, seed=0)
    for name, rows in (
        ("failed", _failed(network.eval(), trainer, data)),
        ("corrected", _corrected(network.eval(), trainer, data, pruned=True)),
        ("corrected, without pruning", _corrected(network.eval(), trainer, data, pruned=False)),
    ):
        _print(name, list(rows))


def student(data: Data) -> nn.Module:
    """The small network of its own, with weights at random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return zoo.resnet(blocks=(1, 1), width=8, in_channels=1, num_classes=data.num_classes).eval()


def _failed(network: nn.Module, trainer: Trainer, data: Data) -> Iterator[Row]:
    x = data.example_inputs(64)
    stages = _stages(network, [PostTrainingQuantize(4, 4), PruneWeights(0.5)], data, trainer=None)
    for stage in stages:
        yield _row(stage.record.label, stage.graph_module, trainer, data)
    teacher = stages[-1].graph_module
    small = copy.deepcopy(chainfx.capture(student(data), x))
    request = TuneRequest(loss="kd", teacher=teacher, from_scratch=True)
    trainer.tune(small, request, seed=0, on_epoch=lambda epoch: None)
    yield _row("distillation into a small network", small, trainer, data)
    last = _stages(small, [Fuse(), OptimizeGraph()], data, trainer=None)[-1]
    yield _row("graph optimization", last.graph_module, trainer, data)


def _corrected(network: nn.Module, trainer: Trainer, data: Data, *, pruned: bool) -> Iterator[Row]:
    sparse = [PruneWeights(0.5)] if pruned else []
    passes: list[Pass] = [Distill(student=student(data)), *sparse, PostTrainingQuantize(8, 8)]
    *stages, _, last = _stages(network, [*passes, Fuse(), OptimizeGraph()], data, trainer)
    for stage in stages:
        label = "distillation into a small network" if stage.record.name == "distill" else stage.record.label
        yield _row(label, stage.graph_module, trainer, data)
    yield _row("graph optimization", last.graph_module, trainer, data)


def _stages(network: nn.Module, passes: Sequence[Pass], data: Data, trainer: Trainer | None) -> list[Stage]:
    stages: list[Stage] = []
    calibration = None if trainer is not None else data.calibration(512, 128)
    chainfx.compile(
        network,
        passes,
        example_inputs=data.example_inputs(64),
        trainer=trainer,
        calibration=calibration,
        order="given",
        on_stage=stages.append,
    )
    return stages


def _row(step: str, graph_module: GraphModule, trainer: Trainer, data: Data) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        CompressedModel(graph_module, data.example_inputs(64), ChainReport("", ())).save(folder)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    return Row(step, trainer.test(Answer(graph_module)), size)


def _print(name: str, rows: Sequence[Row]) -> None:
    sys.stdout.write(f"\n| {name} | accuracy | bytes |\n|---|---|---|\n")
    for row in rows:
        sys.stdout.write(f"| {row.step} | {row.accuracy:.2%} | {row.size:,} |\n")


if __name__ == "__main__":
    main()
