"""The main job on real data in three minutes: four passes on a small ResNet and scikit-learn's digits."""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import chainfx
from chainfx import zoo
from chainfx.deploy import CompressedModel
from chainfx.ir.graph import Answer
from chainfx.passes import Distill, EarlyExit, PruneChannels, Quantize
from chainfx.scheduler import ChainReport, Costs, Stage
from chainfx.training import Trainer, digits

__all__ = ["run_demo"]

_EPOCHS = 10
_WARM_UP = 8
_ROUNDS = 15
_SECONDS = 0.02


@dataclass
class _Row:
    """One stage as the table shows it."""

    stage: Stage
    test_accuracy: float
    bytes_on_disk: int
    model: CompressedModel
    latency: float = 0.0
    throughput: float = 0.0


def run_demo(console: Console) -> None:
    """Train, compress and measure on one CPU thread (the network is too small to share), and print one table.

    Accuracy is on the 360 test images, used here only; everything was chosen on images held out from the training part.
    Times are medians of rounds in which all stages take turns, each compiled by ``torch.compile``.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _run(console)
    finally:
        torch.set_num_threads(threads)


def _run(console: Console) -> None:
    start = time.perf_counter()
    data = digits(validation=0.2)
    trainer = Trainer(data, epochs=_EPOCHS, batch_size=64, fine_tune_scale=0.2)
    torch.manual_seed(0)
    network = zoo.resnet(blocks=(2, 2, 2), width=16, in_channels=1, num_classes=data.num_classes)
    console.print("training the original network on scikit-learn's digits (1,797 real 8x8 images) ...")
    trainer.fit(network, seed=0)
    rows: list[_Row] = []
    with tempfile.TemporaryDirectory() as folder:

        def measure(stage: Stage) -> None:
            model = CompressedModel(stage.graph_module, data.example_inputs(64), ChainReport("", (stage.record,)))
            model.save(folder)
            size = sum(path.stat().st_size for path in Path(folder).iterdir())
            rows.append(_Row(stage, trainer.test(Answer(stage.graph_module)), size, model))
            console.print(f"  {stage.record.label}: test accuracy {rows[-1].test_accuracy:.2%}", highlight=False)

        console.print("running the chain, with recovery training after each pass ...")
        passes = [
            EarlyExit(exits=1, max_drop=0.005),
            Quantize(weights=2, activations=4),
            PruneChannels(ratio=0.4),
            Distill(depth=0.5),
        ]
        small = chainfx.compile(
            network, passes, example_inputs=data.example_inputs(64), trainer=trainer, on_stage=measure
        )
    console.print("compiling every stage with torch.compile and timing them in turns ...")
    _time(rows, next(data.test.batches(64))[0][0])
    console.print(_table(rows))
    console.print(small.report.plan, highlight=False, markup=False)
    console.print(f"{time.perf_counter() - start:.0f} seconds, one CPU thread", highlight=False)


def _time(rows: list[_Row], images: Tensor) -> None:
    """Median latency at batch 1 (seconds) and throughput at batch 64 (images a second) of the compiled stages."""
    with torch.no_grad():
        for row in rows:
            row.model.compile()
        batches = _medians([partial(row.model, images) for row in rows])
        singles = _medians([_one_by_one(row.model, images) for row in rows])
    for row, batch, single in zip(rows, batches, singles, strict=True):
        row.throughput, row.latency = len(images) / batch, single


def _one_by_one(model: CompressedModel, images: Tensor) -> Callable[[], Tensor]:
    """A call that runs the next image alone, since with exits the time depends on the image."""
    following = itertools.cycle(images.split(1))
    return lambda: model(next(following))


def _medians(calls: list[Callable[[], Tensor]]) -> list[float]:
    """Median seconds (p50) of each call over rounds in which they take turns, after warming up."""
    for call in calls:
        for _ in range(_WARM_UP):
            call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(_ROUNDS):
        for call, seen in zip(calls, times, strict=True):
            end = time.perf_counter() + _SECONDS
            while (begin := time.perf_counter()) < end:
                call()
                seen.append(time.perf_counter() - begin)
    return [statistics.median(seen) for seen in times]


def _table(rows: list[_Row]) -> Table:
    first = rows[0]
    original, original_strict = _costs(first)
    title = "test accuracy; times fewer BitOps for one image under mac_bw_ba, and strict; speed against the original"
    table = Table(title=title)
    costs = ("MACs", "BitOps", "worst", "strict", "parameters", "on disk")
    for heading in ("stage", "accuracy", *costs, "batch 1", "batch 64"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for row in rows:
        after, strict = _costs(row)
        table.add_row(
            row.stage.record.name,
            f"{row.test_accuracy:.2%}",
            f"{after.macs:,}",
            f"{original.bitops / _expected(after):,.1f}x",
            f"{original.bitops / after.bitops:,.1f}x",
            f"{original_strict.bitops / _expected(strict):,.1f}x",
            f"{after.parameters:,}",
            f"{row.bytes_on_disk / 1024:,.0f} KiB",
            f"{row.latency * 1e3:.2f} ms ({first.latency / row.latency:.1f}x)",
            f"{row.throughput:,.0f}/s ({row.throughput / first.throughput:.1f}x)",
        )
    return table


def _costs(row: _Row) -> tuple[Costs, Costs]:
    """What a stage costs as its record says, and under the strict convention."""
    return row.stage.record.after, row.stage.record.costs_under("strict")


def _expected(costs: Costs) -> float:
    return costs.bitops if costs.expected_bitops is None else costs.expected_bitops
