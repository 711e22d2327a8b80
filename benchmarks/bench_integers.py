"""How fast do integers run? Quantized networks on the int8 engine beside float32, eager and compiled, in one run.

    python benchmarks/bench_integers.py [--models NAME ...] [--threads 1] [--seconds 2]

The networks are a ResNet-20 and a ResNet-18 (both for 32 x 32 images) and a MobileNetV2, with random weights and
statistics: neither changes a time. Each is quantized without training to 7-bit weights and 8-bit activations, which run
in integers on every x86 processor, and without a student or pruning, so that the numbers of multiplications are equal.
Rows: ``int8`` the integer engine (nothing of it compiled); with torchao ``pt2e``, the same kernels called from what
Inductor compiles, and ``package``, from what ``export(format="aoti")`` writes; ``float compiled`` the same network in
fake-quantized float by ``torch.compile``; ``eager`` and ``compiled`` the original in float32. All take turns in one
process; times are medians, and ``faster`` compares with the last row, the compiled original.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import peers
import torch
from torch import nn

import chainfx
from chainfx import zoo
from chainfx.deploy import BenchReport, CompressedModel, machine_facts, time_in_turns
from chainfx.passes import PostTrainingQuantize

BATCHES = (1, 64)
NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "resnet20": zoo.resnet20,
    "resnet18": lambda: zoo.resnet((2, 2, 2, 2), 64),
    "mobilenet_v2": zoo.mobilenet_v2,
}


def report_of(
    network: nn.Module, seconds: float, batches: Sequence[int] = BATCHES, *, compiled: bool = True
) -> BenchReport:
    """The times of one network in all its forms, or without ``compiled`` in the three that need no compiler."""
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    small = chainfx.compile(network, [PostTrainingQuantize(7, 8)], example_inputs=x, calibration=[x])
    forms: dict[str, Callable[[torch.Tensor], object]]
    forms = {"int8": small, "float": small.lower("float"), "eager": network}
    if compiled:
        decoded = small.lower("float")
        decoded.compile(dynamic=False)
        forms = {"int8": small, **_by_inductor(small), "float compiled": decoded, "eager": network}
        forms["compiled"] = torch.compile(network)
    latencies = []
    with torch.no_grad():
        for batch in batches:
            images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))
            calls = {name: _call(form, images) for name, form in forms.items()}
            latencies += time_in_turns(calls, batch, seconds)
    return BenchReport(machine_facts(), tuple(forms), tuple(latencies))


def _by_inductor(small: CompressedModel) -> dict[str, Callable[[torch.Tensor], object]]:
    """The network as Inductor compiles it for this process, and in a package; nothing without torchao."""
    with TemporaryDirectory() as folder:
        package = peers.packaged(small, Path(folder))
    return {} if package is None else {"pt2e": small.lower("pt2e"), "package": package}


def _call(form: Callable[[torch.Tensor], object], images: torch.Tensor) -> Callable[[], object]:
    return lambda: form(images)


def main() -> None:
    parser = argparse.ArgumentParser(description="Integers beside float32.")
    parser.add_argument("--models", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name in given.models:
        torch.manual_seed(0)
        print(f"\n{name}\n{report_of(NETWORKS[name]().eval(), given.seconds)}")


if __name__ == "__main__":
    main()
