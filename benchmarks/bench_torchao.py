"""``TorchaoQuantize`` beside torchao alone: the same kernels, so the same error and the same time?

    python -W ignore benchmarks/bench_torchao.py [--networks NAME ...] [--batches 1 8] [--seconds 1] [--pt2e]

``vit_b_16``: torchvision's, 224 pixels, of 12 ``--layers``. ``gpt2 block``: a block of a language model as wide as the
small GPT-2 (768 numbers, 12 heads, causal attention, 128 words). Weights are random. Rows, all compiled by
``torch.compile`` in float32 but for what is quantized, one thread, in turns:

``float``    the network
``alone``    after ``torchao.quantization.quantize_``, by configuration
``chainfx``  ``chainfx.compile(network, [TorchaoQuantize(config)])``, without the layers of ``nn.MultiheadAttention``,
             which ``quantize_`` does not see

With ``--pt2e``: ``alone pt2e``, quantized by torchao's PT2E for x86, and ``chainfx pt2e``, by
``PostTrainingQuantize(7, 8)`` on the engine ``pt2e``; and ``chainfx int8``, the same on the engine ``int8``. These
quantize activations beforehand. *error*: the norm of the difference to the float network's answers over that of these,
in the last batch size.
"""

import argparse
import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import peers
import torch
import torch.nn.functional as F
from peers import Peer
from torch import Tensor, nn

import chainfx
from chainfx.deploy import BenchReport, machine_facts, time_in_turns
from chainfx.passes import PostTrainingQuantize, TorchaoQuantize

CONFIGS = {"dynamic": "Int8DynamicActivationInt8WeightConfig", "weights": "Int8WeightOnlyConfig"}
LENGTH = 128


class GPTBlock(nn.Module):
    """A block of a language model before normalization: (N, length, width) -> the same."""

    def __init__(self, width: int = 768, heads: int = 12) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Causal attention and a perceptron, each added to what came in."""
        count, length, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(count, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(count, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


def network_of(name: str, **options: Any) -> tuple[nn.Module, tuple[int, ...]]:
    """A network in eval mode, and the shape of one sample; ``options`` make it smaller."""
    import torchvision

    torch.manual_seed(0)
    if name == "gpt2 block":
        block = GPTBlock(**options).eval()
        return block, (LENGTH, block.proj.in_features)
    vit = torchvision.models.VisionTransformer(
        **{"image_size": 224, "patch_size": 16, "num_layers": 12, "num_heads": 12, "hidden_dim": 768, "mlp_dim": 3072}
        | options
    ).eval()
    nn.init.normal_(vit.heads.head.weight, std=0.02)  # torchvision's are zero, which nothing is relative to
    return vit, (3, vit.image_size, vit.image_size)


@dataclass(frozen=True)
class Measured:
    """Times, and the error of each form."""

    report: BenchReport
    errors: Mapping[str, float]

    def __str__(self) -> str:
        errors = [f"error of {name}: {error:.3e}" for name, error in self.errors.items()]
        return "\n".join([str(self.report), *errors, *self._ratios()])

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"errors": dict(self.errors), **self.report.to_dict()}

    def _ratios(self) -> list[str]:
        times = {(each.network, each.batch): each.p50 for each in self.report.latencies}
        return [
            f"batch {batch}: {name} takes {times[name, batch] / times[alone, batch]:.2f} times as long as {alone}"
            for name, batch in times
            if (alone := name.replace("chainfx", "alone")) != name and (alone, batch) in times
        ]


def measure(
    network: nn.Module,
    shape: Sequence[int],
    batches: Sequence[int],
    seconds: float,
    *,
    configs: Sequence[str] = tuple(CONFIGS),
    pt2e: bool = False,
    eager: bool = False,
) -> Measured:
    """The times and errors of one network in all its forms."""
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    forms = _forms(network, x, configs, pt2e=pt2e, ready=peers.eager if eager else peers.compiled)
    latencies = []
    with torch.no_grad():
        for batch in batches:
            given = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1))
            exact = network(given)
            torch.compiler.reset()  # else torch stops to compile after so many batch sizes of one piece of code
            # each has an input of its own, since what torchao alone makes writes over it
            calls = {name: ready(given.clone()) for name, ready in forms.items()}
            errors = {name: _error(call(), exact) for name, call in calls.items()}
            latencies += time_in_turns(calls, batch, seconds)
    return Measured(BenchReport(machine_facts(), tuple(forms), tuple(latencies)), errors)


def _forms(
    network: nn.Module, x: Tensor, configs: Sequence[str], *, pt2e: bool, ready: Callable[[nn.Module], Peer]
) -> dict[str, Peer]:
    """The network by torchao alone and by chainfx, and as it is."""
    import torchao.quantization

    forms: dict[str, Peer] = {}
    unseen = tuple(f"{path}*" for path, each in network.named_modules() if isinstance(each, nn.MultiheadAttention))
    for name in configs:
        config = CONFIGS[name]
        alone = copy.deepcopy(network)
        torchao.quantization.quantize_(alone, getattr(torchao.quantization, config)())
        forms[f"alone {name}"] = ready(alone)
        small = chainfx.compile(network, [TorchaoQuantize(f"{config}()", skip=unseen)], example_inputs=x)
        forms[f"chainfx {name}"] = ready(small)
    if pt2e:
        small = chainfx.compile(network, [PostTrainingQuantize(7, 8)], example_inputs=x, calibration=[x])
        forms["alone pt2e"] = peers.compiled(peers.by_torchao(network, x))
        forms["chainfx pt2e"] = peers.eager(small.lower("pt2e"))
        forms["chainfx int8"] = peers.eager(small)
    return {**forms, "float": ready(network)}


def _error(given: Tensor, exact: Tensor) -> float:
    return float((given - exact).norm() / exact.norm())


def main() -> None:
    """Print a table for each network, or JSON."""
    parser = argparse.ArgumentParser(description="chainfx and torchao beside torchao alone.")
    parser.add_argument("--networks", nargs="+", default=["vit_b_16", "gpt2 block"], choices=["vit_b_16", "gpt2 block"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--configs", nargs="+", default=list(CONFIGS), choices=CONFIGS)
    parser.add_argument("--eager", action="store_true", help="compile nothing but what is for pt2e")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--pt2e", action="store_true", help="static quantization too, which takes minutes to compile")
    parser.add_argument("--layers", type=int, default=12, help="blocks of vit_b_16")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    sizes: dict[str, dict[str, Any]] = {"vit_b_16": {"num_layers": given.layers}, "gpt2 block": {}}
    found = {
        name: measure(
            *network_of(name, **sizes[name]),
            given.batches,
            given.seconds,
            configs=given.configs,
            pt2e=given.pt2e,
            eager=given.eager,
        )
        for name in given.networks
    }
    if given.json:
        print(json.dumps({name: each.to_dict() for name, each in found.items()}))
        return
    for name, each in found.items():
        print(f"\n{name}", each, sep="\n", flush=True)


if __name__ == "__main__":
    main()
