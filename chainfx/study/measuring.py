"""What a compressed network takes on this machine: time beside the original, bytes on disk, memory at its peak."""

import copy
import itertools
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.profiler import ProfilerActivity, profile

from chainfx.deploy import CompressedModel, time_in_turns
from chainfx.ir.graph import exits_of
from chainfx.scheduler import ChainReport, Stage

__all__ = ["MEASURED", "Bench"]

MEASURED = ("latency-1", "latency-64", "bytes", "memory", "peak-memory")
"""What can be measured of a point, by name: the time of a batch of 1 and of 64 samples as a share of the time that the
original network of the seed takes in turn with it; the bytes of the saved network; the bytes that one sample needs at
its peak, weights included, which are counted; and those that torch allocates for one sample at its peak, weights apart,
which are measured."""

_BATCHES = {"latency-1": 1, "latency-64": 64}
_SECONDS = 0.2
_PROFILED = 16


class Bench:
    """Times networks in turns with one original, both in deploy form on the engine ``"auto"`` and not compiled.

    ``samples``: inputs that batches are taken from in turn, at least 64; with exits, times depend on them.
    """

    def __init__(self, original: Stage, example_inputs: tuple[Tensor, ...], samples: tuple[Tensor, ...]) -> None:
        self._inputs, self._samples = example_inputs, samples
        self._original = self._deployed(original)

    def measured(self, stage: Stage, threshold: float | None) -> dict[str, float]:
        """Everything in :data:`MEASURED` of a stage with its exits at a threshold; the original takes 1 of its time."""
        model = self._deployed(stage, threshold)
        latencies, sizes = self._latencies(model, stage.record.index == 0), self._sizes(model, stage)
        return {**latencies, **sizes, "peak-memory": float(self._peak(model))}

    def _deployed(self, stage: Stage, threshold: float | None = None) -> CompressedModel:
        graph_module = copy.deepcopy(stage.graph_module)
        if threshold is not None:
            _set_exits(graph_module, threshold)
        return CompressedModel(graph_module, self._inputs, ChainReport("", (stage.record,)))

    def _latencies(self, model: CompressedModel, original: bool) -> dict[str, float]:
        if original:
            return dict.fromkeys(_BATCHES, 1.0)
        found = {}
        with torch.no_grad():
            for name, batch in _BATCHES.items():
                calls = {"model": self._call(model, batch), "original": self._call(self._original, batch)}
                one, other = time_in_turns(calls, batch, _SECONDS)
                found[name] = one.p50 / other.p50
        return found

    def _call(self, model: CompressedModel, batch: int) -> Callable[[], object]:
        """A call that runs the next batch of the samples."""
        whole = [tensor[: len(tensor) // batch * batch].split(batch) for tensor in self._samples]
        following = itertools.cycle(list(zip(*whole, strict=True)))
        return lambda: model(*next(following))

    def _peak(self, model: CompressedModel) -> int:
        """The most bytes that torch allocates for one of some samples: with exits it depends on the sample."""
        call = self._call(model, 1)

        def calls() -> None:
            for _ in range(_PROFILED):
                call()

        with torch.no_grad():
            call()  # the first makes what is kept
            return allocated_at_peak(calls)

    @staticmethod
    def _sizes(model: CompressedModel, stage: Stage) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            model.save(folder)
            size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.name != "report.json")
        report = stage.record.report
        peak = None if report is None else report.peak_bits
        return {"bytes": float(size), **({} if peak is None else {"memory": peak / 8})}


def allocated_at_peak(call: Callable[[], object]) -> int:
    """The most bytes that torch holds at once of those that it allocates during a call, on the processor.

    The resident memory of a process would be another measure, but that of an interpreter with torch is thousands of
    times that of a small network, and the differences between two of these are lost in it.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else some builds of torch print a line at each start and end
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profiled.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_bytes())["traceEvents"]
    changes = sorted((each for each in events if each.get("name") == "[memory]"), key=lambda each: each["ts"])
    return max(itertools.accumulate(each["args"]["Bytes"] for each in changes), default=0)


def _set_exits(graph_module: GraphModule, threshold: float) -> None:
    """Let all exits of a graph take another threshold."""
    for mark in exits_of(graph_module):
        logits, name, _, criterion = mark.node.args
        mark.node.args = (logits, name, threshold, criterion)
    graph_module.recompile()
