"""Where does the time of an integer network go? By kind of layer, in chainfx and in ONNX Runtime.

    python -W ignore benchmarks/profile_peers.py --model mobilenet_v2 [--batch 1] [--runs 30]

The networks of ``bench_peers.py``. Each layer is timed by itself: in chainfx node by node, in ONNX Runtime (its
``ort int8``, from ``peers.py``) by its own profiler. Times are means in ms over ``--runs`` runs of each, in turns, on
one thread; the additions, activations and quantizers that a layer computes with are in its time.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import bench_peers
import peers
import torch
from torch import Tensor, fx, nn

from chainfx.deploy import CompressedModel

OTHER = "anything else"
DEPTHWISE, GROUPED, LINEAR = "depthwise convolution", "grouped convolution", "linear"


def kind_of(shape: tuple[int, ...], groups: int) -> str:
    """The kind of a layer with weights of a shape (out, in / groups, ...)."""
    if len(shape) == 2:
        return LINEAR
    if groups > 1:
        return DEPTHWISE if shape[1] == 1 else GROUPED
    return f"{shape[2]}x{shape[3]} convolution"


class Timed(fx.Interpreter):
    """Runs a segment and adds up the seconds of each node."""

    def __init__(self, segment: fx.GraphModule) -> None:
        super().__init__(segment)
        self.seconds: dict[str, float] = defaultdict(float)

    def run_node(self, n: fx.Node) -> Any:
        """The value of a node."""
        begin = time.perf_counter()
        value = super().run_node(n)
        self.seconds[n.name] += time.perf_counter() - begin
        return value


def kinds_in(network: nn.Module) -> dict[str, str]:
    """The kind of each layer of a network, by its path with ``_`` for dots."""
    layers = (nn.Conv2d, nn.Linear)
    found = {path: each for path, each in network.named_modules() if isinstance(each, layers)}
    return {
        path.replace(".", "_"): kind_of(tuple(each.weight.shape), getattr(each, "groups", 1))
        for path, each in found.items()
    }


class InONNXRuntime:
    """A file in ONNX Runtime with its profiler on."""

    def __init__(self, path: Path, folder: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        self._session = onnxruntime.InferenceSession(path, options)
        self._kinds = _kinds_in_file(folder / "optimized.onnx")

    def run(self, images: Tensor) -> None:
        """Answer one batch."""
        self._session.run(None, {self._session.get_inputs()[0].name: images.numpy()})

    def seconds(self, warm_up: int) -> dict[str, float]:
        """By kind, the sum over all runs but the first ``warm_up``."""
        events = json.loads(Path(self._session.end_profiling()).read_text())
        times: dict[str, list[float]] = defaultdict(list)
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                times[event["name"].removesuffix("_kernel_time")].append(event["dur"] / 1e6)
        found: dict[str, float] = defaultdict(float)
        for name, each in times.items():
            found[self._kinds.get(name, OTHER)] += sum(each[warm_up:])
        return found


def _kinds_in_file(path: Path) -> dict[str, str]:
    import onnx

    graph = onnx.load(path).graph
    shapes = {each.name: tuple(each.dims) for each in graph.initializer}
    found = {}
    for node in graph.node:
        groups = next((each.i for each in node.attribute if each.name == "group"), 1)
        weights = [shapes[name] for name in node.input if len(shapes.get(name, ())) in (2, 4)]
        if weights and ("Conv" in node.op_type or "Gemm" in node.op_type or "MatMul" in node.op_type):
            found[node.name] = kind_of(weights[0], groups)
    return found


def profiled(small: CompressedModel, kinds: dict[str, str], other: InONNXRuntime, images: Tensor, runs: int) -> str:
    """The table."""
    warm_up, ours = 3, Timed(small.segments[0])
    with torch.no_grad():
        for turn in range(warm_up + runs):
            if turn == warm_up:
                ours.seconds.clear()
            ours.run(images)
            other.run(images)
    mine: dict[str, float] = defaultdict(float)
    for name, seconds in ours.seconds.items():
        mine[kinds.get(name.removeprefix("integer_"), OTHER)] += seconds
    theirs = other.seconds(warm_up)
    lines = ["| kind | layers | chainfx, ms | ONNX Runtime, ms |", "|---|--:|--:|--:|"]
    for kind in sorted({*mine, *theirs}, key=lambda each: -mine[each]):
        count = sum(each == kind for each in kinds.values()) or ""
        lines.append(f"| {kind} | {count} | {mine[kind] / runs * 1e3:.2f} | {theirs[kind] / runs * 1e3:.2f} |")
    total = (sum(mine.values()), sum(theirs.values()))
    return "\n".join([*lines, f"| all | | {total[0] / runs * 1e3:.2f} | {total[1] / runs * 1e3:.2f} |"])


def main() -> None:
    """Print the table of one network."""
    parser = argparse.ArgumentParser(description="Times by kind of layer.")
    parser.add_argument("--model", default="mobilenet_v2", choices=bench_peers.SIZES)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runs", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    network, size = bench_peers.network_of(options.model), bench_peers.SIZES[options.model]
    x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    small = bench_peers.quantized(network, x)
    images = torch.randn(options.batch, 3, size, size, generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder:
        path = peers.Exported(network, small, x, Path(folder)).by_onnxruntime
        other = InONNXRuntime(path, Path(folder))
        print(profiled(small, kinds_in(network), other, images, options.runs))


if __name__ == "__main__":
    main()
