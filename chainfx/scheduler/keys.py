"""What determines a stage, as a value: stages with equal keys are the same, and no other has theirs."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.fx import GraphModule

from chainfx.ir.artifact import fingerprint
from chainfx.ir.graph import content_hash, device_of
from chainfx.passes import Execution, Trainer
from chainfx.version import __version__

__all__ = ["StageKey", "Surroundings"]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all stages of one run share and what decides their results, beside the passes.

    ``network``: hash of the network as captured, weights included. ``trainer``: the fingerprint of the trainer, which
    covers objective, schedule and the content of its data; ``None`` without one. ``calibration``: hash of the
    calibration batches that were given, ``None`` if those of the trainer serve. ``inputs``: dtype and shape of each
    example input, such as ``"float32 (8, 3, 32, 32)"``. ``device``: the kind of device that the network is on, such as
    ``"cuda"``. ``precision``: torch's default dtype, how it multiplies float32 there, and what an
    :class:`~chainfx.passes.Execution` has other than by default. ``chainfx`` and ``torch``: their versions.
    """

    network: str
    trainer: str | None
    calibration: str | None
    seed: int
    inputs: tuple[str, ...]
    device: str
    precision: str
    chainfx: str
    torch: str

    @classmethod
    def of(
        cls,
        graph_module: GraphModule,
        example_inputs: Sequence[Tensor],
        trainer: Trainer | None,
        calibration: Sequence[tuple[Tensor, ...]] | None,
        seed: int,
        execution: Execution | None = None,
    ) -> Self:
        """The surroundings of a run in this process that begins with a captured network."""
        device = device_of(graph_module).type
        words = "" if execution is None else execution.words
        return cls(
            network=fingerprint(graph_module),
            trainer=None if trainer is None else trainer.fingerprint,
            calibration=None if calibration is None else content_hash(calibration),
            seed=seed,
            inputs=tuple(f"{_name(tensor.dtype)} {tuple(tensor.shape)}" for tensor in example_inputs),
            device=device,
            precision=", ".join(filter(None, (_precision(device), words))),
            chainfx=__version__,
            torch=str(torch.__version__),
        )

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The surroundings with the fields that ``plain`` has; what only another version knows is left out."""
        known = {field.name: plain[field.name] for field in dataclasses.fields(cls)}
        return cls(**{**known, "inputs": tuple(known["inputs"])})


@dataclass(frozen=True, slots=True)
class StageKey:
    """What determines a stage: the fingerprint of its parent, the pass as :meth:`~chainfx.passes.Pass.spec` writes it,
    the revision that the pass declares, the surroundings of the run, and the options of the user for its tuning.
    """

    parent: str
    spec: Mapping[str, Any] = dataclasses.field(hash=False)
    revision: int
    surroundings: Surroundings
    tuning: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    @property
    def fingerprint(self) -> str:
        """The hash of the key, the same in every process; a stage is stored under it."""
        return content_hash(dataclasses.asdict(self))


def _precision(device: str) -> str:
    """For instance ``"float32, products none, convolutions tf32"``: the settings by the names that torch gives them."""
    backends: Any = torch.backends
    products, convolutions = backends.mkldnn.matmul, backends.mkldnn.conv
    if device == "cuda":
        products, convolutions = backends.cuda.matmul, backends.cudnn.conv
    settings = f"products {products.fp32_precision}, convolutions {convolutions.fp32_precision}"
    return f"{_name(torch.get_default_dtype())}, {settings}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
