"""Tune a pruned and a one-bit ResNet-20 with the loss of the task and by distillation, and write the table of the docs.

Usage: .venv/bin/python -m tools.recovery_table --data CIFAR10 --weights resnet20.pt

``CIFAR10`` holds ``train.npz`` and ``test.npz`` (``images`` uint8 (N, 32, 32, 3), ``labels``); the weights are the
state dict of a ResNet-20 with parameter-free shortcuts, whose images are normalised as ImageNet's. Every run is kept in
``--results``, so that the sweep can be stopped and resumed; the page is written when all of them are there.
"""

import argparse
import json
import platform
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch

import chainfx
from chainfx import zoo
from chainfx.passes import Pass, PruneChannels, Quantize
from chainfx.training import Augment, Data, Trainer, from_arrays

PAGE = Path(__file__).parent.parent / "docs" / "results" / "recovery.md"
NORMALISATION = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PASSES: dict[str, Pass] = {"prune to half of the MACs": PruneChannels(macs=0.5), "W1A8": Quantize(1, 8)}
LOSSES = {"task": "loss of the task", "recover": "distillation from the original"}
HEADER = """# Recovery by distillation

Written by `{command}` (torch {torch}, {machine}, one thread); do not edit by hand.

A ResNet-20 for CIFAR-10 with public weights ({original} on the {test} test images used here) is compressed by one pass
and tuned for {epochs} epochs on {train} training images with the default trainer (batches of {batch}, learning rate
{rate} for fine-tuning, crops and flips), once with the loss of the task (`tuning={{"*": {{"loss": "task"}}}}`) and once
by distillation from the original network, which is the default. Everything else is the same: images, order, epochs. The
epoch is chosen on {held} other training images; the numbers are test accuracies, the mean and the standard deviation
over {seeds} seeds, and the difference of the two losses with the same seed. So short a tuning shows which loss recovers
faster, not where either ends.

| pass | before tuning | {losses} | difference |
|---|---|---|---|---|
"""


def main() -> None:
    """Run what has no result yet, then write the page."""
    options = _options()
    torch.set_num_threads(1)
    data = _data(options)
    results: dict[str, float] = json.loads(options.results.read_text()) if options.results.exists() else {}
    for name, one in PASSES.items():
        for seed in range(options.seeds):
            for loss in LOSSES:
                key = f"{name} / {seed} / {loss}"
                if key not in results:
                    results[key] = _accuracy(one, loss, seed, data, options)
                    options.results.write_text(json.dumps(results, indent=1))
                    print(f"{key}: {results[key]:.2%}", flush=True)
        key = f"{name} / untuned"
        if key not in results:
            results[key] = _untuned(one, data, options)
            options.results.write_text(json.dumps(results, indent=1))
    original = _trainer(data, options).test(_original(options))
    PAGE.write_text(_page(results, original, data, options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--held-out", type=int, default=500)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path("recovery.json"))
    return parser.parse_args()


def _data(options: argparse.Namespace) -> Data:
    train, test = (np.load(options.data / f"{part}.npz") for part in ("train", "test"))
    used = options.train + options.held_out
    held = (test["images"][: options.test], test["labels"][: options.test])
    share = options.held_out / used
    return from_arrays(train["images"][-used:], train["labels"][-used:], held, validation=share, **NORMALISATION)


def _original(options: argparse.Namespace) -> torch.nn.Module:
    model = zoo.resnet20()
    zoo.load_weights(model, options.weights)
    return model.eval()


def _trainer(data: Data, options: argparse.Namespace) -> Trainer:
    return Trainer(
        data,
        epochs=options.epochs,
        batch_size=64,
        learning_rate=0.1,
        fine_tune_scale=0.2,
        precision="float32",
        augment=Augment(),
    )


def _accuracy(one: Pass, loss: str, seed: int, data: Data, options: argparse.Namespace) -> float:
    trainer = _trainer(data, options)
    small = chainfx.compile(
        _original(options),
        [one],
        example_inputs=data.example_inputs(2),
        trainer=trainer,
        tuning={"*": {"loss": loss}},
        seed=seed,
        warn_drop=None,
        engine="float",
    )
    return trainer.test(small)


def _untuned(one: Pass, data: Data, options: argparse.Namespace) -> float:
    calibration = data.calibration(512, 64)
    inputs = data.example_inputs(2)
    small = chainfx.compile(_original(options), [one], example_inputs=inputs, calibration=calibration, engine="float")
    return _trainer(data, options).test(small)


def _page(results: dict[str, float], original: float, data: Data, options: argparse.Namespace) -> str:
    trainer = _trainer(data, options)
    header = HEADER.format(
        command="python -m tools.recovery_table --data CIFAR10 --weights resnet20.pt",
        torch=torch.__version__,
        machine=platform.machine(),
        original=f"{original:.2%}",
        test=f"{len(data.test):,}",
        train=f"{len(data.train):,}",
        held=f"{len(data.validation):,}",
        epochs=options.epochs,
        batch=trainer.batch_size,
        rate=f"{trainer.learning_rate * trainer.fine_tune_scale:g}",
        seeds=options.seeds,
        losses=" | ".join(LOSSES.values()),
    )
    return header + "".join(_row(name, results, options.seeds) for name in PASSES)


def _row(name: str, results: dict[str, float], seeds: int) -> str:
    by_loss = {loss: [results[f"{name} / {seed} / {loss}"] for seed in range(seeds)] for loss in LOSSES}
    gains = [other - own for own, other in zip(*by_loss.values(), strict=True)]
    cells = [_cell(values, ".2%") for values in by_loss.values()]
    return f"| {name} | {results[f'{name} / untuned']:.2%} | {' | '.join(cells)} | {_cell(gains, '+.2%')} |\n"


def _cell(values: list[float], form: str) -> str:
    return f"{mean(values):{form}} ± {stdev(values):.2%}"


if __name__ == "__main__":
    main()
