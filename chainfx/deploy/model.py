"""The compressed network as a module to call, compile, save and load."""

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from chainfx.deploy.driving import run_segments
from chainfx.deploy.engines import EngineChoice, lower_to
from chainfx.deploy.exporting import ExportFormat, frozen, write_export
from chainfx.deploy.integers import Engine, Lowering, Machine
from chainfx.deploy.lower import to_codes
from chainfx.errors import ArtifactError, InputError
from chainfx.ir.artifact import dtype_of, is_coded, load_graph, make_folder, read_document, save_graph, write_document
from chainfx.ir.capture import Signature
from chainfx.ir.graph import casts_follow_weights, check_rules, exits_of, layers_of
from chainfx.scheduler import ChainReport

__all__ = ["CompressedModel", "load"]

_MOST_ELEMENTS = 2**28
_REPORT = "report.json"


class CompressedModel(nn.Module):
    """A network in deploy form; call it like the original, by position or by the names that its ``forward`` has.

    A call that the network was not captured for, such as one with another size where capture had to write the size of
    the example down, is one sentence (:class:`~chainfx.errors.InputError`); ``signature`` says what was fixed.

    With early exits a batch is compacted between the ``segments``: samples that are sure leave, the others go on, and
    what left is not computed further. The result has the shape (N, classes) of the original's and its row order.
    Each segment is a straight-line graph that ``torch.compile`` takes with ``fullgraph=True``; :meth:`compile` does so.
    A network without exits is one segment.

    It runs on an *engine*: ``"int8"`` hands uint8 codes from layer to layer and computes in integers what the
    quantizers say; ``"sparse"`` multiplies by the weights that are not zero in large linear layers that are mostly
    zeros, and ``"float"`` computes with decoded weights and rounded activations; ``"pt2e"``, only where it is asked
    for, lets Inductor of torch make integer kernels, with the passes of torchao. ``engine`` names the present one,
    ``lowering`` says of each layer which it runs on and why, and :meth:`lower` gives the same network on another.
    ``engine="auto"`` takes integers where at least one layer can run in them on ``machine``, which is this one unless
    said otherwise, and sparse products in float where they pay.

    ``graph_module`` is the whole network with integer weight codes (what :meth:`save` writes), ``report`` the account
    of the chain. The deploy form is for inference: it stays in eval mode, and what is rounded has no gradient, which
    ``graph_module`` passes straight through.

    Example:
        >>> import torch, chainfx
        >>> net, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval(), torch.randn(2, 8)
        >>> model = chainfx.compile(net, [chainfx.passes.PruneChannels(0.5)], example_inputs=x)
        >>> model(x).shape
        torch.Size([2, 4])
    """

    in_deploy_form = True
    """Capture does not enter a network that has this."""

    def __init__(
        self,
        graph_module: GraphModule,
        example_inputs: tuple[Tensor, ...],
        report: ChainReport,
        signature: Signature | None = None,
        engine: EngineChoice = "auto",
        machine: Machine | None = None,
    ) -> None:
        super().__init__()
        names = [str(node.target) for node in graph_module.graph.find_nodes(op="placeholder")]
        self.signature = signature or Signature.by_position(names, example_inputs)
        self.graph_module = to_codes(graph_module)
        self.example_inputs = tuple(torch.zeros_like(tensor) for tensor in example_inputs)
        self.report = report
        self.machine = machine or Machine.here()
        self.lowering: Lowering
        self._place_segments(engine)
        self._thresholds = tuple(mark.threshold for mark in exits_of(self.graph_module))
        super().train(False)

    @property
    def engine(self) -> Engine:
        """What the network runs on: ``"int8"``, ``"pt2e"`` or ``"sparse"`` where some layers do, or ``"float"``."""
        return self.lowering.engine

    def lower(self, engine: EngineChoice) -> "CompressedModel":
        """The same network on another engine, by name; ``"pt2e"`` has tensors of its own, all others share them.

        ``"pt2e"`` compiles at once, which takes half a minute or more, compares the answers, and needs torchao. Raises
        :class:`~chainfx.errors.InputError` for ``"int8"`` and ``"pt2e"`` where no layer can run in integers, for
        ``"sparse"`` where no layer pays as a sparse product, and where what was compiled answers otherwise or has
        another number of layers in integers.
        """
        return CompressedModel(
            self.graph_module, self.example_inputs, self.report, self.signature, engine, self.machine
        )

    def _place_segments(self, engine: EngineChoice) -> None:
        inputs = self.signature.to_graph(self.example_inputs)
        segments, self.lowering = lower_to(engine, self.graph_module, inputs, self.machine)
        self.segments = nn.ModuleList(segments).train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What ``.to``, ``.half`` and the like do, also to the example inputs and the dtypes of the signature.

        Layers in integers compute in float32 on the CPU: elsewhere the network is lowered to float.
        """
        before = _place_of(self.graph_module)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch says nothing of its types
        self.example_inputs = tuple(map(fn, self.example_inputs))
        self.signature = self.signature.with_dtypes_of(self.example_inputs)
        after = _place_of(self.graph_module)
        if len({dtype for _, dtype in after}) == 1:
            casts_follow_weights(self.graph_module)
        if after != before:  # weights are decoded in the new precision, as after load
            self._place_segments("float" if self.engine == "float" else "auto")
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the original returns for these inputs; with exits, logits (N, classes).

        Raises :class:`~chainfx.errors.InputError` for inputs that the network does not take, and on the int8 engine for
        values that are not finite, which have no code.
        """
        inputs = self.signature.bind(args, kwargs)
        self.signature.check(inputs)
        if self.engine == "int8" and not torch.compiler.is_compiling():
            _check_finite(self.signature, inputs)
        if torch.compiler.is_compiling() or self.signature.has_shapes_of(inputs):
            return self._answer(*inputs)
        try:
            return self._answer(*inputs)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
            captured = ", ".join(str(each.shape) for each in self.signature.inputs)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise InputError(
                f"the network was captured with inputs of shape {captured} and fails on {shapes}: {reason}."
            ) from error

    def _answer(self, *inputs: Tensor) -> Any:
        if self.engine != "pt2e":
            return self.signature.from_graph(self._run(inputs))
        with frozen():
            return self.signature.from_graph(self._run(inputs))

    def _run(self, inputs: Sequence[Tensor]) -> Any:
        return run_segments(self.segments, self._thresholds, self.signature.to_graph(inputs))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile every segment in place with ``torch.compile``; options as there, and ``fullgraph=True`` by default.

        The batch is free from the first call on: a segment becomes one graph for all batches, or, where there are
        convolutions on a CPU, one for up to 15 samples and one from 16 on, since torch chooses kernels by that.
        """
        for segment in self.segments:
            segment.compile(*args, **{"fullgraph": True, **kwargs})

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles are made of: the network, not what :meth:`compile` made of it."""
        segments = (copy.copy(each) if each._compiled_call_impl else each for each in self.segments)
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]  # nor of these
        return {**state, "_modules": {**state["_modules"], "segments": nn.ModuleList(segments)}}

    def train(self, mode: bool = True) -> Self:
        """Eval mode only; raises :class:`InputError` for ``train(True)``."""
        if mode:
            raise InputError(
                "a CompressedModel is for inference and cannot be put in train mode; "
                "tune with a trainer inside chainfx.compile."
            )
        return super().train(False)

    def save(self, path: str | Path) -> None:
        """Write the network to a folder: safetensors, a JSON manifest and the report, weights packed at their widths.

        After :class:`~chainfx.passes.Encode` it is one file, ``model.chainfx``, with everything coded, and the report.

        Raises :class:`~chainfx.errors.ArtifactError` for a network that has no form without code, such as one with a
        module of the user's own that could not be captured.
        """
        folder = Path(path)
        make_folder(folder)
        written = write_document(folder / _REPORT, self.report.to_dict())
        coded = any(layer.coded is not None for layer in layers_of(self.graph_module))
        extra = {"signature": self.signature.to_dict(), "report": written}
        save_graph(self.graph_module, folder, extra, coded=coded)

    def export(self, path: str | Path, format: ExportFormat = "onnx", calibration: Sequence[Any] | None = None) -> None:
        """Write the network to a folder as files that run without chainfx, on the CPU, with a free batch size.

        ``"onnx"``: for ONNX Runtime and others; int8 weights with ``DequantizeLinear``, and ``QuantizeLinear`` where an
        activation is quantized. ``"pt2"``: for ``torch.export.load``; int8 weights that the graph decodes, in plain
        torch arithmetic. Fewer bits than 8 are stored as int8. ``"aoti"``: packages of AOTInductor with integer
        kernels, machine code for the instruction set of this processor, for ``torch._inductor.aoti_load_package`` or a
        C++ program. They are compiled, which takes a minute and needs g++ and torchao, and compared with the network
        before they are handed over; each layer of the int8 engine must be an integer call in them.

        There is one file for each segment (``segment0.onnx``, ...), and ``manifest.json`` says what each takes and
        gives, and at which confidence a sample leaves after it. Files take tensors with the batch first, in the order
        of ``signature.inputs``, and return plain tensors; all other sizes are those of the example.

        ``calibration``: batches of inputs from the training data, for ONNX. Runtimes run a layer in integers only where
        its own result is quantized; where it is added to something first, as before a skip connection, that is not so.
        With these batches such results are rounded to 8 bits as well, over their range on the batches: quicker, and no
        longer exactly the same answers.

        Raises :class:`~chainfx.errors.InputError` for another format, without the packages of ``chainfx[export]``, and
        for ONNX in another type than float32; :class:`~chainfx.errors.ArtifactError` for a path that cannot be a
        folder, for a network that torch cannot export, and for a package that is not what was asked for.
        """
        write_export(self.graph_module, self.example_inputs, self.signature, Path(path), format, calibration)

    @property
    def stages(self) -> nn.ModuleList:
        """The :attr:`segments` by the name they had first; a stage is a step of a chain now."""
        return self.segments

    @property
    def exit_names(self) -> tuple[str, ...]:
        """The names of the exits in the order samples meet them."""
        return tuple(mark.name for mark in exits_of(self.graph_module))


def _place_of(graph_module: GraphModule) -> frozenset[tuple[torch.device, torch.dtype]]:
    """The devices and the types of the tensors of floating point numbers of a network."""
    tensors = itertools.chain(graph_module.parameters(), graph_module.buffers())
    return frozenset((tensor.device, tensor.dtype) for tensor in tensors if tensor.is_floating_point())


def _check_finite(signature: Signature, inputs: Sequence[Tensor]) -> None:
    for parameter, tensor in zip(signature.inputs, inputs, strict=True):
        if tensor.is_floating_point() and not _is_finite(tensor):
            raise InputError(
                f"input {parameter.name!r} has values that are not finite, which the int8 engine has no codes for; "
                f"mend the batch, or run the network of lower('float')."
            )


def _is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite: if one is not, neither is the sum, which is quicker, but may be too large."""
    return math.isfinite(tensor.sum().item()) or bool(tensor.isfinite().all())


def load(path: str | Path, engine: EngineChoice = "auto") -> CompressedModel:
    """The network that :meth:`CompressedModel.save` wrote: same outputs, bit for bit, on the same engine.

    ``engine``: ``"int8"``, ``"sparse"``, ``"float"``, or ``"auto"`` for integers where this machine can; see
    :class:`CompressedModel`. Nothing in the folder is executed. Raises :class:`~chainfx.errors.ArtifactError` if it is
    not as it was saved.
    """
    graph_module, extra = load_graph(Path(path))
    try:
        signature = Signature.from_dict(extra["signature"]) if "signature" in extra else None
        listed = extra["examples"] if signature is None else signature.to_dict()["parameters"]
        examples = tuple(_zeros(item["shape"], item["dtype"]) for item in listed if "shape" in item)
        report = _report(Path(path), extra["report"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ArtifactError(f"{path} holds a graph but no CompressedModel; give a folder save() wrote.") from error
    try:
        check_rules(graph_module)
        small = CompressedModel(graph_module, examples, report, signature, "float" if engine == "float" else "auto")
        last: Any = small.segments[-1]
        if not small.signature.fits(last.graph.output_node().args[0]):
            raise ValueError("it does not return what its signature says")
    except Exception as error:  # whatever a graph that chainfx did not write makes torch raise
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        raise ArtifactError(f"{path} holds a graph that cannot run: {reason}; save the model again.") from error
    return small if engine in ("auto", small.engine) else small.lower(engine)


def _report(folder: Path, noted: Any) -> ChainReport:
    """The report beside a manifest that noted its sum; chainfx 0.1 wrote the report itself into the manifest.

    A coded file is shipped without it where bytes count: then the report is empty.
    """
    if is_coded(folder) and not (folder / _REPORT).exists():
        return ChainReport("", ())
    return ChainReport.from_dict(read_document(folder / _REPORT, noted) if isinstance(noted, str) else dict(noted))


def _zeros(shape: list[int], dtype: str) -> Tensor:
    """An example input; raises :class:`ArtifactError` for one of more than 2**28 elements."""
    if not all(type(size) is int and size >= 0 for size in shape) or math.prod(shape) > _MOST_ELEMENTS:
        raise ArtifactError(f"the saved network has an example input of shape {shape}, which is none; save it again.")
    return torch.zeros(shape, dtype=dtype_of(dtype), device="cpu")
