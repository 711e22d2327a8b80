"""The compressed network as a module to call, compile, save and load."""

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from chainfx.deploy.lower import fold_codes, split_stages, to_codes
from chainfx.errors import ArtifactError, InputError
from chainfx.ir.artifact import load_graph, read_document, save_graph, write_document
from chainfx.ir.graph import exits_of, propagate_shapes
from chainfx.scheduler import ChainReport

__all__ = ["CompressedModel", "load"]

_REPORT = "report.json"


class CompressedModel(nn.Module):
    """A network in deploy form; call it like the original.

    With early exits a batch is compacted between the ``stages``: samples that are sure leave, the others go on, and
    what left is not computed further. The result has the shape (N, classes) of the original's and its row order.
    Each stage is a straight-line graph that ``torch.compile`` takes with ``fullgraph=True``; :meth:`compile` does so.

    ``graph_module`` is the whole network with integer weight codes (what :meth:`save` writes), ``report`` the account
    of the chain. The deploy form is for inference: it stays in eval mode.

    Example:
        >>> import torch, chainfx
        >>> net, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval(), torch.randn(2, 8)
        >>> model = chainfx.compile(net, [chainfx.passes.PruneChannels(0.5)], example_inputs=x)
        >>> model(x).shape
        torch.Size([2, 4])
    """

    def __init__(self, graph_module: GraphModule, example_inputs: tuple[Tensor, ...], report: ChainReport) -> None:
        super().__init__()
        self.graph_module = to_codes(graph_module)
        folded = fold_codes(self.graph_module)
        propagate_shapes(folded, example_inputs)
        self.stages = nn.ModuleList(split_stages(folded))
        self.example_inputs = tuple(torch.zeros_like(tensor) for tensor in example_inputs)
        self.report = report
        self._thresholds = tuple(mark.threshold for mark in exits_of(self.graph_module))
        super().train(False)

    def forward(self, *inputs: Tensor) -> Any:
        """What the original returns for these inputs; with exits, logits (N, classes)."""
        if not self._thresholds:
            return self.stages[0](*inputs)
        rows, values = torch.arange(len(inputs[0]), device=inputs[0].device), list(inputs)
        answers: Tensor | None = None
        for threshold, stage in zip(self._thresholds, self.stages, strict=False):
            logits, sure, *values = stage(*values)
            answers = _written(answers, rows, logits)
            stay = (sure < threshold).nonzero().squeeze(1)
            if len(stay) == 0:
                return answers
            if len(stay) < len(rows):
                rows, values = rows[stay], [value.index_select(0, stay) for value in values]
        return _written(answers, rows, self.stages[-1](*values))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile every stage in place with ``torch.compile``; options as there.

        Unless said otherwise: ``fullgraph=True``, and ``dynamic=True`` after the first exit, where the batch varies.
        """
        for index, stage in enumerate(self.stages):
            varies = {"dynamic": True} if index else {}
            stage.compile(*args, **{"fullgraph": True, **varies, **kwargs})

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
        examples = [{"shape": list(tensor.shape), "dtype": str(tensor.dtype)} for tensor in self.example_inputs]
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        written = write_document(folder / _REPORT, self.report.to_dict())
        save_graph(self.graph_module, folder, {"examples": examples, "report": written})

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
        examples = tuple(
            torch.zeros(item["shape"], dtype=getattr(torch, item["dtype"].removeprefix("torch.")))
            for item in extra["examples"]
        )
        report = ChainReport.from_dict(_report(Path(path), extra["report"]))
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{path} holds a graph but no CompressedModel; give a folder save() wrote.") from error
    return CompressedModel(graph_module, examples, report)


def _report(folder: Path, noted: Any) -> dict[str, Any]:
    """The report beside a manifest that noted its sum; chainfx 0.1 wrote the report itself into the manifest."""
    return read_document(folder / _REPORT, noted) if isinstance(noted, str) else dict(noted)
