"""Quantization by torchao: any configuration of ``torchao.quantization.quantize_`` on the linear layers of a chain."""

import importlib.util
import re
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from chainfx.errors import PassError
from chainfx.ir.graph import (
    Layer,
    Skipped,
    edit,
    read_torchao,
    select,
    shape_of,
    torchao_parts,
    torchao_text,
    torchao_weight,
)
from chainfx.passes.base import Granularity, Kind, Pass, PassContext, PassInfo, PassResult
from chainfx.passes.quantizing import release_residuals

__all__ = ["TorchaoQuantize"]

_FLOAT = 32
_CODES = 8  # what kernels of torchao round an input to
_ALTERNATIVE = "use PostTrainingQuantize(), which quantizes convolutions too"


@final
@dataclass(frozen=True)
class TorchaoQuantize(Pass):
    """Make the weights of linear layers tensors of torchao, as ``quantize_(model, config)`` does, and train nothing.

    What changes, for each linear layer::

        linear(x, weight, bias)  ->  torchao_weight((weight_qdata, weight_scale, ...), "Int8Tensor(...)", bits, reads)
                                     linear(x, <torchao_weight>, bias)

    ``config`` is a configuration of torchao, such as ``torchao.quantization.Int8WeightOnlyConfig()``, or its text,
    ``"Int8WeightOnlyConfig()"``, which is what a recipe holds; where torchao is installed, a text that is no
    configuration is refused at once. Torchao computes the codes, and its kernels run the layer: answers are those of
    ``quantize_`` on the model, bit for bit. Such a network runs on the float engine, where ``torch.compile`` works on
    it as on any that torchao made.

    The counter takes the widths of weights, and of inputs that kernels round at each call (*dynamic* configurations),
    from the call. Stored are the parts as torchao lays them out, and a text that is read, never executed; a tensor that
    has no such form is refused here. A quantizer of an earlier pass is replaced. Layers that are masked or look up a
    codebook are skipped, and so is what is no linear layer. A later pass leaves these weights as they are.

    A dynamic configuration is refused for a network that multiplies more in convolutions than in linear layers, which
    it would leave in float. Which configurations there are for a device is torchao's to say; on a CPU these are int8
    (dynamic and weights alone), ``IntxWeightOnlyConfig`` and float8 of weights alone.

    Needs the package torchao (``pip install 'chainfx[torchao]'``) here and wherever the network is loaded. ``include``
    and ``skip``: patterns (``fnmatch``) of layers to quantize, or to leave.

    >>> TorchaoQuantize("Int8WeightOnlyConfig()", skip=("head",)).label
    "torchao-quantize('Int8WeightOnlyConfig()', skip=('head',))"
    """

    config: Any
    include: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    info: ClassVar[PassInfo] = PassInfo(
        "torchao-quantize",
        Kind.STATIC,
        Granularity.SUB_NEURON,
        establishes=frozenset({"bit-widths"}),
        revision=2,
        family="quantization",
        tunes=False,
        headline=("config",),
    )

    def __post_init__(self) -> None:
        if not isinstance(self.config, str):
            try:
                object.__setattr__(self, "config", torchao_text(self.config))
            except ValueError as error:
                raise PassError(
                    f"{self.info.name}: {error}, so that a recipe could not hold the configuration; give one of "
                    f"torchao.quantization without tensors, or its text, such as 'Int8WeightOnlyConfig()'."
                ) from error
        elif _is_installed():
            self._read()

    def apply(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Put tensors of torchao in the place of the weights."""
        config = self._read()
        chosen, skipped = select(graph_module, self.info.name, include=self.include, skip=self.skip)
        reasons = {layer: _obstacle(layer) for layer in chosen}
        skipped += [Skipped(layer.name, reason) for layer, reason in reasons.items() if reason]
        layers = [layer for layer in chosen if not reasons[layer]]
        if not layers:
            raise PassError(f"{self.info.name}: there is no linear layer to quantize; {_ALTERNATIVE}.")
        weights = {layer.weight_path: self._quantized(layer, config) for layer in layers}
        if any(_bits_read(weight) < _FLOAT for weight in weights.values() if weight is not None):
            self._check_network(chosen)
        stored = {path: _stored(graph_module, path, each) for path, each in weights.items() if each is not None}
        for layer in layers:
            if layer.weight_path not in stored:
                skipped.append(Skipped(layer.name, "torchao leaves a weight of this shape as it is"))
                continue
            paths, text, bits, reads = stored[layer.weight_path]
            if layer.input_quantizer is not None:
                layer.read_input(layer.source)
            with graph_module.graph.inserting_before(layer.node):
                parts = [graph_module.graph.get_attr(path) for path in paths]
                layer.node.update_arg(1, graph_module.graph.call_function(torchao_weight, (parts, text, bits, reads)))
        release_residuals(graph_module)
        edit.tidy(graph_module)
        return PassResult(graph_module, modified=bool(stored), skipped=tuple(skipped))

    def _read(self) -> Any:
        """The configuration; raises :class:`PassError` without torchao, and for a text that is none."""
        if not _is_installed():
            raise PassError(
                f"{self.info.name}: this pass needs the package torchao, which is not installed; "
                f"run pip install 'chainfx[torchao]'."
            )
        try:
            found = read_torchao(self.config)
        except (ValueError, TypeError, AssertionError) as error:
            raise self._unknown(str(error).rstrip(".")) from error
        from torchao.core.config import AOBaseConfig

        if not isinstance(found, AOBaseConfig):
            raise self._unknown(f"a {type(found).__name__} is no configuration")
        return found

    def _unknown(self, reason: str) -> PassError:
        return PassError(
            f"{self.info.name}: config={self.config!r} cannot be read: {reason}; "
            f"give a configuration of torchao.quantization, such as 'Int8WeightOnlyConfig()'."
        )

    def _quantized(self, layer: Layer, config: Any) -> Tensor | None:
        """What ``quantize_`` makes of the weight of a layer; ``None`` if it leaves it."""
        from torchao.quantization import quantize_

        weight = layer.tensor.detach()
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta").requires_grad_(False)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        holder = nn.Sequential(linear)
        try:
            quantize_(holder, config)
        except Exception as error:  # whatever torchao raises for what it cannot do
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise PassError(
                f"{self.info.name}: torchao does not quantize {layer.path!r} by {self.config} on "
                f"{weight.device.type}: {reason}; use another configuration, or add {layer.path!r} to skip."
            ) from error
        made: Any = holder[0]
        found: Any = getattr(made, "weight", None)
        if type(made) is nn.Linear and type(found) is nn.Parameter and found.data_ptr() == weight.data_ptr():
            return None
        try:
            if type(made) is not nn.Linear:
                raise ValueError(f"it becomes a {type(made).__name__}, which is another kind of layer")
            torchao_parts(found)
        except (ValueError, AttributeError) as error:
            raise PassError(
                f"{self.info.name}: what {self.config} makes of {layer.path!r} has no plain form: {error}, so that it "
                f"could not be saved without pickle; use another configuration."
            ) from error
        quantized: Tensor = found
        return quantized

    def _check_network(self, layers: list[Layer]) -> None:
        """Refuse kernels that round inputs where most multiplications are in convolutions."""
        convolved = sum(_multiplications(layer) for layer in layers if layer.options)
        linear = sum(_multiplications(layer) for layer in layers if not layer.options)
        if convolved > linear:
            raise PassError(
                f"{self.info.name}: {self.config} is dynamic and works on linear layers alone, but "
                f"{100 * convolved // (convolved + linear)} % of the multiplications of this network are in "
                f"convolutions, which would stay in float; {_ALTERNATIVE}."
            )


def _is_installed() -> bool:
    return importlib.util.find_spec("torchao") is not None


def _obstacle(layer: Layer) -> str:
    """Why the weight of a layer stays as it is; empty if torchao shall quantize it."""
    if layer.options:
        return "torchao quantizes linear layers, and it is a convolution"
    if layer.mask is not None:
        return "its weight is masked, and kernels of torchao know no mask"
    read_from = layer.weight_read if layer.weight_quantizer is None else edit.input_of(layer.weight_quantizer)
    return "" if read_from.op == "get_attr" else "its weight is stored as codes"


def _multiplications(layer: Layer) -> int:
    """How many multiplications a layer does for the example inputs."""
    shape = shape_of(layer.node)
    channels = shape[1] if layer.options else shape[-1]
    rest = layer.tensor.numel() // layer.tensor.shape[layer.out_axis]
    return rest * channels * (torch.Size(shape).numel() // max(channels, 1))


def _stored(graph_module: GraphModule, path: str, weight: Tensor) -> tuple[list[str], str, int, int]:
    """The parts of a tensor of torchao put beside the weight that it stands for: their paths, and its literals."""
    parts, text = torchao_parts(weight)
    prefix, _, last = path.rpartition(".")
    paths = [edit.fresh_path(graph_module, f"{prefix}.{last}_{name}".lstrip(".")) for name in parts]
    for each, part in zip(paths, parts.values(), strict=True):
        edit.set_tensor(graph_module, each, part, parameter=False)
    return paths, text, _bits(weight, next(iter(parts.values()))), _bits_read(weight)


def _bits(weight: Tensor, codes: Tensor) -> int:
    """The bits of a code: as its type says, or as many of them as lie in the bytes that there are."""
    stated = getattr(weight, "target_dtype", None)
    if isinstance(stated, torch.dtype):
        return int(re.sub(r"\D", "", str(stated).removeprefix("torch.")))
    return max(1, 8 * codes.numel() * codes.element_size() // max(weight.numel(), 1))


def _bits_read(weight: Tensor) -> int:
    """The bits that the kernels of a tensor of torchao round an input to; 32 if they read it in float."""
    kept = {name: value for name, value in vars(weight).items() if name.startswith("act") and value is not None}
    types = [value for value in kept.values() if isinstance(value, torch.dtype)]
    if types:
        return types[0].itemsize * 8
    return _CODES if kept else _FLOAT
