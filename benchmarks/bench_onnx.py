"""What an exported 8-bit network takes in ONNX Runtime, against its export in float: as it is, and calibrated.

Usage: .venv/bin/python benchmarks/bench_onnx.py [--models resnet18 mobilenet_v2] [--size 64] [--batch 1]

All three files run in turn in this process on one thread; the medians stand in the table, and the ratios are how many
times longer the float file takes. The networks have random weights and inputs: the time does not depend on them.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import onnxruntime
import torch
import torchvision

import chainfx
from chainfx.passes import Fuse, PostTrainingQuantize


def sessions(name: str, x: torch.Tensor, folder: Path) -> dict[str, onnxruntime.InferenceSession]:
    """The network of torchvision in float, in 8 bits, and in 8 bits with what is added rounded too."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    chainfx.compile(model, [Fuse()], example_inputs=x).export(folder / "float")
    small = chainfx.compile(model, [PostTrainingQuantize()], example_inputs=x, calibration=[x])
    small.export(folder / "int8")
    small.export(folder / "calibrated", calibration=[x])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return {
        kind: onnxruntime.InferenceSession(folder / kind / "segment0.onnx", options)
        for kind in ("float", "int8", "calibrated")
    }


def milliseconds(running: dict[str, onnxruntime.InferenceSession], x: torch.Tensor, rounds: int) -> dict[str, float]:
    """The median time of a call of each, in turn."""
    times: dict[str, list[float]] = {kind: [] for kind in running}
    for _ in range(rounds + 2):
        for kind, session in running.items():
            start = time.perf_counter()
            session.run(None, {session.get_inputs()[0].name: x.numpy()})
            times[kind].append(1000 * (time.perf_counter() - start))
    return {kind: statistics.median(each[2:]) for kind, each in times.items()}


def main() -> None:
    """Print a row for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50", "mobilenet_v2"])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    print(f"onnxruntime {onnxruntime.__version__}, torch {torch.__version__}, one thread, batch {options.batch}")
    print(f"{'network':16}{'float ms':>10}{'int8 / x':>18}{'calibrated / x':>18}")
    for name in options.models:
        x = torch.randn(max(2, options.batch), 3, options.size, options.size)
        with tempfile.TemporaryDirectory() as folder:
            ms = milliseconds(sessions(name, x, Path(folder)), x[: options.batch], options.rounds)
        cells = "".join(f"{ms[kind]:>11.2f}{ms['float'] / ms[kind]:>6.2f}x" for kind in ("int8", "calibrated"))
        print(f"{name:16}{ms['float']:>10.2f}{cells}")


if __name__ == "__main__":
    main()
