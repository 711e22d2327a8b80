"""What does one call cost? An integer layer of chainfx beside the operator of torch that it calls, in microseconds.

    python -W ignore benchmarks/bench_calls.py [--seconds 1]

3x3 convolutions of some channels on images of some pixels, a 1x1 one that leaves out pixels, one that adds, a linear
layer, and the quantizer of an image. ``operator``: the call of oneDNN's operator alone, its arguments ready and its
weight packed. ``layer``: the module that a network calls. One thread, in turns, medians.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from chainfx.deploy import time_in_turns
from chainfx.deploy.integers.grids import Encode, Grid
from chainfx.deploy.integers.kernels import Geometry, LayerCall, _Arguments, _packed
from chainfx.deploy.integers.layers import IntegerLayer

READ, WRITTEN = Grid(0.02, 0, 255), Grid(0.5, 0, 255)
Call = Callable[[], Tensor]


def convolution(channels: int, size: int, kernel: int = 3, stride: int = 1, *, adds: bool = False) -> tuple[Call, Call]:
    """The operator and the layer for one image of a convolution with as many channels out as in."""
    geometry = Geometry((stride, stride), (kernel // 2, kernel // 2), (1, 1), 1)
    call = LayerCall(READ, 8, "uniform", geometry, WRITTEN, WRITTEN if adds else None)
    codes = _codes(1, channels, size, size).contiguous(memory_format=torch.channels_last)
    layer = _layer(call, (channels, channels, kernel, kernel))
    layer.overwrites = adds
    added = (codes.clone(),) if adds else ()
    kept = codes[:, :, ::stride, ::stride].contiguous(memory_format=torch.channels_last) if kernel == 1 else codes
    given, (packed, zeros) = (
        _Arguments.of_text(call.to_text()),
        _packed(call.to_text(), kept, layer.weight, layer.scale),
    )
    sliding = ([1, 1], *given.sliding[1:]) if kernel == 1 else given.sliding
    after = (*added, layer.bias, *sliding, *given.written, *(given.summing if adds else given.activation))
    operator = partial(given.operators[adds], kept, *given.read, packed, layer.scale, zeros, *after)
    return operator, partial(layer, codes, *added)


def linear(width: int) -> tuple[Call, Call]:
    """The operator and the layer for one row."""
    call, codes = LayerCall(READ, 8, "uniform", None, WRITTEN), _codes(1, width)
    layer = _layer(call, (width, width))
    given, (packed, zeros) = (
        _Arguments.of_text(call.to_text()),
        _packed(call.to_text(), codes, layer.weight, layer.scale),
    )
    rest = (packed, layer.scale, zeros, layer.bias, *given.written, *given.activation)
    return partial(given.operators[0], codes, *given.read, *rest), partial(layer, codes)


def _codes(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def _layer(call: LayerCall, shape: tuple[int, ...]) -> IntegerLayer:
    weight = torch.randint(-63, 64, shape, generator=torch.Generator().manual_seed(1)).to(torch.int8)
    return IntegerLayer(call, weight, torch.full(shape[:1], 0.01), torch.zeros(shape[0]))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="The cost of one call.")
    parser.add_argument("--seconds", type=float, default=1.0)
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    layers = {
        "3x3, 8 channels, 8x8": convolution(8, 8),
        "3x3, 16 channels, 8x8": convolution(16, 8),
        "3x3, 16 channels, 32x32": convolution(16, 32),
        "3x3, 16 channels, 8x8, adds": convolution(16, 8, adds=True),
        "1x1, 16 channels, 8x8, stride 2": convolution(16, 8, 1, 2),
        "linear, 64": linear(64),
    }
    print("| one call | operator | layer |\n|---|--:|--:|")
    with torch.no_grad():
        for name, (operator, layer) in layers.items():
            found = time_in_turns({"operator": operator, "layer": layer}, 1, seconds)
            print(f"| {name} | {found[0].p50 * 1e6:.0f} | {found[1].p50 * 1e6:.0f} |", flush=True)
        encode = partial(Encode(READ), torch.rand(1, 16, 8, 8))
        (found,) = time_in_turns({"encode": encode}, 1, seconds)
        print(f"| quantizer, 16 channels, 8x8 | | {found.p50 * 1e6:.0f} |")


if __name__ == "__main__":
    main()
