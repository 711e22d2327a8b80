"""Process replay: hashes of what chainfx makes of a corpus, so that a refactoring can show that it changed nothing.

Usage: .venv/bin/python -m tools.replay --write before.json       (on the commit before)
       .venv/bin/python -m tools.replay --against before.json     (after; prints every difference, exit status 1 if any)

The corpus: the networks of the zoo, sixteen of torchvision, and chains of passes (every order of the four passes, the
paper's lines, each pass alone). Hashed are the text of the captured graph, the cost reports under every convention, the
channel analyses, the pruned graphs with all their tensors, and for chains the plan, the records and the deploy form.
Module paths of chainfx's own functions are left out of graph text, and seconds, keys, what trainers were asked for and
the cost report (which is hashed by itself) out of records, since none of them says more of what was computed.
``--only`` runs the cases whose name matches a pattern.
"""

import argparse
import copy
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torch.fx import GraphModule

import chainfx
from chainfx import zoo
from chainfx.ir.channels.analyse import analyse_channels
from chainfx.passes import (
    Distill,
    EarlyExit,
    Fuse,
    LowRank,
    Pass,
    PassContext,
    PruneChannels,
    PruneHeads,
    PruneWeights,
    Quantize,
)
from tests.nets import images, small_resnet, warm
from tests.trainers import FakeTrainer

TORCHVISION = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5"),
    *("mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "resnet50", "shufflenet_v2_x0_5"),
    *("squeezenet1_1", "swin_t", "vit_b_16"),
)
CONVENTIONS = ("mac_bw_ba", "strict")
FOUR = {
    "D": Distill(depth=0.5),
    "P": PruneChannels(0.4, round_to=1),
    "Q": Quantize(3, 4),
    "E": EarlyExit(exits=1, max_drop=0.2, keep=True),
}
ALONE = (
    *(Fuse(), LowRank(energy=0.6), PruneWeights(0.7), PruneWeights(pattern="2:4"), Quantize(1, 2), Quantize(4, 4)),
    *(PruneChannels(0.4, importance="bn"), PruneChannels(macs=0.5), PruneChannels(0.3, compensate=True)),
    *(Distill(width=0.5), EarlyExit(exits=2, threshold=0.4, keep=True)),
)
HIDDEN = ("seconds", "fingerprint", "parent", "report", "revision", "surroundings", "requests")


def cases() -> Iterator[tuple[str, Callable[[], dict[str, str]]]]:
    """Every case by name, with the function that gives its hashes."""
    for name in (
        name for name in zoo.NETWORKS if name not in ("resnet", "vgg", "lenet5", "lenet_300_100", "mlp", "gru", "vit")
    ):
        yield f"zoo.{name}", lambda name=name: network(_seeded(getattr(zoo, name)), 32)
    for name in TORCHVISION:
        size = 299 if name == "inception_v3" else 224
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        yield name, lambda n=name, o=options, s=size: network(_seeded(torchvision.models.get_model, n, **o), s)
    for letters in map("".join, permutations("DPQE")):
        yield f"chain.{letters}", lambda letters=letters: chain([FOUR[letter] for letter in letters], "given")
    yield "chain.auto", lambda: chain(list(reversed(FOUR.values())), "auto")
    for one in ALONE:
        yield f"alone.{one.label}", lambda one=one: chain([one], "auto")
    yield "alone.prune-heads", lambda: heads(PruneHeads(0.5))


def _seeded(make: Callable[..., nn.Module], *args: Any, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return warm(make(*args, **options))


def network(model: nn.Module, size: int) -> dict[str, str]:
    """Capture, count, analyse and prune one network for images of ``size`` pixels."""
    inputs = (torch.zeros(1, 3, size, size),)
    graph_module = copy.deepcopy(chainfx.capture(model, inputs))
    found = {"graph": _hash(_text(graph_module))}
    for convention in CONVENTIONS:
        found[f"report {convention}"] = _hash(chainfx.count(model, inputs, convention).to_dict())
        found[f"report of the graph {convention}"] = _hash(chainfx.count(graph_module, inputs, convention).to_dict())
    for fold in ("width", "heads"):
        found[f"channels by {fold}"] = _hash(analyse_channels(graph_module, inputs, fold).to_dict())
    result = PruneChannels(0.5, round_to=1).apply(graph_module, PassContext(graph_module, inputs))
    found["pruned"] = _hash([_text(result.graph_module), [[each.node, each.reason] for each in result.skipped]])
    found["pruned tensors"] = _tensors(result.graph_module)
    return found


def chain(passes: list[Pass], order: Any) -> dict[str, str]:
    """Compile a small ResNet, with every stage and what is deployed at the end."""
    x, stages = images(16), []
    small = chainfx.compile(
        small_resnet((2, 2)),
        passes,
        example_inputs=x,
        trainer=FakeTrainer(x),
        order=order,
        on_stage=stages.append,
    )
    found = {"plan": _hash(small.report.plan)}
    for stage in stages:
        name = f"{stage.record.index} {stage.record.name}"
        found[f"{name} graph"] = _hash(_text(stage.graph_module))
        found[f"{name} tensors"] = _tensors(stage.graph_module)
        record = {key: value for key, value in stage.record.to_dict().items() if key not in HIDDEN}
        found[f"{name} record"] = _hash(record)
        for convention in CONVENTIONS:
            rates = stage.record.exit_rates or None
            found[f"{name} {convention}"] = _hash(chainfx.count(stage.graph_module, (x,), convention, rates).to_dict())
    found["deployed"] = _hash(_text(small.graph_module))
    found["deployed tensors"] = _tensors(small.graph_module)
    found["answers"] = _of_tensor(small(x))
    return found


def heads(one: Pass) -> dict[str, str]:
    """Prune the heads of a small vision transformer."""
    make = torchvision.models.VisionTransformer
    model = _seeded(make, image_size=16, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64)
    inputs = (torch.zeros(2, 3, 16, 16),)
    graph_module = copy.deepcopy(chainfx.capture(model, inputs))
    result = one.apply(graph_module, PassContext(graph_module, inputs))
    return {"graph": _hash(_text(result.graph_module)), "tensors": _tensors(result.graph_module)}


def _text(graph_module: GraphModule) -> str:
    """The nodes of a graph with their arguments, without the paths of chainfx's modules."""
    return re.sub(r"chainfx[._][a-z_.]*?(?=[a-z_]+\()|chainfx(\.[a-z_]+)*\.", "", str(graph_module.graph))


def _tensors(graph_module: GraphModule) -> str:
    state = graph_module.state_dict()
    return _hash([[name, list(state[name].shape), _of_tensor(state[name])] for name in sorted(state)])


def _of_tensor(tensor: torch.Tensor) -> str:
    data = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(str(tensor.dtype).encode() + data.tobytes()).hexdigest()[:16]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def main() -> int:
    """Write the hashes, or compare them with those that were written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--only", default="*")
    options = parser.parse_args()
    if (options.write is None) == (options.against is None):
        parser.error("give one of --write and --against")
    torch.set_num_threads(1)
    found = {name: run() for name, run in cases() if fnmatchcase(name, options.only)}
    if options.write:
        options.write.write_text(json.dumps(found, indent=1))
        print(f"{len(found)} cases, {sum(map(len, found.values()))} hashes written")
        return 0
    before = {name: case for name, case in json.loads(options.against.read_text()).items() if name in found}
    lines = [
        f"{name}: {what}"
        for name in {**before, **found}
        for what in {**before.get(name, {}), **found.get(name, {})}
        if before.get(name, {}).get(what) != found.get(name, {}).get(what)
    ]
    print(*lines, sep="\n")
    print(f"{len(found)} cases, {sum(map(len, found.values()))} hashes, {len(lines)} differ")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
