"""The main job on real data in three minutes: four passes on a small ResNet and scikit-learn's digits."""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

import chainfx
from chainfx import zoo
from chainfx.deploy import CompressedModel
from chainfx.ir.graph import Answer, seeded
from chainfx.passes import Distill, EarlyExit, Execution, PruneChannels, Quantize
from chainfx.report import DemoRow, demo_headline, demo_table
from chainfx.scheduler import ChainReport, Stage
from chainfx.training import Trainer, digits

__all__ = ["run_demo"]

_EPOCHS = 10
_WARM_UP = 8
_ROUNDS = 15
_SECONDS = 0.02


def run_demo(console: Console) -> None:
    """Train, compress and measure on one CPU thread (the network is too small to share), and print one table.

    Accuracy is on the 360 test images, used here only; everything was chosen on images held out from the training part.
    Times are medians of rounds in which all stages take turns, each in its fastest way: in float, compiled by
    ``torch.compile``, or on integers.
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
    with seeded(0):
        network = zoo.resnet(blocks=(2, 2, 2), width=16, in_channels=1, num_classes=data.num_classes)
    console.print("training the original network on scikit-learn's digits (1,797 real 8x8 images) ...")
    trainer.fit(network, seed=0)
    rows: list[DemoRow] = []
    models: list[CompressedModel] = []
    with tempfile.TemporaryDirectory() as folder:

        def measure(stage: Stage) -> None:
            model = CompressedModel(stage.graph_module, data.example_inputs(64), ChainReport("", (stage.record,)))
            model.save(folder)
            size = sum(path.stat().st_size for path in Path(folder).iterdir())
            strict = stage.record.costs_under("strict")
            expected = strict.bitops if strict.expected_bitops is None else strict.expected_bitops
            accuracy = trainer.test(Answer(stage.graph_module))
            rows.append(DemoRow(stage.record, accuracy, size, expected))
            models.append(model)
            console.print(f"  {stage.record.label}: test accuracy {accuracy:.2%}", highlight=False)

        console.print("running the chain, with recovery training after each pass ...")
        passes = [
            EarlyExit(exits=1, max_drop=0.005),
            Quantize(weights=2, activations=4, first=7, last=7),  # 7 bits: integers on processors without VNNI too
            PruneChannels(ratio=0.4),
            Distill(depth=0.5),
        ]
        small = chainfx.compile(
            network,
            passes,
            example_inputs=data.example_inputs(64),
            trainer=trainer,
            on_stage=measure,
            execution=Execution("cpu"),
        )
    console.print("compiling every stage with torch.compile and timing them in turns, integers and float ...")
    times = _times(models, next(data.test.batches(64))[0][0])
    timed = [replace(row, latency=one, throughput=many) for row, (one, many) in zip(rows, times, strict=True)]
    console.print(demo_table(timed))
    console.print(demo_headline(timed), highlight=False, soft_wrap=True)
    console.print(small.report.plan, highlight=False, markup=False)
    console.print(f"{time.perf_counter() - start:.0f} seconds, one CPU thread", highlight=False)


def _times(models: list[CompressedModel], images: Tensor) -> list[tuple[float, float]]:
    """For each model: median seconds for one image, and images a second in one batch of all of them.

    Of a model that runs on integers each time is that of the fastest way: calls of integer kernels take their time
    also for the smallest of layers, so that a single image of 8x8 is often faster in float, and a batch is not.
    """
    runs = [(place, way) for place, model in enumerate(models) for way in _ways(model)]
    with torch.no_grad():
        batches = _medians([partial(each, images) for _, each in runs])
        singles = _medians([_one_by_one(each, images) for _, each in runs])
    best: dict[int, tuple[float, float]] = {}
    for (place, _), single, batch in zip(runs, singles, batches, strict=True):
        least = best.get(place, (single, batch))
        best[place] = (min(single, least[0]), min(batch, least[1]))
    return [(single, len(images) / batch) for single, batch in best.values()]


def _ways(model: CompressedModel) -> list[CompressedModel]:
    """The model compiled in float, and if it runs on integers also on these: as they are, and compiled."""
    compiled = [model.lower("float")] if model.engine == "float" else [model.lower("int8"), model.lower("float")]
    for each in compiled:
        each.compile()
    return compiled if model.engine == "float" else [model, *compiled]


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
