"""A network as Inductor of torch makes integer kernels of it: with the quantizers that its passes for x86 look for.

These passes come with torchao, and work only while weights are *frozen*, that is taken as constants. Without both
Inductor computes in float and says nothing, so whoever uses this counts the integer calls that came out of it.
"""

import copy
import functools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule

from chainfx.deploy.exporting.forms import INDUCTOR
from chainfx.deploy.exporting.rewriting import rewrite_for_export
from chainfx.deploy.integers import Lowered, Machine, why_in_float
from chainfx.deploy.lower import split_segments, to_codes
from chainfx.errors import InputError
from chainfx.ir.graph import (
    Layer,
    edit,
    input_of,
    layers_of,
    operator_of,
    ops,
    propagate_shapes,
    shape_of,
    value_of,
)

__all__ = ["frozen", "inductor_options", "integer_segments", "matched_layers"]

_ROWS = 2  # dimensions of what a product of matrices takes


def integer_segments(
    graph_module: GraphModule, inputs: Sequence[Tensor], machine: Machine, what: str
) -> tuple[list[GraphModule], list[Lowered]]:
    """The segments of a network with the operators of quantization that Inductor knows, over tensors of their own.

    Layers that the machine can run in integers, by the rule of the int8 engine, have quantized weights and inputs; the
    weights of all others are decoded. Returned beside the segments: a row for each layer, whose engine is
    ``"pt2e"`` or ``"float"``. Raises :class:`~chainfx.errors.InputError` where no layer can run in integers, and
    without torchao; ``what`` names what was asked for.
    """
    inductor_options(what)
    own = copy.deepcopy(to_codes(graph_module, shared=True)).cpu().requires_grad_(False)
    propagate_shapes(own, inputs)
    reasons = why_in_float(own, machine)
    if all(reasons.values()):
        found = "; ".join(f"{layer.path}: {reason}" for layer, reason in list(reasons.items())[:3])
        raise InputError(f"{what} was asked for, but no layer can run in integers here ({found or 'there is none'}).")
    rows = [
        Lowered(layer.path, operator_of(layer.node).spelling, "float" if reason else "pt2e", reason or "by Inductor")
        for layer, reason in reasons.items()
    ]
    for layer in [layer for layer, reason in reasons.items() if reason]:
        path = edit.fresh_path(own, f"decoded_{layer.name}")
        edit.set_tensor(own, path, value_of(own, layer.weight_read), parameter=False)
        with own.graph.inserting_before(layer.node):
            layer.node.update_arg(1, own.graph.get_attr(path))
    _lay_rows_out(own)
    _widen([layer for layer, reason in reasons.items() if not reason])
    propagate_shapes(own, inputs)
    rewrite_for_export(own, INDUCTOR)
    segments = split_segments(own)
    for segment in segments:
        _keep_inputs(segment)
    return segments, rows


def _keep_inputs(segment: GraphModule) -> None:
    """Let additions read copies of the inputs of a segment, which kernels that add would write over.

    Inductor takes a clone away. It leaves the maximum of a value and itself, which is the value.
    """
    for node in segment.graph.find_nodes(op="placeholder"):
        readers = [user for user in node.users if operator_of(user, segment.get_submodule).name == "add"]
        if readers:
            with segment.graph.inserting_before(readers[0]):
                copied = segment.graph.call_function(torch.maximum, (node, node))
            copied.meta = dict(node.meta)
            for reader in readers:
                reader.replace_input_with(node, copied)
    segment.recompile()


def _lay_rows_out(graph_module: GraphModule) -> None:
    """Put a copy in order of memory, where there is none, before what quantizes the input of a linear layer.

    torch makes a product of batches of a linear layer whose input of three dimensions lies otherwise, as that behind
    attention does, and the passes of torchao know such a product for one batch size alone.
    """
    linear = [layer for layer in layers_of(graph_module) if layer.node.target is F.linear]
    for quantizer in dict.fromkeys(layer.input_quantizer for layer in linear):
        if quantizer is not None and len(shape_of(quantizer)) > _ROWS:
            values = input_of(quantizer)
            with graph_module.graph.inserting_before(quantizer):
                laid_out = graph_module.graph.call_method("contiguous", (values,))
            laid_out.meta = dict(values.meta)
            quantizer.update_arg(0, laid_out)


def _widen(layers: Sequence[Layer]) -> None:
    """Let convolutions of images with one channel read a second one, of zeros, which changes no sum.

    One channel lies in memory as channels-last does and as contiguous at once; the kernel takes it for the former and
    answers so, Inductor for the latter and reads the answer so.
    """
    for layer in layers:
        graph, quantizer, weight = layer.node.graph, layer.input_quantizer, layer.weight_read
        shape = shape_of(layer.source)
        if (
            layer.node.target is F.linear
            or shape[1] > 1
            or quantizer is None
            or weight.target is not ops.dequantize_weight
        ):
            continue
        path = edit.fresh_path(layer.graph_module, f"wide_{layer.name}")
        edit.set_tensor(layer.graph_module, path, layer.tensor.repeat_interleave(2, layer.in_axis), parameter=False)
        with graph.inserting_before(layer.node):
            padded = graph.call_function(F.pad, (layer.source, (0, 0) * (len(shape) - 2) + (0, 1)))
            layer.node.update_arg(0, graph.call_function(ops.quantize_activation, (padded, *quantizer.args[1:])))
            decoded = graph.call_function(ops.dequantize_weight, (graph.get_attr(path), *weight.args[1:]))
            layer.node.update_arg(1, decoded)


@functools.cache
def inductor_options(what: str) -> dict[str, Any]:
    """The settings of Inductor under which it makes integer kernels; loads the passes for that and changes no setting.

    Raises :class:`~chainfx.errors.InputError` without torchao; ``what`` names what was asked for.
    """
    with _kept_settings(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # it registers the operators and the patterns, and sets a pass for the whole process, which is taken back
            from torchao.quantization.pt2e.inductor_passes.x86 import quant_lift_up
            from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer  # noqa: F401
        except ImportError as error:
            raise InputError(
                f"{what} needs the package torchao, which is not installed or has no passes for x86 ({error}); "
                f"run pip install 'chainfx[torchao]'."
            ) from error
    return {"freezing": True, "pre_grad_custom_pass": quant_lift_up}


@contextmanager
def frozen() -> Iterator[None]:
    """Let ``torch.compile`` take weights as constants and use torchao's passes, for what it compiles meanwhile.

    The settings are looked at before a backend is called, and in every call that compiles again, so that options of
    ``torch.compile`` are too late for them. Calls of kernels are machine code too: from Python a call takes as long as
    a small layer does.
    """
    from torch._inductor import config

    with torch.no_grad(), config.patch(inductor_options("engine='pt2e'") | {"cpp_wrapper": True}):
        yield


def matched_layers() -> int:
    """How many layers torchao's passes have given integer kernels in this process."""
    from torch._dynamo.utils import counters

    found = counters["inductor"]
    return int(found["qconv_weight_prepack_matcher_count"] + found["qlinear_weight_prepack_matcher_count"])


@contextmanager
def _kept_settings() -> Iterator[None]:
    from torch._inductor import config

    before = config.pre_grad_custom_pass
    try:
        yield
    finally:
        config.pre_grad_custom_pass = before
