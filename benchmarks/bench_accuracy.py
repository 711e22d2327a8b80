"""What integers cost in accuracy: pretrained networks quantized without training, on the integer engine.

    python -W ignore benchmarks/bench_accuracy.py --data CIFAR10 --weights FOLDER [--networks resnet20 ...]

``CIFAR10`` holds ``train.npz`` and ``test.npz`` (``images`` uint8 (N, 32, 32, 3), ``labels``); ``FOLDER`` a state dict
``c10_NETWORK_optA.pt`` for each network, with parameter-free shortcuts. Ranges are found on 128 training images, the
test images are used once. Weights have 7 bits, which every x86 processor multiplies exactly, or ``--weight-bits``.
*integers*: accuracy on the int8 engine; *agree*: the share of test images with the same answer as in float.
"""

import argparse
from pathlib import Path

import torch
from bench_quantization import BATCH, load
from torch import Tensor, nn

import chainfx
from chainfx import zoo
from chainfx.passes import PostTrainingQuantize
from chainfx.training import Data

NETWORKS = ("resnet20", "resnet32", "resnet56")


def answers_of(network: nn.Module, data: Data) -> Tensor:
    """The class that a network gives each test image."""
    with torch.no_grad():
        return torch.cat([network(*inputs).argmax(1) for inputs, _ in data.test.batches(BATCH)])


def row(name: str, network: nn.Module, data: Data, bits: int, calibrated: int) -> str:
    """A line of the table."""
    batches = [inputs[0] for inputs in data.calibration(calibrated, BATCH)]
    one = PostTrainingQuantize(bits, 8)
    small = chainfx.compile(network, [one], example_inputs=batches[0][:1], calibration=batches, engine="int8")
    labels = torch.cat([labels for _, labels in data.test.batches(BATCH)])
    before, after = answers_of(network, data), answers_of(small, data)
    was, found, same = (
        float((a == b).double().mean()) for a, b in ((before, labels), (after, labels), (before, after))
    )
    inside = f"{sum(each.engine == 'int8' for each in small.lowering)} of {len(small.lowering.rows)}"
    return f"| {name} | {inside} | {was:.2%} | {found:.2%} | {(found - was) * 100:+.2f} | {same:.2%} |"


def main() -> None:
    """Print a line for each network."""
    parser = argparse.ArgumentParser(description="The accuracy of integers.")
    parser.add_argument("--data", type=Path, required=True, help="the folder of train.npz and test.npz")
    parser.add_argument("--weights", type=Path, required=True, help="the folder of the state dicts")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--weight-bits", type=int, default=7)
    parser.add_argument("--samples", type=int, default=128, help="training images to find ranges on")
    parser.add_argument("--tested", type=int, help="test images, all by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load(options.data, options.samples, options.tested)
    print("| network | operations in integers | float | integers | points | agree |\n|---|---|--:|--:|--:|--:|")
    for name in options.networks:
        network = getattr(zoo, name)()
        zoo.load_weights(network, options.weights / f"c10_{name}_optA.pt")
        print(row(name, network.eval(), data, options.weight_bits, options.samples), flush=True)


if __name__ == "__main__":
    main()
