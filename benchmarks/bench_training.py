"""How fast does the default trainer train, beside a loop written by hand? Images a second, in turns, as ratios.

    python benchmarks/bench_training.py --images 512 --rounds 3

Both train the same network on the same images in memory (32x32, random), with the same batches, crops and flips, SGD
with momentum, autocast where the trainer uses it, on a GPU where torch has one. The loop by hand is what a user would
write: normalised images on the device, no check, no report. The trainer does what it does for everybody, with its
checks and its schedule; its two looks at one validation image are timed by themselves and taken off. Each round times
one epoch of both; on a processor time is that of the processor, on one thread. The ratio is the median over rounds.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

import chainfx
from chainfx import zoo
from chainfx.passes import Quantize, TuneRequest
from chainfx.training import Augment, Data, Trainer, from_arrays

SIZES = {"resnet20": 128, "resnet34": 64, "w1a8 resnet34": 64}


def network(name: str, data: Data) -> GraphModule:
    """The network in train form, with quantizers where the name says so."""
    torch.manual_seed(0)
    model = getattr(zoo, name.removeprefix("w1a8 "))().eval()
    if name.startswith("w1a8"):
        small = chainfx.compile(
            model,
            [Quantize(1, 8)],
            example_inputs=data.example_inputs(2),
            calibration=data.calibration(64, 64),
            on_stage=(stages := []).append,
            engine="float",
        )
        assert small.report.records[-1].modified
        return copy.deepcopy(stages[-1].graph_module)
    return copy.deepcopy(chainfx.capture(model, data.example_inputs(2)))


def by_hand(model: nn.Module, data: Data, size: int, dtype: torch.dtype) -> Callable[[], None]:
    """One epoch of a plain loop."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    model = model.to(device, memory_format=layout).train()
    images, labels = (torch.cat(parts).to(device) for parts in _everything(data, size))
    optimizer = torch.optim.SGD(model.parameters(), 0.005, momentum=0.9, weight_decay=5e-4, fused=device.type == "cuda")
    generator = torch.Generator().manual_seed(0)

    def epoch() -> None:
        for index in torch.randperm(len(images), generator=generator).split(size)[: len(images) // size]:
            batch = crop_and_flip(images[index.to(device)], generator).contiguous(memory_format=layout)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = F.cross_entropy(model(batch), labels[index.to(device)])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
        float(loss.detach())

    return epoch


def _everything(data: Data, size: int) -> tuple[list[Tensor], list[Tensor]]:
    batches = list(data.train.batches(size))
    return [inputs[0] for inputs, _ in batches], [labels for _, labels in batches]


def crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Padding of 4, a crop of each image, and half of them flipped."""
    count, _, height, _ = images.shape
    corners = torch.randint(0, 9, (2, count, 1), generator=generator).to(images.device)
    rows, columns = (corner + torch.arange(height, device=images.device) for corner in corners)
    samples = torch.arange(count, device=images.device)[:, None, None]
    padded = F.pad(images, [4] * 4).permute(0, 2, 3, 1)
    images = padded[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    flips = torch.rand(count, generator=generator).to(images.device) < 0.5
    return torch.where(flips[:, None, None, None], images.flip(3), images)


def by_trainer(model: GraphModule, trainer: Trainer) -> Callable[[], None]:
    """One epoch of the trainer."""
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    request = TuneRequest(loss="task", from_scratch=True)
    return lambda: trainer.tune(model, request, seed=0, on_epoch=lambda epoch: None)


def seconds(call: Callable[[], None]) -> float:
    """How long a call takes: time of the processor where it computes, so that other programs do not count."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    call()
    return clock() - start


def main() -> None:
    """Print a row for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, help="for all networks; 128 and 64 unless given")
    parser.add_argument("--networks", nargs="*", default=list(SIZES))
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    print("| network | batch | by hand, images/s | trainer, images/s | ratio |\n|---|---|---|---|---|")
    for name in options.networks:
        size = options.batch or SIZES[name]
        count = options.images + 2
        images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        labels = np.arange(count) % 10
        data = from_arrays(images, labels, (images[:10], labels[:10]), validation=1 / count)
        trainer = Trainer(data, epochs=1, batch_size=size, augment=Augment(), precision=options.precision)
        model = network(name, data)
        dtype = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
        hand, ours = by_hand(copy.deepcopy(model), data, size, dtype), by_trainer(model, trainer)
        seen = data.train.steps(size) * size
        rates: list[tuple[float, float]] = []
        for _ in range(options.rounds + 1):  # the first warms up
            plain, mine = seconds(hand), seconds(ours)
            mine -= 2 * seconds(lambda: trainer.evaluate(model))  # noqa: B023  # called at once
            rates.append((seen / plain, seen / mine))
        ratio = statistics.median(mine / plain for plain, mine in rates[1:])
        plain, mine = (statistics.median(each) for each in zip(*rates[1:], strict=True))
        print(f"| {name} | {size} | {plain:.0f} | {mine:.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
