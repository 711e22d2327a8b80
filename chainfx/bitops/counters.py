"""Other tools that count MACs: how each is called, what it finds, and by which rules it differs from chainfx.

Every tool is called as its own documentation recommends. What it counts is for the whole batch, and is returned by
pairs: the path of the module that runs, and the operator as the tool names it.
"""

import contextlib
import importlib.metadata
import io
import logging
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from chainfx.ir.graph import name_of

__all__ = ["COUNTERS", "Counter", "Tally", "Work", "undisturbed"]

Counts = dict[tuple[str, str], Fraction]


@dataclass(frozen=True, slots=True)
class Work:
    """MACs of one node for the whole batch, as chainfx counts them.

    ``module``: path of the module that runs it. ``key``: the one name of the operator, ``operator``: as printed.
    ``outputs``: elements of the result. ``target``: of the node. ``by_vector``: an operand has one dimension.
    ``constant``: it does not depend on the inputs, so chainfx counts it as nothing.
    """

    module: str
    operator: str
    key: str
    macs: int
    outputs: int
    target: Any
    by_vector: bool
    constant: bool


def _sees_everything(work: Work) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Tally:
    """What a tool counted, and what is known about how it counts.

    ``blind``: why the tool counts nothing for some work, or ``None``. ``extra``: operators without MACs that it counts
    nevertheless, and why. ``loose``: operators, of either side, that it counts by rules of its own, and which.
    """

    counts: Counts
    blind: Callable[[Work], str | None] = _sees_everything
    extra: Mapping[str, str] = field(default_factory=dict)
    loose: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Counter:
    """Another tool that counts: its package, whether it needs real data, and how it counts a model on inputs."""

    package: str
    needs_data: bool
    run: Callable[[nn.Module, tuple[Tensor, ...], Sequence[Work]], Tally]

    @property
    def version(self) -> str:
        """The version of the tool that is installed; an empty text if none is."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return ""


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let a tool run a model for the time of a ``with`` block, without trace of it afterwards.

    Inside, nothing is printed, no gradients are computed, and attention runs step by step instead of fused. The random
    state is put back at the end.
    """
    disabled, fused = logging.root.manager.disable, torch.backends.mha.get_fastpath_enabled()
    logging.disable(logging.WARNING)
    torch.backends.mha.set_fastpath_enabled(False)
    silent = contextlib.redirect_stdout(io.StringIO())
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings(), silent:
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        torch.backends.mha.set_fastpath_enabled(fused)


# torch.utils.flop_counter

_TORCH_BLIND = {name_of(name) for name in ("mv", "dot", "vdot", "addmv", "addbmm", "bilinear", "linalg_vecdot")}
_TORCH_CPU_BLIND = {
    "scaled_dot_product_attention": "torch's counter has no formula for the CPU kernel of attention",
    **dict.fromkeys(("lstm", "gru", "rnn"), "torch's counter has no formula for the CPU kernel of recurrent layers"),
}
_TORCH_LOOSE = {
    "einsum": "torch's counter counts every einsum as a matrix product, outer and element-wise products too",
    "cond": "torch's counter adds both branches of torch.cond",
}


def _run_torch(model: nn.Module, inputs: tuple[Tensor, ...], works: Sequence[Work]) -> Tally:
    """FLOPs of ``FlopCounterMode``, halved, in eval mode."""
    from torch.utils.flop_counter import FlopCounterMode

    on_cpu = any(not tensor.is_meta for tensor in inputs)
    counter = FlopCounterMode(display=False)

    def read() -> dict[str, int]:
        return {packet.__name__: flops for packet, flops in counter.get_flop_counts().get("Global", {}).items()}

    with counter, _ByModule(model, read) as seen:
        model(*inputs)

    def blind(work: Work) -> str | None:
        if work.key in _TORCH_BLIND:
            return "torch's counter has no formula for this operator"
        if work.by_vector:
            return "torch's counter has no formula for a product with a vector"
        return _TORCH_CPU_BLIND.get(work.key) if on_cpu else None

    return Tally({place: Fraction(flops, 2) for place, flops in seen.counts.items()}, blind, loose=_TORCH_LOOSE)


class _ByModule(contextlib.AbstractContextManager["_ByModule"]):
    """Splits a running count by the innermost module that runs, read at every entry and exit of one."""

    def __init__(self, model: nn.Module, read: Callable[[], Mapping[str, int]]) -> None:
        self.counts: dict[tuple[str, str], int] = defaultdict(int)
        self._paths = {id(module): path for path, module in model.named_modules()}
        if isinstance(model, GraphModule):  # those inside are branches, whose functions run for the network itself
            self._paths |= {id(module): "" for module in model.modules() if isinstance(module, GraphModule)}
        self._read = read
        self._last: Mapping[str, int] = {}
        self._running = [""]

    def __enter__(self) -> "_ByModule":
        self._hooks = (
            nn.modules.module.register_module_forward_pre_hook(self._enter),
            nn.modules.module.register_module_forward_hook(self._leave),
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._settle()
        for hook in self._hooks:
            hook.remove()

    def _settle(self) -> None:
        now = self._read()
        for operator, count in now.items():
            self.counts[self._running[-1], operator] += count - self._last.get(operator, 0)
        self._last = now

    def _enter(self, module: nn.Module, *_: object) -> None:
        self._settle()
        self._running.append(self._paths.get(id(module), self._running[-1]))

    def _leave(self, *_: object) -> None:
        self._settle()
        self._running.pop()


# fvcore

_FVCORE_EXTRA = {
    **dict.fromkeys(("batch_norm", "group_norm", "layer_norm", "instance_norm"), "fvcore counts normalization as MACs"),
    "adaptive_avg_pool2d": "fvcore counts pooling as MACs",
    **dict.fromkeys(("upsample_nearest2d", "upsample_bilinear2d", "grid_sampler"), "fvcore counts resampling as MACs"),
}
_FVCORE_LOOSE = {"einsum": "fvcore takes half of numpy's FLOPs of an einsum, which counts products without a sum too"}


def _run_fvcore(model: nn.Module, inputs: tuple[Tensor, ...], works: Sequence[Work]) -> Tally:
    """``FlopCountAnalysis``, in which one multiply-add is one FLOP."""
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(model, inputs).tracer_warnings("none")
    analysis = analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    within = analysis.by_module_and_operator()
    counts: Counts = defaultdict(Fraction)
    for path, operators in within.items():
        for operator, count in operators.items():
            counts[path, operator] += Fraction(count)
            if path:
                counts[path.rpartition(".")[0], operator] -= Fraction(count)
    unsupported = {name_of(name.partition("::")[2]) for name in analysis.unsupported_ops()}

    def blind(work: Work) -> str | None:
        return "fvcore has no handle for this operator" if work.key in unsupported else None

    return Tally(dict(counts), blind, _FVCORE_EXTRA, _FVCORE_LOOSE)


# ptflops

_WITH_BIAS = (nn.Linear, *(getattr(nn, f"{kind}{rank}d") for kind in ("Conv", "ConvTranspose") for rank in (1, 2, 3)))
_RECURRENT = (nn.RNN, nn.GRU, nn.LSTM, nn.RNNCell, nn.GRUCell, nn.LSTMCell)
_PTFLOPS_PRODUCTS = (torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, "matmul", "mm", "bmm", "addmm")
_FUNCTIONS, _ALIASES = "functions", "modules with several names"
_WITHOUT_MACS = "ptflops counts activation, normalization, pooling and resizing modules as MACs"
_PTFLOPS_EXTRA = {
    "bias": "ptflops counts the addition of a bias as MACs",
    _FUNCTIONS: "ptflops counts activation, softmax, pooling, resizing and element-wise functions as MACs, also those "
    "that a module it has counted calls inside",
    _ALIASES: "ptflops adds up a shared module once for every name it has",
}
_PTFLOPS_LOOSE = {
    "MultiheadAttention": "ptflops has a formula of its own for nn.MultiheadAttention, in which scaling, softmax and "
    "bias count, and counts matrix products of it again as functions",
    **dict.fromkeys(
        (kind.__name__ for kind in _RECURRENT),
        "ptflops has a formula of its own for recurrent layers, in which bias and element-wise work count",
    ),
}


class _Recorded(nn.Module):
    """A network that takes its inputs as one tuple, and reads off what ptflops has counted for each module."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.counts: dict[str, int] = {}

    def forward(self, inputs: tuple[Tensor, ...]) -> Any:
        """What the network gives."""
        output = self.network(*inputs)
        found = {path: getattr(module, "__flops__", 0) for path, module in self.network.named_modules()}
        self.counts = {path: int(count) for path, count in found.items() if count}
        return output


def _run_ptflops(model: nn.Module, inputs: tuple[Tensor, ...], works: Sequence[Work]) -> Tally:
    """``get_model_complexity_info`` with its default backend: hooks on modules, and patched functions."""
    network = _Recorded(model)
    everything, modules = (_ptflops_total(network, inputs, functional) for functional in (True, False))
    counts: Counts = defaultdict(Fraction)
    for path, count in network.counts.items():
        module = model.get_submodule(path)
        bias = sum(work.outputs for work in works if work.module == path) if _has_bias(module) else 0
        counts[path, type(module).__name__] += count - bias
        counts[path, "bias"] += bias
    named_once = len(network.counts) == len(_names_of_counted(model, network.counts))
    counts["", "sum of modules" if named_once else _ALIASES] += modules - sum(network.counts.values())
    products = sum(work.macs for work in works if work.target in _PTFLOPS_PRODUCTS)
    functions = everything - modules - products
    counts["", _FUNCTIONS if functions >= 0 else "matrix products"] += functions
    for work in works:
        if work.target in _PTFLOPS_PRODUCTS:
            counts[work.module, work.operator] += work.macs

    def blind(work: Work) -> str | None:
        if work.module in network.counts or work.target in _PTFLOPS_PRODUCTS:
            return None
        return "ptflops counts plain torch.nn modules, not functions or subclasses in their place"

    extra = {**_PTFLOPS_EXTRA, **dict.fromkeys(_without_macs(model), _WITHOUT_MACS)}
    return Tally(dict(counts), blind, extra, _PTFLOPS_LOOSE)


def _names_of_counted(model: nn.Module, counts: Mapping[str, int]) -> list[str]:
    """All names of the modules that are in ``counts`` by their first name."""
    counted = {id(model.get_submodule(path)) for path in counts}
    return [path for path, module in model.named_modules(remove_duplicate=False) if id(module) in counted]


def _ptflops_total(network: _Recorded, inputs: tuple[Tensor, ...], functional: bool) -> int:
    from ptflops import get_model_complexity_info

    total, _ = get_model_complexity_info(
        network,
        (1,),
        print_per_layer_stat=False,
        as_strings=False,
        input_constructor=lambda _: {"inputs": inputs},
        backend_specific_config={"count_functional": functional},
    )
    if total is None:
        raise RuntimeError("ptflops did not finish its estimation")
    return int(total)


def _has_bias(module: nn.Module) -> bool:
    return type(module) in _WITH_BIAS and module.bias is not None


def _without_macs(model: nn.Module) -> set[str]:
    """The classes of a network that do no multiply-accumulates."""
    multiplying = {kind.__name__ for kind in (*_WITH_BIAS, *_RECURRENT, nn.MultiheadAttention)}
    return {type(module).__name__ for module in model.modules()} - multiplying


# on the meta device fvcore cannot trace, and ptflops counts what torch's own meta functions call
COUNTERS = (
    Counter("torch", False, _run_torch),
    Counter("fvcore", True, _run_fvcore),
    Counter("ptflops", True, _run_ptflops),
)
