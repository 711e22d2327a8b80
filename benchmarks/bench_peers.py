"""Integers beside the engines that people would use instead: milliseconds of whole networks, in turns.

    python -W ignore benchmarks/bench_peers.py [--models NAME ...] [--batches 1 32] [--threads 1] [--seconds 1]

Networks of torchvision at 224 pixels and the ResNet-34 for 32 x 32 images, with random weights and statistics (neither
changes a time), quantized without training to 7-bit weights and 8-bit activations, which run in integers on every x86
processor. ``chainfx int8`` is the integer engine, nothing of it compiled, and ``chainfx package`` what chainfx exports
as ``aoti``; the other rows are explained in ``peers.py``. All take turns in one process; times are medians, ``faster``
compares with the last row, and the lines below compare both of chainfx with the fastest of the others. ``compiled
bf16`` runs where the processor has bfloat16, or where ``--peers`` names it.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import peers
import torch
from torch import Tensor, nn

import chainfx
from chainfx import zoo
from chainfx.deploy import BenchReport, CompressedModel, machine_facts, time_in_turns
from chainfx.passes import PostTrainingQuantize

SIZES = {"resnet18": 224, "resnet50": 224, "mobilenet_v2": 224, "resnet34": 32, "resnet20": 32}
OURS = ("chainfx int8", "chainfx package")


def network_of(name: str) -> nn.Module:
    """The network with random weights, in eval mode."""
    import torchvision

    torch.manual_seed(0)
    if SIZES[name] == 32:
        return getattr(zoo, name)().eval()
    return torchvision.models.get_model(name, weights=None).eval()


def quantized(network: nn.Module, calibration: Tensor) -> CompressedModel:
    """The network on the integer engine."""
    one = PostTrainingQuantize(7, 8)
    return chainfx.compile(network, [one], example_inputs=calibration, calibration=[calibration])


def report_of(name: str, batches: Sequence[int], seconds: float, names: Sequence[str]) -> BenchReport:
    """The times of one network on all engines."""
    network, shape = network_of(name), (3, SIZES[name], SIZES[name])
    calibration = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    small = quantized(network, calibration)
    latencies = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        ours = dict(zip(OURS, (small, peers.packaged(small, Path(folder, "package"))), strict=True))
        engines = {name: peers.eager(form) for name, form in ours.items() if form is not None}
        engines |= peers.peers_of(network, small, calibration, Path(folder), names)
        for batch in batches:
            images = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1))
            latencies += time_in_turns({name: ready(images) for name, ready in engines.items()}, batch, seconds)
    return BenchReport(machine_facts(), tuple(engines), tuple(latencies))


def compared(report: BenchReport, batch: int) -> str:
    """chainfx beside the fastest of the others."""
    times = {each.network: each.p50 for each in report.latencies if each.batch == batch}
    ours = {name: times.pop(name) for name in OURS if name in times}
    best = min(times, key=times.__getitem__)
    said = " and ".join(f"{name} takes {time / times[best]:.2f} times" for name, time in ours.items())
    return f"batch {batch}: {said} as long as the fastest other, {best}"


def main() -> None:
    """Print a table for each network, or JSON."""
    parser = argparse.ArgumentParser(description="Integers beside other engines.")
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50", "mobilenet_v2", "resnet34"])
    parser.add_argument("--peers", nargs="*", default=peers.usual(), choices=peers.ALL)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    reports = {name: report_of(name, given.batches, given.seconds, given.peers) for name in given.models}
    if given.json:
        print(json.dumps({name: report.to_dict() for name, report in reports.items()}))
        return
    for name, report in reports.items():
        print(f"\n{name}", report, *(compared(report, batch) for batch in given.batches), sep="\n", flush=True)


if __name__ == "__main__":
    main()
