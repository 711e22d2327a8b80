"""How far are the engines from exact arithmetic? Integers and float32 beside the same network in float64.

    python benchmarks/bench_agreement.py [--images 256]

Each network, with random weights, is quantized without training (7 bits for weights, 8 for activations) and answers the
same random images on the int8 engine, on the float engine, and in float64. A value that lies next to a tie between two
codes falls to one side in one arithmetic and to the other in another, and such a step of a code moves logits by much
more than rounding does. ``moved``: the share of images with a logit further than 1e-5 of the largest one from
float64's. ``distance``: of all logits, relative to float64's. ``agree``: the share of images with the same largest
logit. An engine is as exact as another if it moves no more images.
"""

import argparse
import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

import chainfx
from chainfx import zoo
from chainfx.deploy import Machine
from chainfx.passes import PostTrainingQuantize

NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "small ResNet": lambda: zoo.resnet((1, 1), 8),
    "ResNet-20": zoo.resnet20,
    "MobileNetV2": zoo.mobilenet_v2,
}
ENGINES = ("int8", "float") if Machine.here().kernels else ("float",)
_ROUNDING = 1e-5


def compare(given: Tensor, exact: Tensor) -> str:
    """The three numbers of one engine."""
    difference = (given.double() - exact).abs()
    moved = (difference.amax(1) > _ROUNDING * exact.abs().max()).double().mean()
    agree = (given.argmax(1) == exact.argmax(1)).double().mean()
    return (
        f"moved {float(moved):7.1%}   distance {float(difference.norm() / exact.norm()):.1e}   agree {float(agree):.1%}"
    )


def main() -> None:
    """Print two lines for each network."""
    parser = argparse.ArgumentParser(description="Engines beside float64.")
    parser.add_argument("--images", type=int, default=256)
    given = parser.parse_args()
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        x = torch.randn(given.images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        chain = [PostTrainingQuantize(7, 8)]
        small = chainfx.compile(make().eval(), chain, example_inputs=x[:2], calibration=[x[:64]])
        with torch.no_grad():
            exact = copy.deepcopy(small.graph_module).double()(x.double())
            for engine in ENGINES:
                print(f"{name:14} {engine:6} {compare(small.lower(engine)(x), exact)}", flush=True)


if __name__ == "__main__":
    main()
