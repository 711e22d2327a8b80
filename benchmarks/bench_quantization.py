"""What calibration costs: a pretrained network, quantized without training, its clips found in several ways.

    python -W ignore benchmarks/bench_quantization.py --data CIFAR10 --weights resnet20.pt

``CIFAR10`` holds ``train.npz`` and ``test.npz`` (``images`` uint8 (N, 32, 32, 3), ``labels``); the weights are the
state dict of a ResNet-20 with parameter-free shortcuts. Clips are found on training images alone. Nothing is chosen by
the test images: every row that is run is on the page, ``docs/results/quantization.md``, which this command writes.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

import chainfx
from chainfx import zoo
from chainfx.passes import PostTrainingQuantize
from chainfx.passes.quantizing import observing
from chainfx.training import Data
from chainfx.training.sources import from_arrays

PAGE = Path(__file__).parent.parent / "docs" / "results" / "quantization.md"
NORMALISATION = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
WIDTHS = ((8, 8), (4, 8), (8, 4), (8, 2))
BATCH = 128

HEADER = """# Quantization without training: what calibration costs

Written by `{command}` (torch {torch}, {seconds:.0f} s on one thread); do not edit by hand.

A ResNet-20 trained on CIFAR-10 ({original:.2%} of the {tested:,} test images), quantized by `PostTrainingQuantize` with
all layers alike, first and last too. Clips are found on {calibrated:,} training images, the test images are used once.
*a sample*: the squared error is the least on {sample:,} values of each activation, drawn at random, as chainfx does it;
*all values*: on all of them; *largest value*: `clips="min-max"`. Quantizing activations to so few bits as in the last
row needs training, by `Quantize`. Between a sample and all values lie at most {gap:.2f} points, either way.

| weights | activations | a sample | all values | largest value |
|---|---|---|---|---|
"""


def main() -> None:
    """Measure every row and write the page."""
    options = _options()
    torch.set_num_threads(1)
    started = time.perf_counter()
    data = load(options.data, options.samples, options.tested)
    model = zoo.resnet20()
    zoo.load_weights(model, options.weights)
    model.eval()
    batches = [inputs[0] for inputs in data.calibration(options.samples, BATCH)]
    original = accuracy(model, data)
    lines, gaps = [], []
    for weights, activations in WIDTHS:
        found = [accuracy(each, data) for each in quantized(model, batches, weights, activations)]
        gaps.append(abs(found[0] - found[1]) * 100)
        lines.append(f"| {weights} | {activations} | {' | '.join(f'{each:.2%}' for each in found)} |")
        print(lines[-1], flush=True)
    header = HEADER.format(
        command="python -W ignore benchmarks/bench_quantization.py --data CIFAR10 --weights resnet20.pt",
        torch=torch.__version__.partition("+")[0],
        seconds=time.perf_counter() - started,
        original=original,
        tested=len(data.test),
        calibrated=sum(map(len, batches)),
        sample=observing.SAMPLES,
        gap=max(gaps),
    )
    PAGE.write_text(header + "\n".join(lines) + "\n")


def load(folder: Path, calibrated: int, tested: int | None) -> Data:
    """CIFAR-10: the last ``calibrated`` training images and the first ``tested`` test images, all by default."""
    train, test = (np.load(folder / f"{part}.npz") for part in ("train", "test"))
    images, labels = train["images"][-2 * calibrated :], train["labels"][-2 * calibrated :]
    held = test["images"][:tested], test["labels"][:tested]
    return from_arrays(images, labels, held, validation=0.5, **NORMALISATION)


def accuracy(model: nn.Module, data: Data) -> float:
    """The share of right answers on the test images."""
    right = 0
    with torch.no_grad():
        for inputs, labels in data.test.batches(BATCH):
            right += int((model(*inputs).argmax(1) == labels).sum())
    return right / len(data.test)


def quantized(model: nn.Module, batches: list[Tensor], weights: int, activations: int) -> Iterator[nn.Module]:
    """The network with clips from a sample, from all values, and at the largest value."""
    values = 2**31
    for samples, clips in ((observing.SAMPLES, "least-squares"), (values, "least-squares"), (values, "min-max")):
        one = PostTrainingQuantize(weights, activations, clips=clips)
        kept = observing.SAMPLES if clips == "min-max" else samples
        with mock.patch.object(observing, "SAMPLES", kept):
            yield chainfx.compile(model, [one], example_inputs=batches[0][:1], calibration=batches, warn_drop=None)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of train.npz and test.npz")
    parser.add_argument("--weights", type=Path, required=True, help="the state dict of the ResNet-20")
    parser.add_argument("--samples", type=int, default=128, help="training images to find clips on")
    parser.add_argument("--tested", type=int, help="test images, all by default")
    return parser.parse_args()


if __name__ == "__main__":
    main()
