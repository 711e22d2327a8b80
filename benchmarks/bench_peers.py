"""Integers beside the engines that people would use instead: torch.compile, ONNX Runtime and OpenVINO, in one run.

    python benchmarks/bench_peers.py [--models NAME ...] [--size 224] [--batches 1 32] [--seconds 2]

Each network of torchvision, with random weights and statistics (neither changes a time), is quantized without training
to 7-bit weights and 8-bit activations, which run in integers on every x86 processor. Rows: ``chainfx int8`` the integer
engine, nothing of it compiled; ``eager``, ``compiled`` and (``--bf16``) ``compiled bf16`` the original in torch;
``ort`` and ``openvino`` ONNX files that chainfx exports: of the original in float (with BatchNorm folded), of the
quantized network (``int8``), and of that with what is added rounded too (``int8 added``, ``export(calibration=...)``).
One thread each.
All take turns in one process; times are medians, and ``faster`` compares with the last row, the compiled original.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

import chainfx
from chainfx.deploy import BenchReport, machine_facts, time_in_turns
from chainfx.passes import Fuse, PostTrainingQuantize

Call = Callable[[], object]


def report_of(name: str, size: int, batches: list[int], seconds: float, *, bf16: bool) -> BenchReport:
    """The times of one network in all its forms."""
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None).eval()
    x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    small = chainfx.compile(network, [PostTrainingQuantize(7, 8)], example_inputs=x, calibration=[x])
    with tempfile.TemporaryDirectory() as folder:
        chainfx.compile(network, [Fuse()], example_inputs=x).export(Path(folder, "float"))
        small.export(Path(folder, "int8"))
        small.export(Path(folder, "int8 added"), calibration=[x])
        runtimes = {**in_onnxruntime(Path(folder)), **in_openvino(Path(folder))}
    latencies = []
    with torch.no_grad():
        for batch in batches:
            images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))
            calls = {"chainfx int8": _call(small, images), "eager": _call(network, images)}
            calls |= {kind: _ready(run, images.numpy()) for kind, run in runtimes.items()}
            if bf16:
                calls |= {"compiled bf16": _in_bfloat16(torch.compile(network), images)}
            calls |= {"compiled": _call(torch.compile(network), images)}
            latencies += time_in_turns(calls, batch, seconds)
    return BenchReport(machine_facts(), tuple(calls), tuple(latencies))


def in_onnxruntime(folder: Path) -> dict[str, Callable[[np.ndarray], object]]:
    """The exported files in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()

    def session(path: Path) -> Callable[[np.ndarray], object]:
        made = onnxruntime.InferenceSession(path, options)
        name = made.get_inputs()[0].name
        return lambda images: made.run(None, {name: images})

    return {f"ort {path.name}": session(path / "segment0.onnx") for path in sorted(folder.iterdir())}


def in_openvino(folder: Path) -> dict[str, Callable[[np.ndarray], object]]:
    """The exported files in OpenVINO."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}

    def compiled(path: Path) -> Callable[[np.ndarray], object]:
        made = openvino.Core().compile_model(path, "CPU", options)
        return lambda images: made([images])

    found = sorted(folder.iterdir())
    return {f"openvino {path.name}": compiled(path / "segment0.onnx") for path in found if path.name != "int8"}


def _ready(run: Callable[[np.ndarray], object], images: np.ndarray) -> Call:
    run(images)
    return lambda: run(images)


def _call(form: nn.Module, images: torch.Tensor) -> Call:
    form(images)
    return lambda: form(images)


def _in_bfloat16(form: nn.Module, images: torch.Tensor) -> Call:
    def run() -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return form(images)

    run()
    return run


def main() -> None:
    """Print a table for each network."""
    parser = argparse.ArgumentParser(description="Integers beside other engines.")
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50", "mobilenet_v2"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--bf16", action="store_true", help="also in bfloat16, slow on processors without it")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name in given.models:
        print(f"\n{name}\n{report_of(name, given.size, given.batches, given.seconds, bf16=given.bf16)}", flush=True)


if __name__ == "__main__":
    main()
