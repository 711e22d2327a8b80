"""A whole chain beside the engines that people would use for the original: milliseconds an image, in turns.

    python -W ignore benchmarks/bench_chain.py --data CIFAR10 [--batches 1 64] [--json]

The chain (``chain_artefact.py``, made first where it is not there yet): ResNet-34 for 32 x 32 images -> a student of
2, 4, 6, 2 blocks -> 40 % of the channels pruned -> weights of 1 bit, activations of 8 -> three exits. It runs on
chainfx's int8 engine, with exits (``chain``) and without (``chain, no exits``), and as what chainfx exports as ``aoti``
(``package``); ``original`` is the ResNet-34 quantized to 7 and 8 bits on that engine; the rest are ``peers.py`` on the
ResNet-34.

All answer the same test images, one thread each, in turns in one process. How many leave at which exit is measured on
``--tested`` test images; the images of a batch are the first ones of each exit, as many as its share. Where the batch
is 1, a call is 16 images one after another, so that the median is over calls that all have the exits in their shares.
``faster`` compares with the last row, the original compiled in float32; the last lines, with the fastest int8 engine.
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peers
import torch
from chain_artefact import WORK, Artefact, Recipe, make, test_images
from peers import Call, Peer
from profile_peers import Timed
from torch import Tensor, nn

import chainfx
from chainfx.deploy import BenchReport, CompressedModel, Latency, machine_facts, time_in_turns
from chainfx.ir.graph import exits_of, leaving
from chainfx.passes import PostTrainingQuantize

CHAINS = ("chain", "chain, package", "chain, no exits", "chain, no exits, package")
SINGLE = 16  # images one after another that are one call where the batch is 1


@dataclass(frozen=True)
class Measured:
    """Times, and what the networks are worth; ``rates`` are shares of images that leave at each exit, the end last."""

    report: BenchReport
    rates: tuple[float, ...]
    accuracies: Mapping[str, float]

    def __str__(self) -> str:
        rates = ", ".join(f"{rate:.1%}" for rate in self.rates)
        right = ", ".join(f"{name} {share:.1%}" for name, share in self.accuracies.items())
        return "\n".join([f"leave at each exit: {rates}", f"right: {right}", str(self.report), *self._goals()])

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"rates": self.rates, "accuracies": dict(self.accuracies), **self.report.to_dict()}

    def _goals(self) -> list[str]:
        lines = []
        for batch in sorted({each.batch for each in self.report.latencies}):
            times = {each.network: each.p50 for each in self.report.latencies if each.batch == batch}
            best = min((name for name in times if name in peers.INT8), key=times.__getitem__, default=None)
            for name in (name for name in CHAINS if name in times):
                said = f"batch {batch}: {name} {self.report.speedup(name, batch):.1f}x over compiled float32"
                lines.append(said + (f", {times[best] / times[name]:.1f}x over {best}" if best else ""))
        return lines


def measure(artefact: Artefact, images: Tensor, labels: Tensor, options: argparse.Namespace) -> Measured:
    """Time all contenders on images that leave as the measured rates say."""
    taken, right = exits_taken(artefact.small, images, labels)
    rates = tuple(float((taken == index).double().mean()) for index in range(len(artefact.small.segments)))
    accuracies = {"original": _right(artefact.original, images, labels), "chain": right}
    calibration = images[-16:]
    quantized = chainfx.compile(
        artefact.original, [PostTrainingQuantize(7, 8)], example_inputs=images[:2], calibration=[calibration]
    )
    latencies = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        forms = {
            "chain": artefact.small,
            "chain, package": peers.packaged(artefact.small, Path(folder, "chain")),
            "chain, no exits": artefact.without_exits,
            "chain, no exits, package": peers.packaged(artefact.without_exits, Path(folder, "no exits")),
            "original": quantized,
        }
        contenders: dict[str, Peer] = {
            **{name: peers.eager(form) for name, form in forms.items() if form is not None},
            **peers.peers_of(artefact.original, quantized, calibration, Path(folder), options.peers),
        }
        for batch in options.batches:
            rows = in_shares(taken, rates, SINGLE if batch == 1 else batch)
            calls = {name: _on(peer, images[rows], batch) for name, peer in contenders.items()}
            found = time_in_turns(calls, len(rows), options.seconds)
            latencies += [_of_one(each) for each in found] if batch == 1 else found
    return Measured(BenchReport(machine_facts(), tuple(contenders), tuple(latencies)), rates, accuracies)


def exits_taken(small: CompressedModel, images: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """The exit at which each image leaves, from 0 (the last number is the end), and the share of right answers."""
    taken = torch.full((len(images),), len(small.segments) - 1)
    answers = torch.empty(len(images), dtype=torch.int64)
    rows, values = torch.arange(len(images)), [images]
    marks = exits_of(small.graph_module)
    with torch.no_grad():
        for index, mark in enumerate(marks):
            logits, sure, *values = small.segments[index](*values)
            leaves = leaving(sure, mark.threshold)
            taken[rows[leaves]], answers[rows] = index, logits.argmax(1)
            rows, values = rows[~leaves], [value[~leaves] for value in values]
        if len(rows):
            answers[rows] = small.segments[-1](*values).argmax(1)
    return taken, float((answers == labels).double().mean())


def in_shares(taken: Tensor, rates: Sequence[float], count: int) -> Tensor:
    """Places of ``count`` images that leave at each exit in the shares ``rates``, the largest remainders rounded up.

    >>> in_shares(torch.tensor([0, 1, 0, 0]), (0.75, 0.25), 2).tolist()
    [0, 2]
    """
    shares = torch.tensor(rates, dtype=torch.float64) * count
    numbers = shares.floor().long()
    numbers[(shares - numbers).argsort(descending=True)[: count - int(numbers.sum())]] += 1
    places = [(taken == index).nonzero().squeeze(1) for index in range(len(rates))]
    return torch.cat([found.repeat(count)[:number] for found, number in zip(places, numbers.tolist(), strict=True)])


def profile(small: CompressedModel, images: Tensor, runs: int = 3, shown: int = 5) -> str:
    """Milliseconds of each segment with all images, and its slowest nodes; nothing leaves in between."""
    lines, values = [], [images]
    with torch.no_grad():
        for index, segment in enumerate(small.segments):
            timed = Timed(segment)
            timed.run(*values)
            timed.seconds.clear()
            for _ in range(runs):
                outputs = timed.run(*values)
            times = {name: seconds / runs * 1e3 for name, seconds in timed.seconds.items()}
            slowest = sorted(times, key=times.__getitem__, reverse=True)[:shown]
            parts = ", ".join(f"{name} {times[name]:.1f}" for name in slowest)
            lines.append(f"segment {index}: {sum(times.values()):.1f} ms, of which {parts}")
            values = outputs[2:] if isinstance(outputs, tuple) else []
    return "\n".join(lines)


def _on(peer: Peer, images: Tensor, batch: int) -> Call:
    """A call that answers all images: in one batch, or one after another where the batch is 1."""
    if batch > 1:
        return peer(images)
    calls = [peer(image) for image in images.split(1)]

    def run() -> None:
        for call in calls:
            call()

    return run


def _of_one(several: Latency) -> Latency:
    """The times of one image, from those of ``SINGLE`` of them one after another."""
    times = {name: getattr(several, name) / SINGLE for name in ("p50", "p90", "p99", "low", "high")}
    return dataclasses.replace(several, batch=1, **times)


def _right(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        found = torch.cat([network(part).argmax(1) for part in images.split(64)])
    return float((found == labels).double().mean())


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description="A compressed chain beside other engines.")
    parser.add_argument("--data", type=Path, required=True, help="the folder of train.npz and test.npz")
    parser.add_argument("--work", type=Path, default=WORK, help="where the chain is kept")
    parser.add_argument("--images", type=int, default=1000, help="training images, where the chain is not there yet")
    parser.add_argument("--tested", type=int, default=500, help="test images")
    parser.add_argument("--peers", nargs="*", default=peers.usual(), choices=peers.ALL)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--profile", action="store_true", help="where a batch spends its time in the chain, no more")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    artefact = make(Recipe(), options.data, options.work, options.images)
    if options.profile:
        print(profile(artefact.small, test_images(options.data, max(options.batches))[0]))
        return
    measured = measure(artefact, *test_images(options.data, options.tested), options)
    print(json.dumps(measured.to_dict()) if options.json else measured)


if __name__ == "__main__":
    main()
