"""Deep Compression on MNIST, from training to file: what each stage costs in bytes on disk, and what it is worth.

    python benchmarks/deep_compression.py --data MNIST --part forms --write docs/results/deep_compression.md

``MNIST`` holds ``train.npz`` and ``test.npz`` (``images`` uint8 (N, 28, 28), ``labels``). Options are chosen on 5,000
held-out training images; the test images are run once for each finished network. ``--part`` is one of

``chains-300``, ``chains-5``   LeNet-300-100 and LeNet-5 through whole chains: the layers, the stages, the file
``chains-5-narrow``            LeNet-5 with half of the units of its first linear layer
``chains-5-turned``            the same on images that are turned and stretched too
``chains-5-more``              LeNet-5 with the source's own options
``chains-300-shifted``         LeNet-300-100 trained longer, on images that are moved a little
``inits``                      linear, density, random and optimal codebooks over bits, untuned, dense and pruned
``kinds``                      bits of convolution and linear layers apart, untuned
``orders``                     the chain in other orders
``resnet20``                   a ResNet-20 that was trained elsewhere, on CIFAR-10: bytes after each stage
``resnet34``                   the same of a ResNet-34 that ``chain_artefact.py`` trains and that is compressed first
``forms``                      bytes of each sparse form over sparsities, with the crossovers
``latency``                    sparse, shared and dense execution of one linear layer
``stages``                     the finished stages of any chain (``--data`` is its ``workdir``): bytes of each
``decoding``                   how fast a coded layer becomes float32 weights again

For ``resnet20`` and ``resnet34`` the folder has CIFAR-10 in the same form, and ``--weights`` of ``resnet20`` is a
checkpoint for images normalised as ImageNet's. Finished stages are kept in ``WORK`` and found again. With ``--write``
the section of the page between the marks of the part is replaced, else it is printed.
"""

import argparse
import copy
import math
import re
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import chain_artefact
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule

import chainfx
from chainfx import zoo
from chainfx.coding import CODERS, Reader, coded_bytes, decode_tensor, encode_tensor
from chainfx.coding.places import FORMS, places_by_form
from chainfx.coding.symbols import encode_symbols
from chainfx.deploy import CompressedModel
from chainfx.deploy.lower import to_codes
from chainfx.deploy.sparse import SparseLinear, largest_batch
from chainfx.ir.artifact import array_of, save_graph
from chainfx.ir.graph import Layer, edit, layers_of
from chainfx.passes import Encode, Pass, PassContext, PruneChannels, PruneWeights, ShareWeights
from chainfx.scheduler import open_stage
from chainfx.training import Augment, Data, Trainer
from chainfx.training.sources import Options, from_arrays

HELD_OUT = 5000
FEW_IMAGES = 1000  # that train and tune the ResNet-34, a fifth of them held out
FEW = 5000  # images that tune the ResNet, a fifth of them held out
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPREAD = 0.3081  # of the pixels of MNIST, which are divided by it where images are moved: the background stays 0


@dataclass(frozen=True)
class Recipe:
    """How a network is trained (``epochs``, ``rate``) and tuned after each round and stage (``tuning`` epochs).

    ``shift``: training images are moved by up to so many pixels at random. ``turned``: they are also turned by up to 10
    degrees, and stretched by up to a tenth. ``chains``: by title. ``options``: how passes are tuned other than they
    ask, see :func:`chainfx.compile`.
    """

    network: str
    epochs: int
    tuning: int
    rate: float
    shift: int
    chains: dict[str, tuple[Pass, ...]]
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    turned: bool = False

    @property
    def name(self) -> str:
        """What its files are named after."""
        return f"{self.network}{' shifted' if self.shift else ''}{' turned' if self.turned else ''}"

    @property
    def augment(self) -> Augment | None:
        """What is done to training images."""
        warped = {"degrees": 10.0, "scale": 0.1} if self.turned else {}
        return Augment(self.shift, flip=False, **warped) if self.shift else None


SOURCE_300 = (PruneWeights(0.92, rounds=3), ShareWeights(6), Encode())
# the shares that the source keeps: 66 %, 12 %, 8 % and 19 %
SOURCE_5 = (
    PruneWeights(0.34, skip=("conv2", "fc*")),
    PruneWeights(0.88, skip=("conv1", "fc*")),
    PruneWeights(0.92, skip=("conv*", "fc2")),
    PruneWeights(0.81, skip=("conv*", "fc1")),
    ShareWeights(5),
    Encode(),
)


def shared(bits: int) -> tuple[Pass, ...]:
    """Optimal short codebooks also for biases, and adaptive codes."""
    return ShareWeights(bits, init="optimal", biases=True, entries="bfloat16"), Encode(coder="adaptive")


def tight(ratio: float, bits: int, rounds: int, length: float = 0.0) -> tuple[Pass, ...]:
    """A chain for few bytes: ranked over all layers, then shared and coded."""
    return PruneWeights(ratio, scope="global", rounds=rounds, length=length), *shared(bits)


SPARSE_AND_SHARED = (PruneWeights(0.7, scope="global"), ShareWeights(5, init="optimal"))
SHARED_16 = ShareWeights(4, init="optimal", entries="bfloat16")
PLAIN = Recipe(
    "lenet_300_100",
    epochs=12,
    tuning=6,
    rate=0.1,
    shift=0,
    chains={
        "as the source": SOURCE_300,
        "60x": tight(0.95, 4, rounds=4),
        "9.4 kB": tight(0.965, 4, rounds=5, length=2e-5),
        "few bits": tight(0.98, 3, rounds=5, length=2e-5),
    },
)
SHIFTED_300 = Recipe(
    "lenet_300_100",
    epochs=20,
    tuning=8,
    rate=0.1,
    shift=1,
    chains={
        "60x": tight(0.94, 4, rounds=4),
        "9.4 kB": tight(0.965, 4, rounds=5, length=2e-5),
        "few bits": tight(0.98, 3, rounds=5, length=2e-5),
    },
)
SHIFTED_5 = Recipe(
    "lenet5",
    epochs=10,
    tuning=4,
    rate=0.05,
    shift=2,
    chains={"100x": tight(0.965, 4, rounds=4)},
)
# units of fc1 that nothing feeds any more are the first to go, which is free; what is left is tuned longer and faster
NARROW_5 = replace(
    SHIFTED_5,
    chains={
        "5.7 kB": (
            PruneWeights(0.99, scope="global", rounds=5, length=2e-5),
            PruneChannels(0.5, include=("fc1",)),
            *shared(4),
        )
    },
    options={
        "prune-channels": {"epochs": 40, "learning_rate": 0.03},
        "share-weights": {"epochs": 20, "learning_rate": 0.005},
    },
)
# digits are written at a slant and in all sizes: such images keep a small network from learning its own by heart
TURNED_5 = replace(NARROW_5, epochs=30, turned=True)
MORE_5 = replace(SHIFTED_5, chains={"as the source": SOURCE_5})


def load(folder: Path, shift: int = 0) -> Data:
    """MNIST with held-out training images for choosing."""
    train, test = (np.load(folder / f"{part}.npz") for part in ("train", "test"))
    scale: Options = {"mean": (0.0,), "std": (SPREAD,)} if shift else {}
    held = (test["images"], test["labels"])
    return from_arrays(train["images"], train["labels"], held, validation=HELD_OUT / len(train["labels"]), **scale)


def trained(recipe: Recipe, data: Data, work: Path) -> nn.Module:
    """The network after plain training, which is kept; convolutions in the layout that halves the time here."""
    torch.manual_seed(0)
    model, place = zoo.NETWORKS[recipe.network](), work / f"{recipe.name}.pt"
    model.to(memory_format=torch.channels_last)
    if place.exists():
        model.load_state_dict(torch.load(place, weights_only=True))
    else:
        trainer(recipe, data, recipe.epochs).fit(model, seed=0)
        work.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), place)
    return model.eval()


def trainer(recipe: Recipe, data: Data, epochs: int) -> Trainer:
    """What trains from scratch, and tunes at 0.3 of the rate."""
    return Trainer(data, epochs=epochs, learning_rate=recipe.rate, fine_tune_scale=0.3, augment=recipe.augment)


def compressed(recipe: Recipe, chain: Sequence[Pass], data: Data, work: Path) -> CompressedModel:
    """The network after a chain, in the order given."""
    return chainfx.compile(
        trained(recipe, data, work),
        chain,
        example_inputs=data.example_inputs(2),
        trainer=trainer(recipe, data, recipe.tuning),
        workdir=work / "stages",
        order="given",
        warn_drop=None,
        tuning=recipe.options,
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def chains(recipe: Recipe, folder: Path, work: Path) -> Iterator[str]:
    """Whole chains: the stages in bytes, the layers, the file, and the error on the test images once."""
    data = load(folder, recipe.shift)
    original = trained(recipe, data, work)
    dense = dense_bytes(original)
    judge = trainer(recipe, data, recipe.tuning)
    moved = f", on images moved by up to {recipe.shift} pixels" if recipe.shift else ""
    moved += ", turned by up to 10 degrees and stretched by up to a tenth" if recipe.turned else ""
    yield (
        f"{recipe.network}, {recipe.epochs} epochs of training{moved}, {_tuned(recipe)}: {dense:,} bytes of floats, "
        f"test error {1 - judge.test(original):.2%}.\n"
    )
    for title, chain in recipe.chains.items():
        print(f"{recipe.name}: {title}", flush=True)
        small = compressed(recipe, chain, data, work)
        folder = work / f"{recipe.name} {title}"
        small.save(folder)
        disk = (folder / "model.chainfx").stat().st_size
        again = chainfx.load(folder)
        table_says = small.report.records[-1].after.storage_bits / 8
        error = 1 - judge.test(again)
        labels = " -> ".join(one.label for one in chain)
        yield f"**{title}**: `{labels}`\n"
        yield (
            f"{disk:,} bytes on disk, manifest included: **{dense / disk:.1f}x**, test error **{error:.2%}**, held-out "
            f"error {1 - small.report.records[-1].metric:.2%}. The report's table says {table_says:,.0f} bytes "
            f"({disk / table_says - 1:+.1%}).\n"
        )
        yield layer_table(small, dense)


def _tuned(recipe: Recipe) -> str:
    """How long stages are tuned, in words."""
    others = (f", {options} after {name}" for name, options in recipe.options.items())
    return f"{recipe.tuning} after each round and stage{''.join(others)}"


def layer_table(small: CompressedModel, dense: int) -> str:
    """Per layer what the source prints: weights, kept, bits and index bits before and after coding, and the size."""
    rows, totals = [], np.zeros(4)
    for layer in layers_of(small.graph_module):
        kept, values = mask_of(layer), array_of(layer.tensor)
        adaptive = layer.coded.args[1] == "adaptive"
        forms = places_by_form(kept, adaptive=adaptive)
        form = min(forms, key=lambda each: len(forms[each]))
        book = edit.get_tensor(small.graph_module, layer.weight_path.replace("_codes", "_codebook"))
        bits, stays = (book.numel() - 1).bit_length(), int(kept.sum())
        coded = len(encode_symbols(values[kept], adaptive=adaptive))
        quantized = (bits + 5) * stays / 8 + 4 * book.numel()
        final = coded + len(forms[form]) + coded_bytes(array_of(book))
        totals += (kept.size, stays, quantized, final)
        rows.append(
            [
                layer.path,
                f"{kept.size:,}",
                f"{stays / kept.size:.1%}",
                f"{bits} > {8 * coded / stays:.2f}",
                f"5 > {8 * len(forms[form]) / stays:.2f} ({form})",
                f"{quantized / kept.size / 4:.2%} > {final / kept.size / 4:.2%}",
            ]
        )
    size, stays, quantized, final = totals
    rows.append(
        ["total", f"{size:,.0f}", f"{stays / size:.1%}", "", "", f"{quantized / size / 4:.2%} > {final / size / 4:.2%}"]
    )
    pruned = (32 + 5) * stays / 8
    sums = f"\nWeights alone: P {dense / pruned:.0f}x, P+Q {dense / quantized:.0f}x, P+Q+coding {dense / final:.0f}x.\n"
    return table(["layer", "weights", "kept", "bits", "index bits", "size"], rows) + sums


def mask_of(layer: Layer) -> Any:
    """Which weights of a layer are kept."""
    if layer.mask is None:
        return np.ones(tuple(layer.tensor.shape), np.bool_)
    return edit.get_tensor(layer.graph_module, str(edit.input_of(layer.mask, 1).target)).numpy()


def untuned(recipe: Recipe, chain: Sequence[Pass], data: Data, work: Path, start: nn.Module | None = None) -> float:
    """Accuracy on the held-out images after passes that nothing tunes."""
    graph_module = chainfx.capture(trained(recipe, data, work) if start is None else start, data.example_inputs(2))
    for one in chain:
        one.apply(graph_module, PassContext(graph_module, data.example_inputs(2)))
    return trainer(recipe, data, recipe.tuning).evaluate(graph_module)


def inits(folder: Path, work: Path) -> Iterator[str]:
    """Held-out accuracy over bits for each init, dense and pruned to a twelfth before."""
    data = load(folder)
    pruned = compressed(PLAIN, SOURCE_300[:1], data, work).graph_module
    rows = []
    for bits in (1, 2, 3, 4, 6):
        cells = []
        for start in (None, pruned):
            for init in ("linear", "density", "random", "optimal"):
                accuracy = untuned(PLAIN, (ShareWeights(bits, init=init),), data, work, start)
                cells.append(f"{accuracy:.2%}")
        rows.append([str(bits), *cells])
    heads = [f"{state}, {init}" for state in ("dense", "pruned") for init in ("linear", "density", "random", "optimal")]
    yield "LeNet-300-100, accuracy on the held-out images, not tuned after sharing; *pruned* keeps 8 %.\n"
    yield table(["bits", *heads], rows)


def kinds(folder: Path, work: Path) -> Iterator[str]:
    """Held-out accuracy over bits where only the convolutions or only the linear layers are shared."""
    data, rows = load(folder, SHIFTED_5.shift), []
    for bits in (1, 2, 3, 4, 6):
        passes = [ShareWeights(bits, skip=skip) for skip in (("fc*",), ("conv*",), ())]
        rows.append([str(bits), *(f"{untuned(SHIFTED_5, (each,), data, work):.2%}" for each in passes)])
    yield "LeNet-5, accuracy on the held-out images, not tuned, linear init.\n"
    yield table(["bits", "convolutions", "linear layers", "both"], rows)


def orders(folder: Path, work: Path) -> Iterator[str]:
    """The same passes in other orders; a pass that would lose what another made is refused, and that is said."""
    data, rows = load(folder), []
    prune, share, code = SOURCE_300
    for chain in ((prune, share, code), (share, prune, code), (prune, code, share), (code, prune, share)):
        title = " -> ".join(one.info.name for one in chain)
        try:
            small = compressed(PLAIN, chain, data, work)
        except chainfx.errors.ChainfxError as error:
            rows.append([title, "refused", str(error).partition(";")[0]])
            continue
        small.save(work / "order")
        disk = (work / "order" / "model.chainfx").stat().st_size
        rows.append([title, f"{small.report.records[-1].metric:.2%}", f"{disk:,} bytes"])
    yield table(["order", "held-out accuracy", "file"], rows)


def resnet20(folder: Path, work: Path, weights: Path) -> Iterator[str]:
    """The file after each stage of a chain on a pretrained network that a few images tune."""
    train, test = (np.load(folder / f"{part}.npz") for part in ("train", "test"))
    images, labels = train["images"][:FEW], train["labels"][:FEW]
    data = from_arrays(
        images, labels, (test["images"], test["labels"]), validation=0.2, mean=IMAGENET[0], std=IMAGENET[1]
    )
    tuner = Trainer(data, epochs=2, learning_rate=0.02, augment=Augment())
    original = zoo.resnet20(shortcut="A")
    zoo.load_weights(original, weights)
    yield (
        f"ResNet-20, {dense_bytes(original):,} bytes of floats, test accuracy {tuner.test(original):.2%}; each "
        f"stage is tuned for 2 epochs on {len(data.train):,} images.\n"
    )
    yield coded_after_each(original, SPARSE_AND_SHARED, data, tuner, work)
    yield f"Test accuracy of the last: {tuner.test(chainfx.load(work / 'coded')):.2%}.\n"


def resnet34(folder: Path, work: Path) -> Iterator[str]:
    """The file after each stage, when a compressed ResNet-34 is pruned further, shared and coded."""
    recipe, data = chain_artefact.Recipe(), chain_artefact.whole_images(folder, FEW_IMAGES)
    original = chain_artefact.original_of(recipe, folder, work / "resnet34", FEW_IMAGES, data)
    tuner = Trainer(data, epochs=2, batch_size=32, fine_tune_scale=0.4)
    yield (
        f"ResNet-34, {dense_bytes(original):,} bytes of floats, held-out accuracy {tuner.evaluate(original):.2%}; each "
        f"stage is tuned for 2 epochs on {len(data.train):,} images.\n"
    )
    yield coded_after_each(original, (*recipe.passes[:2], *SPARSE_AND_SHARED), data, tuner, work)


def dense_bytes(network: nn.Module) -> int:
    """Bytes of the parameters in float32."""
    return 4 * sum(each.numel() for each in network.parameters())


def coded_after_each(original: nn.Module, chain: Sequence[Pass], data: Data, tuner: Trainer, work: Path) -> str:
    """A table of the coded file after each beginning of a chain; the last one stays in ``work / "coded"``."""
    rows, dense = [], dense_bytes(original)
    for count in range(len(chain) + 1):
        small = chainfx.compile(
            original,
            (*chain[:count], Encode(coder="adaptive")),
            example_inputs=data.example_inputs(2),
            trainer=tuner,
            workdir=work / "stages",
            order="given",
            warn_drop=None,
        )
        small.save(work / "coded")
        disk = (work / "coded" / "model.chainfx").stat().st_size
        stage = chain[count - 1].label if count else "the original"
        rows.append([f"`{stage}`", f"{disk:,}", f"{dense / disk:.1f}x", f"{small.report.records[-1].metric:.2%}"])
        print(rows[-1], flush=True)
    return table(["stage, coded adaptively", "bytes on disk", "ratio", "held-out accuracy"], rows)


def stages(folder: Path, work: Path) -> Iterator[str]:
    """What the finished stages of a chain take on disk: as they are saved, coded, and with 16 values a layer coded."""
    found = sorted(map(open_stage, sorted(folder.iterdir())), key=lambda stage: stage.record.index)
    rows, place = [], work / "stage"
    for stage in found:
        cells = [sum(each.stat().st_size for each in _saved(stage.graph_module, place, coded=False))]
        for passes in ((Encode(),), (Encode("adaptive"),), (SHARED_16, Encode("adaptive"))):
            graph_module = copy.deepcopy(stage.graph_module)
            for one in passes:
                one.apply(graph_module, PassContext(graph_module, ()))
            cells.append(sum(each.stat().st_size for each in _saved(graph_module, place, coded=True)))
        metric = "" if stage.record.metric is None else f"{stage.record.metric:.1%}"
        rows.append([f"`{stage.record.label}`", metric, *(f"{cell:,}" for cell in cells)])
    yield "Bytes on disk; shared without tuning, so that the accuracy is that of the first three.\n"
    yield table(["stage", "held-out accuracy", "saved", "coded", "coded, adaptive", "16 shared values, adaptive"], rows)


def _saved(graph_module: GraphModule, folder: Path, *, coded: bool) -> Iterator[Path]:
    """The files of a network, saved anew."""
    save_graph(to_codes(graph_module), folder, coded=coded)
    return folder.iterdir()


def forms(folder: Path, work: Path) -> Iterator[str]:
    """Bytes of the places of a random sparse matrix in each form, beside the entropy bound."""
    draw, rows, best = np.random.default_rng(0), [], []
    names = [form for form in FORMS if form != "stripped"]  # there are no rows and columns of zeros alone
    for sparsity in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99):
        kept = draw.random((300, 784)) >= sparsity
        found = {form: len(made) for form, made in places_by_form(kept, adaptive=True).items()}
        share = kept.mean()
        bound = -kept.size * (share * np.log2(share) + (1 - share) * np.log2(1 - share)) / 8
        static = [form for form in names if form != "shares"]
        best.append((sparsity, min(static, key=found.__getitem__)))
        rows.append([f"{sparsity:.0%}", *(f"{found[form]:,}" for form in names), f"{bound:,.0f}"])
    yield "A matrix of 300 x 784 with zeros anywhere: bytes for where the others are.\n"
    yield table(["zeros", *names, "entropy"], rows)
    yield "Smallest static form: " + ", ".join(f"{form} at {sparsity:.0%}" for sparsity, form in best) + ".\n"


def latency(folder: Path, work: Path) -> Iterator[str]:
    """How much faster than the dense product of one linear layer a sparse one is, and one that looks values up."""
    torch.manual_seed(0)
    batches, rows = (1, 4, 16, 64, 256), []
    for outputs, inputs in ((300, 784), (1024, 1024), (1000, 2048), (4096, 4096)):
        codes, book = torch.randint(16, (outputs * inputs,), dtype=torch.int32), torch.randn(16)
        for share in (0.7, 0.8, 0.9, 0.95, 0.99):
            weight = torch.randn(outputs, inputs) * (torch.rand(outputs, inputs) >= share)
            bias, sparse = torch.randn(outputs), SparseLinear(weight, max(batches))
            most, gains = largest_batch(weight.numel(), math.ceil(share * weight.numel())), []
            for batch in batches:
                x = torch.randn(batch, inputs)
                dense = fastest(partial(F.linear, x, weight, bias))
                gain = dense / fastest(partial(sparse, x, weight, bias))
                gains.append(f"**{gain:.1f}**" if batch <= most else f"{gain:.1f}")
                if batch == 1:
                    looked = dense / fastest(partial(looked_up, x, codes, book, weight.shape))
            rows.append([f"{outputs} x {inputs}", f"{share:.0%}", *gains, f"{looked:.2f}"])
    yield "The time of the dense product over that of the sparse one, one thread, the least of seven runs of each; bold"
    yield "where chainfx takes the sparse one. Last: of 16 shared values looked up at every call, one sample.\n"
    yield table(["weights", "zeros", *(f"batch {batch}" for batch in batches), "look-up"], rows)


def decoding(folder: Path, work: Path) -> Iterator[str]:
    """How fast codes become float32 weights again, beside zlib, which codes no places, only the bytes of all codes."""
    draw, rows = np.random.default_rng(0), []
    book = draw.normal(size=16).astype(np.float32)
    for shape, sparsity in product(((1024, 1024), (4096, 4096)), (0.0, 0.9, 0.97)):
        codes = np.clip(draw.normal(8, 3, shape), 0, 15).astype(np.uint8)
        kept = draw.random(shape) >= sparsity if sparsity else None
        symbols = codes if kept is None else np.where(kept, codes + 1, 0).astype(np.uint8)
        deflated = zlib.compress(symbols.tobytes(), 9)
        cells, megabytes = [], 4 * codes.size / 1e6
        for coder in CODERS:
            data = encode_tensor(codes, kept, coder)
            speed = megabytes / fastest(partial(decoded, data, shape, kept is not None, book))
            cells += [f"{len(data):,}", f"{speed:,.0f}"]
        speed = megabytes / fastest(partial(inflated, deflated, shape, kept is not None, book))
        rows.append([f"{shape[0]} x {shape[1]}", f"{sparsity:.0%}", *cells, f"{len(deflated):,}", f"{speed:,.0f}"])
    yield "Weights of 16 values: bytes, and megabytes of float32 weights a second that one thread makes of them, the"
    yield "best of seven runs.\n"
    heads = (f"{name}, {what}" for name in (*CODERS, "zlib") for what in ("bytes", "MB/s"))
    yield table(["weights", "zeros", *heads], rows)


def decoded(data: bytes, shape: tuple[int, int], masked: bool, book: NDArray[np.float32]) -> NDArray[np.float32]:
    """The weights of a tensor of codes."""
    values, kept = decode_tensor(Reader(data), shape, np.dtype(np.uint8), masked=masked)
    weights = book[values]
    return weights if kept is None else weights * kept


def inflated(data: bytes, shape: tuple[int, int], masked: bool, book: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same from deflated codes, in which a zero is one more value."""
    symbols = np.frombuffer(zlib.decompress(data), np.uint8).reshape(shape)
    return np.concatenate([[np.float32(0)], book])[symbols] if masked else book[symbols]


def looked_up(x: Tensor, codes: Tensor, book: Tensor, shape: torch.Size) -> Tensor:
    """A linear layer whose weight is looked up at every call, in the fastest way that torch has."""
    return F.linear(x, book.index_select(0, codes).view(shape))


def fastest(run: Callable[[], Any]) -> float:
    """Seconds of this thread that a call takes, of the fastest of seven runs of 2 ms or one call."""
    run()
    start = time.thread_time()
    run()
    count = max(1, round(0.002 / (time.thread_time() - start)))
    times = []
    for _ in range(7):
        start = time.thread_time()
        for _ in range(count):
            run()
        times.append((time.thread_time() - start) / count)
    return min(times)


PARTS: dict[str, Callable[[Path, Path], Iterator[str]]] = {
    "chains-300": partial(chains, PLAIN),
    "chains-300-shifted": partial(chains, SHIFTED_300),
    "chains-5": partial(chains, SHIFTED_5),
    "chains-5-narrow": partial(chains, NARROW_5),
    "chains-5-turned": partial(chains, TURNED_5),
    "chains-5-more": partial(chains, MORE_5),
    "inits": inits,
    "kinds": kinds,
    "orders": orders,
    "forms": forms,
    "latency": latency,
    "decoding": decoding,
    "stages": stages,
    "resnet34": resnet34,
}


def main() -> None:
    """Print one part, or write it into its place on a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/deep_compression"))
    parser.add_argument("--part", choices=[*PARTS, "resnet20"], required=True)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--weights", type=Path, help="of resnet20")
    given = parser.parse_args()
    torch.set_num_threads(1)
    part = partial(resnet20, weights=given.weights) if given.part == "resnet20" else PARTS[given.part]
    text = "\n".join(part(given.data, given.work))
    if given.write is None:
        print(text)
        return
    page = given.write.read_text()
    marks = re.compile(rf"(<!-- {given.part} -->\n).*?(<!-- /{given.part} -->)", flags=re.DOTALL)
    given.write.write_text(marks.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", page))


if __name__ == "__main__":
    main()
