"""The network that ``bench_chain.py`` times: a ResNet-34 through the whole chain, trained for minutes on CIFAR-10.

    python -W ignore benchmarks/chain_artefact.py --data CIFAR10

``CIFAR10`` holds ``train.npz`` and ``test.npz`` (``images`` uint8 (N, 32, 32, 3), ``labels``). The original learns two
epochs of 4,000 images of half the size, which cost a quarter, and one of 800 whole ones; each pass is then tuned for
one epoch of those. Ten minutes on one core: enough for exits that some images take and others do not, and far from the
best accuracy. Thresholds are chosen on 200 training images that nothing else has seen. All of it is kept in
``runs/bench_chain`` (``--work``) and found again: after a stop the same command goes on with the stage that was not
finished.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import chainfx
from chainfx import zoo
from chainfx.deploy import CompressedModel
from chainfx.passes import Distill, EarlyExit, Pass, PruneChannels, Quantize
from chainfx.training import Data, Trainer
from chainfx.training.sources import from_arrays

NORMALISATION = {"mean": (0.491, 0.482, 0.447), "std": (0.247, 0.243, 0.262)}
HELD_OUT = 0.2
WORK = Path("runs", "bench_chain")


@dataclass(frozen=True)
class Recipe:
    """What the original is, and what is made of it."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    student: tuple[int, ...] = (2, 4, 6, 2)
    ratio: float = 0.4
    exits: int = 3

    @property
    def passes(self) -> list[Pass]:
        """The passes; the last one adds the exits."""
        quantize = Quantize(weights=1, activations=8, first=7, last=7)
        return [Distill(depth=self.student), PruneChannels(self.ratio), quantize, EarlyExit(self.exits)]

    def network(self) -> nn.Module:
        """The original, untrained."""
        torch.manual_seed(0)
        return zoo.resnet(self.blocks, self.width)


@dataclass(frozen=True)
class Artefact:
    """The original, the network after all passes but the exits, and after all."""

    original: nn.Module
    without_exits: CompressedModel
    small: CompressedModel


def make(recipe: Recipe, folder: Path, work: Path, images: int) -> Artefact:
    """Train the original and run the chain, or find what was finished before in ``work``."""
    data = whole_images(folder, images)
    original = original_of(recipe, folder, work, images, data)
    trainer = Trainer(data, epochs=1, batch_size=32, fine_tune_scale=0.4)

    def compiled(passes: list[Pass]) -> CompressedModel:
        return chainfx.compile(
            original,
            passes,
            example_inputs=data.example_inputs(2),
            trainer=trainer,
            workdir=work / "stages",
            order="given",
            warn_drop=None,
        )

    return Artefact(original, compiled(recipe.passes[:-1]), compiled(recipe.passes))


def original_of(recipe: Recipe, folder: Path, work: Path, images: int, data: Data) -> nn.Module:
    """The original, trained on small images first and on whole ones then."""
    network, path = recipe.network(), work / "original.pt"
    if path.exists():
        network.load_state_dict(torch.load(path, weights_only=True))
        return network.eval()
    for part, epochs in ((_halved(folder, 4 * images), 2), (data, 1)):
        found = Trainer(part, epochs=epochs, batch_size=32).fit(network)
        print(f"images of {part.input_shape}: {found:.1%}", file=sys.stderr, flush=True)
    work.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), path)
    return network.eval()


def whole_images(folder: Path, images: int) -> Data:
    """The last training images, of which some are held out."""
    train = np.load(folder / "train.npz")
    pixels, labels = train["images"][-images:], train["labels"][-images:]
    return from_arrays(pixels, labels, (pixels[:10], labels[:10]), validation=HELD_OUT, **NORMALISATION)


def _halved(folder: Path, images: int) -> Data:
    """The first training images, of half the size: each pixel the mean of four."""
    train = np.load(folder / "train.npz")
    pixels, labels = train["images"][:images], train["labels"][:images]
    count, height, width, channels = pixels.shape
    means = pixels.reshape(count, height // 2, 2, width // 2, 2, channels).mean((2, 4)).astype(np.uint8)
    return from_arrays(means, labels, (means[:10], labels[:10]), validation=HELD_OUT / 4, **NORMALISATION)


def test_images(folder: Path, count: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` test images, normalised, and their labels."""
    test = np.load(folder / "test.npz")
    pixels, labels = test["images"][:count], test["labels"][:count]
    data = from_arrays(pixels, labels, (pixels, labels), validation=0.5, **NORMALISATION)
    (images,), labels = data.test.at(torch.arange(len(pixels)))
    return images, labels


def main() -> None:
    """Make the network and print what it became."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of train.npz and test.npz")
    parser.add_argument("--work", type=Path, default=WORK, help="what is finished is kept here")
    parser.add_argument("--images", type=int, default=1000, help="training images, of which a fifth are held out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(make(Recipe(), options.data, options.work, options.images).small.report)


if __name__ == "__main__":
    main()
