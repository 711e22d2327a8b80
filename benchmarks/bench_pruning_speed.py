"""What does structural pruning take, in time and memory? chainfx and Torch-Pruning on the same networks in one run.

    python benchmarks/bench_pruning_speed.py [--models NAME ...] [--repeats 5]

Both remove half of the channels of every group, at 224 x 224, on one thread. There are two rows for each network:
``random`` scores channels by random numbers, which cost next to nothing, so that what is left is the analysis and the
surgery; ``l2`` scores them by the L2 norm of all that makes and reads them.

What is timed starts with the network in memory and ends with the pruned one (a fresh copy of it in every repeat, copied
before the clock starts, and garbage collected before every start). ``chainfx`` is
:class:`~chainfx.passes.PruneChannels` on the captured graph, the form in which every pass gets a network: finding the
shapes, the channel analysis, the checks (weights are finite, constants are kept), scores and surgery. The Python code
of a graph that surgery has changed is included too. ``with capture`` is the same from the module: making that graph is
timed as well. ``torch-pruning`` is its BasePruner as its README shows it, from the module: building the dependency
graph (which runs the network on the image), scores, surgery, classifier ignored. Times are medians in seconds,
interleaved, so that a busy machine slows both; where one run takes Torch-Pruning a minute it is run once. ``times`` is
how many times faster chainfx is, on the captured graph and with the capture. ``MB`` is what the process of chainfx, on
the captured graph, and that of Torch-Pruning hold at their peak beyond what they held before the first pruning of that
network; each prunes a small network first, so that what is loaded once does not count (read on Linux with glibc).
"""

import argparse
import copy
import ctypes
import gc
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from chainfx.ir.capture.ways import capture
from chainfx.passes.base import PassContext
from chainfx.passes.prune_channels import PruneChannels

MODELS = ("resnet50", "densenet201", "vit_b_16", "convnext_tiny", "efficientnet_b0", "swin_t")
IMPORTANCES = ("random", "l2")
ALONE = ("swin_t",)  # Torch-Pruning does not finish on it
PATIENCE = 20.0  # seconds: a contender slower than that is not repeated

Contender = tuple[Callable[[], Any], Callable[[Any], Any]]


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A torchvision network with random weights, and an image."""
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.get_model(name).eval(), torch.randn(1, 3, 224, 224)


def ours(model: nn.Module, image: Tensor, importance: str) -> Contender:
    """Set-up (not timed) and the pruning of a captured graph."""
    graph_module = copy.deepcopy(capture(model, (image,)))
    context = PassContext(graph_module, (image,))
    one = PruneChannels(0.5, importance, round_to=1)
    return lambda: copy.deepcopy(graph_module), lambda copied: one.apply(copied, context)


def ours_captured(model: nn.Module, image: Tensor, importance: str) -> Contender:
    """The same, from the module."""

    def run(copied: nn.Module) -> Any:
        graph_module = capture(copied, (image,))
        return PruneChannels(0.5, importance, round_to=1).apply(graph_module, PassContext(graph_module, (image,)))

    return lambda: copy.deepcopy(model), run


def theirs(model: nn.Module, image: Tensor, importance: str) -> Contender:
    """Torch-Pruning from the module."""
    import torch_pruning as tp

    def run(copied: nn.Module) -> Any:
        ignored = [m for m in copied.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
        score = tp.importance.GroupMagnitudeImportance(p=2) if importance == "l2" else tp.importance.RandomImportance()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tp.pruner.BasePruner(copied, image, importance=score, pruning_ratio=0.5, ignored_layers=ignored).step()

    return lambda: copy.deepcopy(model), run


def timed(set_up: Callable[[], Any], run: Callable[[Any], Any]) -> float:
    """Seconds of one run."""
    prepared = set_up()
    gc.collect()
    start = time.perf_counter()
    run(prepared)
    return time.perf_counter() - start


def compare(contenders: list[Contender], repeats: int) -> list[float]:
    """The median seconds of each, run in turns."""
    times: list[list[float]] = [[] for _ in contenders]
    for _ in range(repeats):
        for contender, found in zip(contenders, times, strict=True):
            if not found or found[0] < PATIENCE:
                found.append(timed(*contender))
    return [median(each) for each in times]


def added_memory(name: str, importance: str, contender: str) -> float:
    """MB that pruning adds at its peak, measured in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", name, importance, contender]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_added_memory(name: str, importance: str, contender: str) -> None:
    """What :func:`added_memory` reads."""
    way = {"chainfx": ours, "torch-pruning": theirs}[contender]
    small = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    timed(*way(small, torch.randn(1, 3, 8, 8), importance))
    set_up, run = way(*build(name), importance)
    prepared = set_up()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free already goes back, so that using it again counts
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _memory("VmRSS")
    run(prepared)
    print((_memory("VmHWM") - before) / 1000)


def _memory(what: str) -> int:
    """kB that this process holds (VmRSS), or held at its peak (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{what}:")[1].split()[0])


def main() -> None:
    """Run the comparison and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-of", nargs=3, metavar=("MODEL", "SCORES", "TOOL"), help="only print its MB")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory_of:
        print_added_memory(*args.memory_of)
        return
    print(
        f"{'model':17}{'scores':8}{'chainfx':>9}{'with capture':>14}{'torch-pruning':>15}{'times':>8}{'times':>8}"
        f"{'MB':>6}{'MB':>6}"
    )
    for name in args.models:
        model, image = build(name)
        for importance in IMPORTANCES:
            ways = (ours, ours_captured) if name in ALONE else (ours, ours_captured, theirs)
            seconds = compare([way(model, image, importance) for way in ways], args.repeats)
            row = f"{name:17}{importance:8}{seconds[0]:>9.3f}{seconds[1]:>14.3f}"
            own = f"{added_memory(name, importance, 'chainfx'):>6.0f}"
            if len(seconds) == 3:
                row += f"{seconds[2]:>15.3f}{seconds[2] / seconds[0]:>7.1f}x{seconds[2] / seconds[1]:>7.1f}x"
                row += f"{own}{added_memory(name, importance, 'torch-pruning'):>6.0f}"
            else:
                row += f"{'':31}{own}"
            print(row, flush=True)


if __name__ == "__main__":
    main()
