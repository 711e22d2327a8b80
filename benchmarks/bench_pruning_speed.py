"""How long does structural pruning take? chainfx and Torch-Pruning on the same networks in one run.

    python benchmarks/bench_pruning_speed.py [--models NAME ...] [--repeats 5]

Both remove half of the channels of every group by the L2 norm, at 224 x 224, on one thread; what is timed starts with
the network in memory and ends with the pruned one (a fresh copy of it in every repeat, copied before the clock starts).
``chainfx`` is :class:`~chainfx.passes.PruneChannels` on the captured graph: analysis, scores, surgery; ``with capture``
includes making that graph from the module. ``torch-pruning`` is its BasePruner as its README shows it: building the
dependency graph, scores, surgery, classifier ignored. Times are medians in seconds, interleaved, so that a busy machine
slows both.
"""

import argparse
import copy
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from chainfx.ir.capture import capture
from chainfx.passes.base import PassContext
from chainfx.passes.prune_channels import PruneChannels

MODELS = ("resnet50", "densenet201", "vit_b_16", "convnext_tiny", "efficientnet_b0", "swin_t")
ALONE = ("swin_t",)  # Torch-Pruning does not finish on it


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A torchvision network with random weights, and an image."""
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.get_model(name).eval(), torch.randn(1, 3, 224, 224)


def ours(model: nn.Module, image: Tensor) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """Set-up (not timed) and the pruning of a captured graph."""
    graph_module = copy.deepcopy(capture(model, (image,)))
    context = PassContext(graph_module, (image,))
    return lambda: copy.deepcopy(graph_module), lambda copied: PruneChannels(0.5, "l2").apply(copied, context)


def ours_captured(model: nn.Module, image: Tensor) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """The same, from the module."""

    def run(copied: nn.Module) -> Any:
        graph_module = capture(copied, (image,))
        return PruneChannels(0.5, "l2").apply(graph_module, PassContext(graph_module, (image,)))

    return lambda: copy.deepcopy(model), run


def theirs(model: nn.Module, image: Tensor) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """Torch-Pruning from the module."""
    import torch_pruning as tp

    def run(copied: nn.Module) -> Any:
        ignored = [m for m in copied.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
        importance = tp.importance.GroupMagnitudeImportance(p=2)
        tp.pruner.BasePruner(copied, image, importance=importance, pruning_ratio=0.5, ignored_layers=ignored).step()

    return lambda: copy.deepcopy(model), run


def timed(set_up: Callable[[], Any], run: Callable[[Any], Any]) -> float:
    """Seconds of one run."""
    prepared = set_up()
    start = time.perf_counter()
    run(prepared)
    return time.perf_counter() - start


def main() -> None:
    """Run the comparison and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'model':18}{'chainfx':>10}{'with capture':>14}{'torch-pruning':>15}{'ratio':>8}{'with capture':>14}")
    for name in args.models:
        model, image = build(name)
        contenders = [ours(model, image), ours_captured(model, image)]
        contenders += [] if name in ALONE else [theirs(model, image)]
        times = list(zip(*([timed(*each) for each in contenders] for _ in range(args.repeats)), strict=True))
        middle = [median(each) for each in times]
        row = f"{name:18}{middle[0]:>10.3f}{middle[1]:>14.3f}"
        if len(middle) == 3:
            row += f"{middle[2]:>15.3f}{middle[2] / middle[0]:>7.1f}x{middle[2] / middle[1]:>13.1f}x"
        print(row, flush=True)


if __name__ == "__main__":
    main()
