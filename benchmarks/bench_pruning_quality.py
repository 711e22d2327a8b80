"""How good are the channels that are left? chainfx and Torch-Pruning on one pretrained CIFAR-10 ResNet-56.

    python benchmarks/bench_pruning_quality.py --data CIFAR10 --weights resnet56.pt

``CIFAR10`` holds ``train.npz`` and ``test.npz`` (``images`` uint8 (N, 32, 32, 3), ``labels``); the weights are the
state dict of a ResNet-56 with parameter-free shortcuts. Both tools prune the same network to the same MACs, choose
among the same channels (the inner ones of every block), and may look at the same 512 training images. A criterion is
chosen for each tool and point on ``--held-out`` training images, and only what was chosen is run on the test images.
With ``--epochs`` the ``--finalists`` best criteria of each tool at every point are then tuned alike, once with every
seed; the one that is best on the held-out images after that is run on the test images. Every result is kept in
``--cache``, so that a run can be resumed.
"""

import argparse
import contextlib
import copy
import itertools
import json
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from chainfx import zoo
from chainfx.errors import ChainfxError
from chainfx.ir.capture.ways import capture
from chainfx.ir.graph.edit import evaluating
from chainfx.passes.base import PassContext, TuneRequest
from chainfx.passes.prune_channels import PruneChannels
from chainfx.passes.pruning.importance import importance_names
from chainfx.training import Augment, Data, Trainer
from chainfx.training.sources import from_arrays

POINTS = (0.9, 0.8, 0.7, 0.6, 0.5)
SAMPLES = 512
NORMALISATION = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
RESIDUAL = ("conv1", "*.conv2")
FITTED = ("activation", "fpgm", "l2", "obs", "reconstruction")


@dataclass(frozen=True)
class Method:
    """A way to prune: ``make(target)`` gives the network with at most that share of the MACs."""

    tool: str
    name: str
    make: Callable[[float], nn.Module]


def pretrained(weights: Path) -> nn.Module:
    """The zoo's ResNet-56 with the weights of a public checkpoint."""
    model = zoo.resnet56()
    zoo.load_weights(model, weights)
    return model.eval()


def load(folder: Path, held_out: int, train_samples: int | None) -> Data:
    """CIFAR-10 with ``held_out`` training images for choosing, and at most ``train_samples`` others for tuning."""
    train, test = (np.load(folder / f"{part}.npz") for part in ("train", "test"))
    used = len(train["labels"]) if train_samples is None else min(train_samples + held_out, len(train["labels"]))
    images, labels = train["images"][-used:], train["labels"][-used:]
    return from_arrays(images, labels, (test["images"], test["labels"]), validation=held_out / used, **NORMALISATION)


def macs(model: nn.Module) -> int:
    """MACs of one image, as torch counts them for any kind of module."""
    with evaluating(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops() // 2


def accuracy(model: nn.Module, batches: Any) -> float:
    """Share of right answers."""
    right = total = 0
    with evaluating(model), torch.no_grad():
        for inputs, labels in batches:
            right += int((model(*inputs).argmax(1) == labels).sum())
            total += len(labels)
    return right / total


def recalibrated(model: nn.Module, batches: list[Tensor]) -> nn.Module:
    """A copy with BatchNorm statistics measured anew on the calibration images."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
            module.momentum = None
    model.train()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    return model.eval()


def ours(model: nn.Module, calibration: list[Tensor]) -> Iterator[Method]:
    """Every importance of chainfx, uniform and global."""
    example = (calibration[0][:1],)
    graph_module = capture(model, example)
    context = PassContext(graph_module, example, calibration=[(batch,) for batch in calibration])

    def pruned(target: float, **options: Any) -> nn.Module:
        return (
            PruneChannels(macs=target, round_to=1, **options).apply(copy.deepcopy(graph_module), context).graph_module
        )

    for name in importance_names():
        for scope in ("uniform", "global"):
            options = {"importance": name, "scope": scope, "skip": RESIDUAL}
            yield Method("chainfx", f"{name} {scope}", lambda target, o=options: pruned(target, **o))
    for name in FITTED:
        options = {"importance": name, "scope": "global", "skip": RESIDUAL, "compensate": True}
        yield Method("chainfx, compensate", f"{name} global", lambda target, o=options: pruned(target, **o))


def theirs(model: nn.Module, calibration: list[Tensor], labels: Tensor) -> Iterator[Method]:
    """Torch-Pruning's own criteria, local and global, with the settings of its README."""
    import torch_pruning as tp

    gradients, squares = _gradients(model, torch.cat(calibration), labels)
    magnitude = tp.importance.GroupMagnitudeImportance
    criteria: dict[str, Callable[[], Any]] = {
        "l1": lambda: tp.importance.MagnitudeImportance(p=1, normalizer=None, group_reduction="first"),
        "l2": lambda: tp.importance.MagnitudeImportance(p=2, normalizer=None, group_reduction="first"),
        "group l1": lambda: magnitude(p=1),
        "group l2": lambda: magnitude(p=2),
        "bn": tp.importance.BNScaleImportance,
        "fpgm": tp.importance.FPGMImportance,
        "lamp": tp.importance.LAMPImportance,
        "taylor": tp.importance.TaylorImportance,
        "hessian": tp.importance.HessianImportance,
        "random": tp.importance.RandomImportance,
    }

    def pruned(ratio: float, importance: Callable[[], Any], scope: str) -> nn.Module:
        copied = copy.deepcopy(model)
        for name, parameter in copied.named_parameters():
            parameter.grad = (squares if importance is criteria["hessian"] else gradients)[name].clone()
        ignored = [copied.conv1, copied.fc, *(block.conv2 for stage in copied.stages for block in stage)]
        pruner = tp.pruner.BasePruner(
            copied,
            calibration[0][:1],
            importance=importance(),
            pruning_ratio=ratio,
            global_pruning=scope == "global",
            max_pruning_ratio=0.95 if scope == "global" else 1.0,
            ignored_layers=ignored,
        )
        torch.manual_seed(0)
        pruner.step()
        copied.zero_grad()
        return copied.eval()

    for name, importance in criteria.items():
        for scope in ("local", "global"):
            make = _searched(model, lambda ratio, i=importance, s=scope: pruned(ratio, i, s))
            yield Method("torch-pruning", f"{name} {scope}", make)


def _searched(model: nn.Module, prune: Callable[[float], nn.Module]) -> Callable[[float], nn.Module]:
    """The least pruning ratio that reaches a share of the MACs, found by bisection."""
    whole = macs(model)

    def make(target: float) -> nn.Module:
        low, high, best = 0.0, 0.99, None
        for _ in range(8):
            ratio = (low + high) / 2
            with contextlib.suppress(RuntimeError, ZeroDivisionError, ValueError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                candidate = prune(ratio)
                if macs(candidate) > target * whole:
                    low = ratio
                    continue
                best = candidate
            high = ratio
        if best is None:
            raise RuntimeError(f"no ratio reaches {target}")
        return best

    return make


def _gradients(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The gradient of the mean loss, and the mean square of the gradients of single images."""
    model = copy.deepcopy(model)
    mean = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    square = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for image, label in zip(images, labels, strict=True):
        model.zero_grad()
        F.cross_entropy(model(image[None]), label[None]).backward()
        for name, parameter in model.named_parameters():
            mean[name] += parameter.grad / len(images)
            square[name] += parameter.grad**2 / len(images)
    return mean, square


class Results:
    """Numbers by key, kept in a file."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text()) if path and path.exists() else {}

    def get(self, key: str, compute: Callable[[], Any]) -> Any:
        if key not in self.found:
            self.found[key] = compute()
            if self.path:
                self.path.write_text(json.dumps(self.found, indent=1))
        return self.found[key]


def main() -> None:
    """Run the comparison and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--held-out", type=int, default=2000)
    parser.add_argument("--points", type=float, nargs="+", default=POINTS)
    parser.add_argument("--only", default="", help="regular expression of 'tool: method'")
    parser.add_argument("--test-samples", type=int, default=10_000)
    parser.add_argument("--recalibrate", action="store_true", help="also with BatchNorm statistics measured anew")
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--train-samples", type=int, default=None, help="images to calibrate and tune with")
    parser.add_argument("--tune-samples", type=int, default=None, help="tune with the first of these only")
    parser.add_argument("--finalists", type=int, default=2, help="criteria of each tool to tune at every point")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the tuning")
    parser.add_argument("--cache", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data, model = load(args.data, args.held_out, args.train_samples), pretrained(args.weights)
    results, whole = Results(args.cache), macs(model)
    batches = list(data.train.batches(128))
    calibration, labels = (
        [x for (x,), _ in batches[: SAMPLES // 128]],
        torch.cat([y for _, y in batches[: SAMPLES // 128]]),
    )
    held = list(data.validation.batches(250))
    methods = [
        m
        for m in (*ours(model, calibration), *theirs(model, calibration, labels))
        if re.search(args.only, f"{m.tool}: {m.name}")
    ]
    print(f"ResNet-56, {whole / 1e6:.2f} M MACs, accuracy without tuning on {args.held_out} held-out training images")
    print(f"{'MACs left':42}" + "".join(f"{point:>16.0%}" for point in args.points))
    for method in methods:
        row = []
        for point in args.points:
            row.append(
                results.get(
                    f"{method.tool}: {method.name} @{point}", lambda m=method, p=point: _measured(m, p, whole, held)
                )
            )
        print(f"{method.tool + ': ' + method.name:42}" + "".join(f"{_shown(each):>16}" for each in row), flush=True)
    test = list(itertools.islice(data.test.batches(250), args.test_samples // 250))
    if test:
        _chosen(methods, args, results, test, calibration)
    if args.epochs:
        _tuned(methods, args, results, test, data)


def _measured(method: Method, point: float, whole: int, held: Any) -> Any:
    try:
        model = method.make(point)
    except (RuntimeError, ChainfxError) as error:
        return {"error": str(error)}
    return {
        "macs": macs(model) / whole,
        "held-out": accuracy(model, held),
    }


def _shown(found: dict[str, Any]) -> str:
    return "unreachable" if "error" in found else f"{found['held-out']:.3f} ({found['macs']:.3f})"


def _best(methods: list[Method], results: Results, point: float) -> list[Method]:
    """The methods that reach a point, the best on the held-out images first."""
    found = {id(m): results.found[f"{m.tool}: {m.name} @{point}"] for m in methods}
    reached = [m for m in methods if "error" not in found[id(m)]]
    return sorted(reached, key=lambda m: found[id(m)]["held-out"], reverse=True)


def _chosen(methods: list[Method], args: Any, results: Results, test: Any, calibration: list[Tensor]) -> None:
    """The best method of each tool at every point, on the test images."""
    print(f"\nchosen on the held-out images, run once on {250 * len(test)} test images")
    for point in args.points:
        for tool in dict.fromkeys(method.tool for method in methods):
            best = _best([m for m in methods if m.tool == tool], results, point)[0]
            found = results.get(
                f"{tool}: {best.name} @{point} test",
                lambda b=best, p=point: _tested(b, p, test, args, calibration),
            )
            shown = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
            print(f"{point:4.0%} {tool:20} {best.name:24} {shown}", flush=True)


def _tested(method: Method, point: float, test: Any, args: Any, calibration: list[Tensor]) -> dict[str, float]:
    model = method.make(point)
    found = {"as pruned": accuracy(model, test)}
    if args.recalibrate:
        found["recalibrated"] = accuracy(recalibrated(model, calibration), test)
    return found


def _tuned(methods: list[Method], args: Any, results: Results, test: Any, data: Data) -> None:
    """The finalists of each tool after the same tuning; that which is then best on the held-out images is tested."""
    few = slice(args.tune_samples)
    data = replace(data, train=replace(data.train, images=data.train.images[few], labels=data.train.labels[few]))
    print(
        f"\nafter {args.epochs} epochs of {len(data.train.labels)} training images, seeds {args.seeds}: "
        f"the best on the held-out images of {args.finalists} criteria, on {250 * len(test)} test images"
    )
    for point in args.points:
        for tool in ("chainfx", "torch-pruning"):
            finalists = _best([m for m in methods if m.tool.startswith(tool)], results, point)[: args.finalists]
            found = results.get(
                f"{tool} @{point} tuned {args.epochs} x {len(data.train.labels)} {args.finalists} {args.seeds}",
                lambda f=finalists, p=point: _tuned_and_tested(f, p, args, test, data),
            )
            seeds = ", ".join(f"{value:.4f}" for value in found["test"])
            print(
                f"{point:4.0%} {tool:14} {found['method']:42} held-out {found['held-out'][found['method']]:.4f}, "
                f"test {mean(found['test']):.4f} ({seeds})",
                flush=True,
            )


def _tuned_and_tested(finalists: list[Method], point: float, args: Any, test: Any, data: Data) -> dict[str, Any]:
    trainer = Trainer(data, epochs=args.epochs, augment=Augment())
    networks: dict[str, list[nn.Module]] = {}
    for method in finalists:
        networks[f"{method.tool}: {method.name}"] = tuned = [method.make(point) for _ in args.seeds]
        for model, seed in zip(tuned, args.seeds, strict=True):
            trainer.tune(model, TuneRequest(), seed=seed, on_epoch=lambda epoch: None)
    held = {name: mean(trainer.evaluate(model) for model in tuned) for name, tuned in networks.items()}
    best = max(held, key=held.__getitem__)
    return {"method": best, "held-out": held, "test": [accuracy(model, test) for model in networks[best]]}


if __name__ == "__main__":
    main()
