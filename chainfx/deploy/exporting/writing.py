"""Exported files: one for each segment of a network, and a manifest that says how they go together."""

import copy
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from chainfx.deploy.exporting.forms import ONNX, PLAIN
from chainfx.deploy.exporting.inductor import integer_segments
from chainfx.deploy.exporting.packages import write_packages
from chainfx.deploy.exporting.rewriting import rewrite_for_export
from chainfx.deploy.exporting.terms import Ranges, ranges_of_terms
from chainfx.deploy.integers import Machine
from chainfx.deploy.lower import split_segments, to_codes
from chainfx.errors import ArtifactError, ChainfxError, InputError
from chainfx.ir.artifact import make_folder
from chainfx.ir.capture import Signature
from chainfx.ir.graph import exits_of, propagate_shapes, torchao_weight_of
from chainfx.version import __version__

__all__ = ["ExportFormat", "write_export"]

ExportFormat = Literal["onnx", "pt2", "aoti"]
"""The files that a network can be exported to: those of ONNX, of ``torch.export``, or of AOTInductor."""

_MANIFEST = "manifest.json"
_SUFFIX = {"aoti": "pt2"}
_EXTRA = ("onnx", "onnxscript")  # what torch's exporter to ONNX imports
_LEAST_BATCH = 2  # torch.export takes a size of 1 as fixed


def write_export(
    graph_module: GraphModule,
    example_inputs: Sequence[Tensor],
    signature: Signature,
    path: Path,
    file_format: str,
    calibration: Sequence[Any] | None = None,
) -> None:
    """Write a network with codes of weights to a folder; see :meth:`chainfx.deploy.CompressedModel.export`."""
    _check(graph_module, file_format, calibration)
    batches = [_as_graph_takes(signature, batch) for batch in calibration or ()]
    make_folder(path)
    inputs = _with_batch([each.cpu() for each in signature.to_graph(example_inputs)])
    own = copy.deepcopy(to_codes(graph_module, shared=True)).cpu().requires_grad_(False)
    marks = [{"name": mark.name, "threshold": mark.threshold} for mark in exits_of(own)]
    propagate_shapes(own, inputs)
    ranges = _ranges(own, signature, batches)
    try:
        if file_format == "aoti":
            segments, rows = integer_segments(graph_module, inputs, Machine.here(), "format='aoti'")
        else:
            rewrite_for_export(own, ONNX if file_format == "onnx" else PLAIN, ranges)
            segments = split_segments(own)
        programs = _programs(segments, inputs)
        names = _names(programs, [each.name for each in signature.inputs])
        files = [f"segment{index}.{_SUFFIX.get(file_format, file_format)}" for index in range(len(programs))]
        if file_format == "aoti":
            write_packages(segments, programs, [path / file for file in files], inputs, rows)
        else:
            for program, (takes, gives), file in zip(programs, names, files, strict=True):
                _write(program, takes, gives, path / file)
    except ChainfxError:
        raise
    except Exception as error:  # whatever torch raises for what it cannot export
        raise ArtifactError(_refusal(own, file_format, error)) from error
    described = [
        {"file": file, "inputs": takes, "outputs": gives, "exit": mark}
        for file, (takes, gives), mark in zip(files, names, [*marks, None], strict=True)
    ]
    listed = [_described(each.name, x, inputs) for each, x in zip(signature.inputs, inputs, strict=True)]
    manifest = {"chainfx": __version__, "format": file_format, "inputs": listed, "segments": described}
    (path / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _described(name: str, tensor: Tensor, inputs: Sequence[Tensor]) -> dict[str, Any]:
    """An input in the manifest; the size of the batch, which is free, is ``None``."""
    shape = [None, *tensor.shape[1:]] if _is_batched(tensor, inputs) else list(tensor.shape)
    return {"name": name, "shape": shape, "dtype": str(tensor.dtype).removeprefix("torch.")}


def _check(graph_module: GraphModule, file_format: str, calibration: Sequence[Any] | None) -> None:
    """Raise :class:`~chainfx.errors.InputError` for a format that is not known, or that cannot be written here."""
    if file_format not in get_args(ExportFormat):
        raise InputError(f"format is {file_format!r}; give one of {', '.join(map(repr, get_args(ExportFormat)))}.")
    given = isinstance(calibration, list | tuple) and len(calibration)
    if calibration is not None and (file_format != "onnx" or not given):
        raise InputError(
            f"calibration is a {type(calibration).__name__} for format={file_format!r}; give a list of at least one "
            "batch of inputs, for format='onnx', or leave it out."
        )
    for node in graph_module.graph.nodes:
        if torchao_weight_of(node) is not None:
            raise InputError(
                f"the weight of {node.name!r} is a tensor of torchao, which has no form in {file_format}; "
                f"quantize with PostTrainingQuantize to export."
            )
    if file_format != "onnx":
        return
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"format='onnx' needs the package {missing[0]}, which is not installed; run pip install 'chainfx[export]'."
        )
    tensors = [*graph_module.parameters(), *graph_module.buffers()]
    other = next((x.dtype for x in tensors if x.is_floating_point() and x.dtype != torch.float32), None)
    if other is not None:
        raise InputError(f"format='onnx' is for float32, but the network has tensors of {other}; call .float() first.")


def _with_batch(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Example inputs with a batch that torch.export can leave open."""
    if inputs[0].dim() == 0 or len(inputs[0]) >= _LEAST_BATCH:
        return tuple(inputs)
    return tuple(
        each.new_zeros((_LEAST_BATCH, *each.shape[1:])) if _is_batched(each, inputs) else each for each in inputs
    )


def _is_batched(tensor: Tensor, inputs: Sequence[Tensor]) -> bool:
    """Whether the first dimension of an input is the batch: that of the first input is."""
    return tensor.dim() > 0 and tensor.shape[:1] == inputs[0].shape[:1]


def _as_graph_takes(signature: Signature, batch: Any) -> tuple[Tensor, ...]:
    """A batch of inputs as a caller has it, a tensor, several in order, or a mapping by name; on the CPU, checked."""
    given, named = ((), batch) if isinstance(batch, Mapping) else (batch, {})
    tensors = signature.bind((given,) if isinstance(given, Tensor | str) else tuple(given), named)
    signature.check(tensors)
    for known, tensor in zip(signature.inputs, tensors, strict=True):
        if not bool(tensor.isfinite().all()):
            raise InputError(
                f"a batch of calibration has values in {known.name!r} that are not finite; mend or remove it."
            )
    return tuple(each.cpu() for each in signature.to_graph(tensors))


def _ranges(graph_module: GraphModule, signature: Signature, batches: Sequence[tuple[Tensor, ...]]) -> Ranges:
    """What the results that are to be rounded range over; raises for batches that the network does not accept."""
    try:
        return ranges_of_terms(graph_module, batches)
    except (RuntimeError, ValueError) as error:
        shapes = ", ".join(str(tuple(each.shape)) for each in batches[0])
        names = ", ".join(each.name for each in signature.inputs)
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(
            f"the network does not accept a batch of calibration, {names} of shape {shapes} in the first one: "
            f"{reason}; give batches as the example inputs."
        ) from error


def _programs(segments: Sequence[GraphModule], inputs: tuple[Tensor, ...]) -> list[ExportedProgram]:
    """The segments of a network as torch exports them, with a free batch."""
    programs, values = [], inputs
    with torch.no_grad():
        for segment in segments:
            batch = Dim("batch")
            free = tuple({0: batch} if _is_batched(each, values) else None for each in values)
            programs.append(torch.export.export(segment, values, dynamic_shapes=free))
            given = segment(*values)
            values = tuple(given[2:]) if isinstance(given, tuple) else ()  # those after logits and confidence
    return programs


def _names(programs: Sequence[ExportedProgram], inputs: list[str]) -> list[tuple[list[str], list[str]]]:
    """The names of what each segment takes and gives; what one hands on the next takes by the same name."""
    found, takes = [], inputs
    for index, program in enumerate(programs):
        count = len(program.graph_signature.user_outputs)
        if index == len(programs) - 1:
            gives = [f"output{place}" for place in range(count)]
        else:
            gives = [f"logits{index}", f"confidence{index}", *(f"carried{index}_{at}" for at in range(count - 2))]
        found.append((takes, gives))
        takes = gives[2:]
    return found


def _write(program: ExportedProgram, takes: list[str], gives: list[str], file: Path) -> None:
    if file.suffix == ".pt2":
        torch.export.save(program, file)
        return
    values = {node.name: node.meta["val"] for node in program.graph.find_nodes(op="placeholder")}
    batched = [_has_free_batch(values[name]) for name in program.graph_signature.user_inputs]
    first = batched.index(True) if True in batched else None  # all others have its size, and so its name
    made = torch.onnx.export(
        program,
        dynamo=True,
        input_names=takes,
        output_names=gives,
        dynamic_shapes=tuple({0: "batch"} if place == first else None for place in range(len(batched))),
        verbose=False,
    )
    assert made is not None  # it is for dynamo=True
    made.save(file, external_data=False)


def _has_free_batch(value: Tensor) -> bool:
    return value.dim() > 0 and isinstance(value.shape[0], torch.SymInt)


def _refusal(graph_module: GraphModule, file_format: str, error: Exception) -> str:
    """Why a network cannot be exported, and the modules whose code is not part of torch."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    calls = graph_module.graph.find_nodes(op="call_module")
    own = [
        str(node.target)
        for node in calls
        if not type(graph_module.get_submodule(str(node.target))).__module__.startswith("torch.nn.")
    ]
    advice = f"write {', '.join(own)} so that torch.export takes it" if own else "change that part of the network"
    return f"the network cannot be exported to {file_format}: {reason}; {advice}, or use save() and chainfx.load()."
