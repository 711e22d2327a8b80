"""Deep Compression on MNIST, from training to file: what each stage costs in bytes on disk, and what it is worth.

    python benchmarks/deep_compression.py --data MNIST --part forms --write docs/results/deep_compression.md

``MNIST`` holds ``train.npz`` and ``test.npz`` (``images`` uint8 (N, 28, 28), ``labels``). Options are chosen on 5,000
held-out training images; the test images are run once for each finished network. ``--part`` is one of

``chains-300``, ``chains-5``   LeNet-300-100 and LeNet-5 through whole chains: the layers, the stages, the file
``inits``                      linear, density, random and optimal codebooks over bits, untuned, dense and pruned
``kinds``                      bits of convolution and linear layers apart, untuned
``orders``                     the chain in other orders
``forms``                      bytes of each sparse form over sparsities, with the crossovers
``latency``                    sparse, shared and dense execution of one linear layer

Finished stages are kept in ``WORK`` and found again. With ``--write`` the section of the page between the marks of the
part is replaced, else it is printed.
"""

import argparse
import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chainfx
from chainfx import zoo
from chainfx.coding.places import places_by_form
from chainfx.coding.symbols import encode_symbols
from chainfx.deploy import CompressedModel
from chainfx.ir.artifact import array_of
from chainfx.ir.graph import Layer, edit, layers_of
from chainfx.passes import Encode, Pass, PassContext, PruneWeights, ShareWeights
from chainfx.training import Data, Trainer
from chainfx.training.sources import from_arrays

HELD_OUT = 5000
CHAINS: dict[str, dict[str, tuple[Pass, ...]]] = {
    "lenet_300_100": {
        "as the source": (PruneWeights(0.92, rounds=3), ShareWeights(6), Encode()),
        "60x": (
            PruneWeights(0.95, scope="global", rounds=4),
            ShareWeights(4, init="optimal", biases=True),
            Encode(coder="adaptive"),
        ),
        "9.4 kB": (
            PruneWeights(0.965, scope="global", rounds=5, length=2e-5),
            ShareWeights(4, init="optimal", biases=True),
            Encode(coder="adaptive"),
        ),
        "few bits": (
            PruneWeights(0.98, scope="global", rounds=5, length=2e-5),
            ShareWeights(3, init="optimal", biases=True),
            Encode(coder="adaptive"),
        ),
    },
    "lenet5": {
        "as the source": (PruneWeights(0.92, rounds=3), ShareWeights(5), Encode()),
        "few bits": (
            PruneWeights(0.99, scope="global", rounds=5, length=2e-5),
            ShareWeights(3, init="optimal", biases=True),
            Encode(coder="adaptive"),
        ),
    },
}
EPOCHS = {"lenet_300_100": (12, 6), "lenet5": (8, 3)}
RATES = {"lenet_300_100": 0.1, "lenet5": 0.05}


def load(folder: Path) -> Data:
    """MNIST with held-out training images for choosing."""
    train, test = (np.load(folder / f"{part}.npz") for part in ("train", "test"))
    share = HELD_OUT / len(train["labels"])
    return from_arrays(train["images"], train["labels"], (test["images"], test["labels"]), validation=share)


def trained(name: str, data: Data, work: Path) -> nn.Module:
    """The network after plain training, which is kept."""
    torch.manual_seed(0)
    model, place = zoo.NETWORKS[name](), work / f"{name}.pt"
    if place.exists():
        model.load_state_dict(torch.load(place, weights_only=True))
    else:
        Trainer(data, epochs=EPOCHS[name][0], learning_rate=RATES[name]).fit(model, seed=0)
        work.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), place)
    return model.eval()


def tuner(name: str, data: Data) -> Trainer:
    """What tunes after each round."""
    return Trainer(data, epochs=EPOCHS[name][1], learning_rate=RATES[name], fine_tune_scale=0.3)


def compressed(name: str, chain: Sequence[Pass], data: Data, work: Path) -> CompressedModel:
    """The network after a chain, in the order given."""
    return chainfx.compile(
        trained(name, data, work),
        chain,
        example_inputs=data.example_inputs(2),
        trainer=tuner(name, data),
        workdir=work / "stages",
        order="given",
        warn_drop=None,
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def chains(name: str, data: Data, work: Path) -> Iterator[str]:
    """Whole chains: the stages in bytes, the layers, the file, and the error on the test images once."""
    original = trained(name, data, work)
    dense = 4 * sum(each.numel() for each in original.parameters())
    judge = tuner(name, data)
    yield f"{name}, {dense:,} bytes of floats, test error {1 - judge.test(original):.2%}.\n"
    for title, chain in CHAINS[name].items():
        print(f"{name}: {title}", flush=True)
        small = compressed(name, chain, data, work)
        folder = work / f"{name} {title}"
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


def layer_table(small: CompressedModel, dense: int) -> str:
    """Per layer what the source prints: weights, kept, bits and index bits before and after coding, and the size."""
    rows, totals = [], np.zeros(4)
    for layer in layers_of(small.graph_module):
        kept, values = mask_of(layer), array_of(layer.tensor)
        adaptive = layer.coded.args[1] == "adaptive"
        forms = places_by_form(kept, adaptive=adaptive)
        form = min(forms, key=lambda each: len(forms[each]))
        book = edit.get_tensor(small.graph_module, layer.weight_path.replace("_codes", "_codebook")).numel()
        bits, stays = (book - 1).bit_length(), int(kept.sum())
        coded = len(encode_symbols(values[kept], adaptive=adaptive))
        shared = (bits + 5) * stays / 8 + 4 * book
        final = coded + len(forms[form]) + 4 * book
        totals += (kept.size, stays, shared, final)
        rows.append(
            [
                layer.path,
                f"{kept.size:,}",
                f"{stays / kept.size:.1%}",
                f"{bits} > {8 * coded / stays:.2f}",
                f"5 > {8 * len(forms[form]) / stays:.2f} ({form})",
                f"{shared / kept.size / 4:.2%} > {final / kept.size / 4:.2%}",
            ]
        )
    size, stays, shared, final = totals
    rows.append(
        ["total", f"{size:,.0f}", f"{stays / size:.1%}", "", "", f"{shared / size / 4:.2%} > {final / size / 4:.2%}"]
    )
    pruned = (32 + 5) * stays / 8
    sums = f"\nWeights alone: P {dense / pruned:.0f}x, P+Q {dense / shared:.0f}x, P+Q+coding {dense / final:.0f}x.\n"
    return table(["layer", "weights", "kept", "bits", "index bits", "size"], rows) + sums


def mask_of(layer: Layer) -> Any:
    """Which weights of a layer are kept."""
    if layer.mask is None:
        return np.ones(tuple(layer.tensor.shape), np.bool_)
    return edit.get_tensor(layer.graph_module, str(edit.input_of(layer.mask, 1).target)).numpy()


def untuned(name: str, chain: Sequence[Pass], data: Data, work: Path, start: nn.Module | None = None) -> float:
    """Accuracy on the held-out images after passes that nothing tunes."""
    graph_module = chainfx.capture(trained(name, data, work) if start is None else start, data.example_inputs(2))
    for one in chain:
        one.apply(graph_module, PassContext(graph_module, data.example_inputs(2)))
    return tuner(name, data).evaluate(graph_module)


def inits(data: Data, work: Path) -> Iterator[str]:
    """Held-out accuracy over bits for each init, dense and pruned to a twelfth before."""
    name = "lenet_300_100"
    pruned = compressed(name, CHAINS[name]["as the source"][:1], data, work).graph_module
    rows = []
    for bits in (1, 2, 3, 4, 6):
        cells = []
        for start in (None, pruned):
            for init in ("linear", "density", "random", "optimal"):
                accuracy = untuned(name, (ShareWeights(bits, init=init),), data, work, start)
                cells.append(f"{accuracy:.2%}")
        rows.append([str(bits), *cells])
    heads = [f"{state}, {init}" for state in ("dense", "pruned") for init in ("linear", "density", "random", "optimal")]
    yield "LeNet-300-100, accuracy on the held-out images, not tuned after sharing; *pruned* keeps 8 %.\n"
    yield table(["bits", *heads], rows)


def kinds(data: Data, work: Path) -> Iterator[str]:
    """Held-out accuracy over bits where only the convolutions or only the linear layers are shared."""
    rows = []
    for bits in (1, 2, 3, 4, 6):
        cells = [untuned("lenet5", (ShareWeights(bits, skip=skip),), data, work) for skip in (("fc*",), ("conv*",), ())]
        rows.append([str(bits), *(f"{each:.2%}" for each in cells)])
    yield "LeNet-5, accuracy on the held-out images, not tuned, linear init.\n"
    yield table(["bits", "convolutions", "linear layers", "both"], rows)


def orders(data: Data, work: Path) -> Iterator[str]:
    """The same passes in other orders; a pass that would lose what another made is refused, and that is said."""
    name = "lenet_300_100"
    prune, share, code = CHAINS[name]["as the source"]
    rows = []
    for chain in ((prune, share, code), (share, prune, code), (prune, code, share), (code, prune, share)):
        title = " -> ".join(one.info.name for one in chain)
        try:
            small = compressed(name, chain, data, work)
        except chainfx.errors.ChainfxError as error:
            rows.append([title, "refused", str(error).partition(";")[0]])
            continue
        small.save(work / "order")
        disk = (work / "order" / "model.chainfx").stat().st_size
        rows.append([title, f"{small.report.records[-1].metric:.2%}", f"{disk:,} bytes"])
    yield table(["order", "held-out accuracy", "file"], rows)


def forms(data: Data, work: Path) -> Iterator[str]:
    """Bytes of the places of a random sparse matrix in each form, beside the entropy bound."""
    draw, rows, best = np.random.default_rng(0), [], []
    for sparsity in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99):
        kept = draw.random((300, 784)) >= sparsity
        found = {form: len(made) for form, made in places_by_form(kept, adaptive=True).items()}
        share = kept.mean()
        bound = -kept.size * (share * np.log2(share) + (1 - share) * np.log2(1 - share)) / 8
        static = {form: size for form, size in found.items() if not form.startswith("shares")}
        best.append((sparsity, min(static, key=lambda form: static[form])))
        rows.append([f"{sparsity:.0%}", *(f"{size:,}" for size in found.values()), f"{bound:,.0f}"])
    yield "A matrix of 300 x 784 with zeros anywhere: bytes for where the others are.\n"
    yield table(["zeros", *found, "entropy"], rows)
    yield "Smallest static form: " + ", ".join(f"{form} at {sparsity:.0%}" for sparsity, form in best) + ".\n"


def latency(data: Data, work: Path) -> Iterator[str]:
    """Milliseconds of one linear layer of 4096 x 4096, a tenth kept, and shared by 16 values."""
    torch.manual_seed(0)
    weight = torch.randn(4096, 4096)
    rows = []
    for sparsity in (0.9, 0.95, 0.99):
        masked = weight * (torch.rand_like(weight) >= sparsity)
        csr = masked.to_sparse_csr()
        codes, book = torch.randint(16, weight.shape, dtype=torch.uint8), torch.randn(16)
        for batch in (1, 64):
            x = torch.randn(batch, 4096)
            times = [
                fastest(partial(F.linear, x, masked)),
                fastest(partial(sparse_linear, x, csr)),
                fastest(partial(looked_up, x, codes, book)),
            ]
            rows.append([f"{sparsity:.0%}", str(batch), *(f"{each * 1e3:.2f}" for each in times)])
    yield "Milliseconds, one thread, the fastest of 10 runs, 4096 x 4096.\n"
    yield table(["zeros", "batch", "dense", "CSR", "look-up of 16 shared values, then dense"], rows)


def sparse_linear(x: Tensor, weight: Tensor) -> Tensor:
    """A linear layer whose weight is in CSR form."""
    return (weight @ x.t()).t() if len(x) > 1 else torch.mv(weight, x[0])[None]


def looked_up(x: Tensor, codes: Tensor, book: Tensor) -> Tensor:
    """A linear layer whose weight is looked up at every call."""
    return F.linear(x, book[codes.long()])


def fastest(run: Callable[[], Any]) -> float:
    """Seconds of the fastest of ten runs after a first one."""
    run()
    times = []
    for _ in range(10):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


PARTS: dict[str, Callable[[Data, Path], Iterator[str]]] = {
    "chains-300": partial(chains, "lenet_300_100"),
    "chains-5": partial(chains, "lenet5"),
    "inits": inits,
    "kinds": kinds,
    "orders": orders,
    "forms": forms,
    "latency": latency,
}


def main() -> None:
    """Print one part, or write it into its place on a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/deep_compression"))
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    text = "\n".join(PARTS[given.part](load(given.data), given.work))
    if given.write is None:
        print(text)
        return
    page = given.write.read_text()
    marks = re.compile(rf"(<!-- {given.part} -->\n).*?(<!-- /{given.part} -->)", flags=re.DOTALL)
    given.write.write_text(marks.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", page))


if __name__ == "__main__":
    main()
