"""The compressed network as a module to call, compile, save and load."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from chainfx.deploy.lower import fold_codes, split_segments, to_codes
from chainfx.errors import ArtifactError, InputError
from chainfx.ir.artifact import dtype_of, load_graph, make_folder, read_document, save_graph, write_document
from chainfx.ir.capture import Signature
from chainfx.ir.graph import check_rules, exits_of, leaving, propagate_shapes
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

    ``graph_module`` is the whole network with integer weight codes (what :meth:`save` writes), ``report`` the account
    of the chain. The deploy form is for inference: it stays in eval mode.

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
    ) -> None:
        super().__init__()
        names = [str(node.target) for node in graph_module.graph.find_nodes(op="placeholder")]
        self.signature = signature or Signature.by_position(names, example_inputs)
        self.graph_module = to_codes(graph_module)
        self.example_inputs = tuple(torch.zeros_like(tensor) for tensor in example_inputs)
        self.segments = self._split()
        self.report = report
        self._thresholds = tuple(mark.threshold for mark in exits_of(self.graph_module))
        super().train(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the original returns for these inputs; with exits, logits (N, classes).

        Raises :class:`~chainfx.errors.InputError` for inputs that the network does not take.
        """
        inputs = self.signature.bind(args, kwargs)
        self.signature.check(inputs)
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
        return self.signature.from_graph(self._run(*self.signature.to_graph(inputs)))

    def _run(self, *inputs: Tensor) -> Any:
        if not self._thresholds:
            return self.segments[0](*inputs)
        rows, values = torch.arange(len(inputs[0]), device=inputs[0].device), list(inputs)
        answers: Tensor | None = None
        for threshold, segment in zip(self._thresholds, self.segments, strict=False):
            logits, sure, *values = segment(*values)
            answers = _written(answers, rows, logits)
            stay = leaving(sure, threshold).logical_not().nonzero().squeeze(1)
            if len(stay) == 0:
                return answers
            if len(stay) < len(rows):
                rows, values = rows[stay], [value.index_select(0, stay) for value in values]
        return _written(answers, rows, self.segments[-1](*values))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile every segment in place with ``torch.compile``; options as there.

        Unless said otherwise: ``fullgraph=True``, and ``dynamic=True`` after the first exit, where the batch varies.
        """
        for index, segment in enumerate(self.segments):
            varies = {"dynamic": True} if index else {}
            segment.compile(*args, **{"fullgraph": True, **varies, **kwargs})

    def _split(self) -> nn.ModuleList:
        folded = fold_codes(self.graph_module)
        propagate_shapes(folded, self.signature.to_graph(self.example_inputs))
        return nn.ModuleList(split_segments(folded))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What ``.to``, ``.half`` and the like do, also to the example inputs and the dtypes of the signature."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch says nothing of its types
        before = [x.dtype for x in self.example_inputs]
        self.example_inputs = tuple(map(fn, self.example_inputs))
        if [x.dtype for x in self.example_inputs] != before:
            self.signature = self.signature.with_dtypes_of(self.example_inputs)
            self.segments = self._split().train(False)  # weights decoded in the new precision, as after load
        return self

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

        Raises :class:`~chainfx.errors.ArtifactError` for a network that has no form without code, such as one with a
        module of the user's own that could not be captured.
        """
        folder = Path(path)
        make_folder(folder)
        written = write_document(folder / _REPORT, self.report.to_dict())
        save_graph(self.graph_module, folder, {"signature": self.signature.to_dict(), "report": written})

    @property
    def stages(self) -> nn.ModuleList:
        """The :attr:`segments` by the name they had first; a stage is a step of a chain now."""
        return self.segments

    @property
    def exit_names(self) -> tuple[str, ...]:
        """The names of the exits in the order samples meet them."""
        return tuple(mark.name for mark in exits_of(self.graph_module))


def _written(answers: Tensor | None, rows: Tensor, logits: Tensor) -> Tensor:
    """``answers`` (N, classes) with ``logits`` in the given rows; the logits themselves if they are for all rows."""
    if answers is None or len(rows) == len(answers):
        return logits
    return answers.index_copy(0, rows, logits)


def load(path: str | Path) -> CompressedModel:
    """The network that :meth:`CompressedModel.save` wrote: same outputs, bit for bit.

    Nothing in the folder is executed. Raises :class:`~chainfx.errors.ArtifactError` if it is not as it was saved.
    """
    graph_module, extra = load_graph(Path(path))
    try:
        signature = Signature.from_dict(extra["signature"]) if "signature" in extra else None
        listed = extra["examples"] if signature is None else signature.to_dict()["parameters"]
        examples = tuple(_zeros(item["shape"], item["dtype"]) for item in listed if "shape" in item)
        report = ChainReport.from_dict(_report(Path(path), extra["report"]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ArtifactError(f"{path} holds a graph but no CompressedModel; give a folder save() wrote.") from error
    try:
        check_rules(graph_module)
        model = CompressedModel(graph_module, examples, report, signature)
        last: Any = model.segments[-1]
        if not model.signature.fits(last.graph.output_node().args[0]):
            raise ValueError("it does not return what its signature says")
        return model
    except Exception as error:  # whatever a graph that chainfx did not write makes torch raise
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        raise ArtifactError(f"{path} holds a graph that cannot run: {reason}; save the model again.") from error


def _report(folder: Path, noted: Any) -> dict[str, Any]:
    """The report beside a manifest that noted its sum; chainfx 0.1 wrote the report itself into the manifest."""
    return read_document(folder / _REPORT, noted) if isinstance(noted, str) else dict(noted)


def _zeros(shape: list[int], dtype: str) -> Tensor:
    """An example input; raises :class:`ArtifactError` for one of more than 2**28 elements."""
    if not all(type(size) is int and size >= 0 for size in shape) or math.prod(shape) > _MOST_ELEMENTS:
        raise ArtifactError(f"the saved network has an example input of shape {shape}, which is none; save it again.")
    return torch.zeros(shape, dtype=dtype_of(dtype), device="cpu")
