"""An early exit for single samples outside of Python: packages with a gate between them, or one with ``torch.cond``?

    python -W ignore benchmarks/bench_gates.py [--blocks 3 3 3] [--width 16] [--size 32] [--seconds 1] [--json]

A ResNet with random weights, quantized to 7 and 8 bits, and with one exit in the middle, whose threshold is put so that
half of some random images leave there. One thread, single images, in turns:

``packages``     what ``small.export(format="aoti")`` writes, a package a segment; the caller compares the confidence
``cond``         one package that does so itself, by ``torch.cond``, compiled with the same settings of Inductor
``int8 engine``  ``small`` itself

Each for an image that leaves and one that does not. *integer calls*: of integer kernels in the code of the packages.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chainfx import zoo
from chainfx.deploy import BenchReport, CompressedModel, Machine, machine_facts, time_in_turns
from chainfx.deploy.exporting import inductor_options, integer_segments
from chainfx.deploy.exporting.packages import integer_calls
from chainfx.ir.capture import capture
from chainfx.ir.graph import exits_of, ops, propagate_shapes
from chainfx.passes import EarlyExit, PassContext, PostTrainingQuantize
from chainfx.scheduler import ChainReport

Network = Callable[..., Any]


class Gated(nn.Module):
    """Two segments and the gate between them, for a batch of one sample."""

    def __init__(self, first: nn.Module, rest: nn.Module, threshold: float) -> None:
        super().__init__()
        self.first, self.rest, self.threshold = first, rest, threshold

    def forward(self, x: Tensor) -> Tensor:
        """Logits (1, classes)."""
        logits, sure, *carried = self.first(x)

        def leave(logits: Tensor, *carried: Tensor) -> Tensor:
            return logits.clone()

        def go_on(logits: Tensor, *carried: Tensor) -> Tensor:
            answer: Tensor = self.rest(*carried)
            return answer.contiguous()

        answer: Tensor = torch.cond(sure[0] >= self.threshold, leave, go_on, (logits, *carried))
        return answer


def network_of(blocks: Sequence[int], width: int, x: Tensor) -> tuple[CompressedModel, float]:
    """A network with an exit that half of the images leave at, and its threshold."""
    torch.manual_seed(0)
    graph_module = capture(zoo.resnet(tuple(blocks), width).eval(), (x,))
    context = PassContext(graph_module, (x,), calibration=[(x,)], tunes=True)
    PostTrainingQuantize(7, 8).apply(graph_module, context)
    propagate_shapes(graph_module, (x,))
    EarlyExit(exits=1).apply(graph_module, context)
    (mark,) = exits_of(graph_module.eval())
    with torch.no_grad():
        threshold = float(ops.confidence(graph_module(x)[0], mark.criterion).median())
    mark.node.update_arg(2, threshold)
    graph_module.recompile()
    return CompressedModel(graph_module, (x[:2],), ChainReport("", ())), threshold


def by_packages(small: CompressedModel, threshold: float, folder: Path) -> tuple[Network, int]:
    """The network as chainfx exports it, and the number of integer calls."""
    small.export(folder, format="aoti")
    files = [folder / "segment0.pt2", folder / "segment1.pt2"]
    first, rest = (torch._inductor.aoti_load_package(str(file)) for file in files)

    def call(x: Tensor) -> Tensor:
        logits, sure, *carried = first(x)
        answer: Tensor = logits if sure.item() >= threshold else rest(*carried)
        return answer

    return call, sum(map(integer_calls, files))


def by_cond(small: CompressedModel, threshold: float, x: Tensor, file: Path) -> tuple[Network, int]:
    """The network as one package, and the number of integer calls in it."""
    segments, _ = integer_segments(small.graph_module, (x,), Machine.here(), "the benchmark")
    with torch.no_grad():
        program = torch.export.export(Gated(*segments, threshold), (x,))
        options = inductor_options("the benchmark") | {"layout_optimization": False}
        torch._inductor.aoti_compile_and_package(program, package_path=str(file), inductor_configs=options)
    return torch._inductor.aoti_load_package(str(file)), integer_calls(file)


def main() -> None:
    """Print the times, and the integer calls."""
    parser = argparse.ArgumentParser(description="Early exits for single samples.")
    parser.add_argument("--blocks", type=int, nargs="+", default=[3, 3, 3])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.randn(16, 3, given.size, given.size, generator=torch.Generator().manual_seed(0))
    small, threshold = network_of(given.blocks, given.width, x)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        packages, calls = by_packages(small, threshold, Path(folder) / "packages")
        cond, calls_of_cond = by_cond(small, threshold, x[:1], Path(folder) / "cond.pt2")
        sure = small.lower("float").segments[0](x)[1]
        images = {"leaves": x[sure.argmax()][None], "goes on": x[sure.argmin()][None]}
        forms: dict[str, Network] = {"packages": packages, "cond": cond, "int8 engine": small}
        named = {
            f"{form}, {how}": partial(call, image) for how, image in images.items() for form, call in forms.items()
        }
        wrong = [
            name for name, call in named.items() if not torch.allclose(call(), small(*call.args), atol=0.05, rtol=0.05)
        ]
        report = BenchReport(machine_facts(), tuple(named), tuple(time_in_turns(named, 1, given.seconds)))
    found = {"integer calls": {"packages": calls, "cond": calls_of_cond}, "wrong": wrong}
    print(json.dumps({**found, **report.to_dict()}) if given.json else f"{report}\n{found}")


if __name__ == "__main__":
    main()
