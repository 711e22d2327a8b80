"""What a trainer trains on: three parts of one data set, with the fingerprint that names them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from chainfx.errors import DataError
from chainfx.ir.graph import content_hash, derived_generator, seeded
from chainfx.passes import Task
from chainfx.training.tasks import classes

__all__ = [
    "Arrays",
    "Batch",
    "Batches",
    "Data",
    "Images",
    "InMemory",
    "Samples",
    "Split",
    "SplitOptions",
    "build",
    "halve_validation",
    "stratified_split",
]

Arrays = tuple[Tensor, Tensor]
Batch = tuple[tuple[Tensor, ...], Any]

_CHUNK = 4096


class Split(Protocol):
    """One part of a data set: training, validation or test."""

    def __len__(self) -> int:
        """The number of samples."""

    def steps(self, batch_size: int) -> int:
        """The number of batches of one shuffled epoch."""

    def batches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Batches ``(inputs, targets)``: all samples in a fixed order, or, with a generator, one shuffled epoch."""


@runtime_checkable
class InMemory(Protocol):
    """A split whose samples have an index, so that it can be kept on a device and read sample by sample."""

    def __len__(self) -> int:
        """The number of samples."""

    @property
    def nbytes(self) -> int:
        """The memory that the samples take."""

    @property
    def targets(self) -> Tensor:
        """The targets of all samples."""

    def to(self, device: torch.device) -> Self:
        """The split with its samples on a device."""

    def order(self, batch_size: int, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """The indices of each batch, on the CPU: all samples in order, or, with a generator, one shuffled epoch."""

    def at(self, index: Tensor) -> Batch:
        """The batch of the samples at these indices, where the samples are."""


def _order(count: int, batch_size: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
    if generator is None:
        places = torch.arange(count, device="cpu")
    else:
        places = torch.randperm(count, generator=generator, device="cpu")
    batches: tuple[Tensor, ...] = places.split(batch_size)
    return batches if generator is None else batches[: max(1, count // batch_size)]


@dataclass(frozen=True, eq=False)
class Images:
    """A split in memory: ``images`` (N, C, H, W) uint8 or float32, ``labels`` (N,) int64, and the normalisation.

    A batch is ``(images - mean) / std`` in float32, with uint8 images first divided by 255. A shuffled epoch leaves
    out the last, incomplete batch (BatchNorm cannot train on one sample) unless it is the only one.
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.images)

    def steps(self, batch_size: int) -> int:
        """The number of batches of one shuffled epoch."""
        return max(1, len(self) // batch_size)

    def batches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Batches ``((images,), labels)`` of at most ``batch_size`` samples."""
        return (self.at(index) for index in self.order(batch_size, generator))

    @property
    def nbytes(self) -> int:
        """The memory that the samples take."""
        return self.images.nbytes + self.labels.nbytes

    @property
    def targets(self) -> Tensor:
        """The labels (N,)."""
        return self.labels

    def to(self, device: torch.device) -> Self:
        """The split with its samples on a device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def order(self, batch_size: int, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """The indices of each batch, see :class:`InMemory`."""
        return _order(len(self), batch_size, generator)

    def at(self, index: Tensor) -> Batch:
        """The batch ``((images,), labels)`` of the samples at these indices."""
        return (self._normalised(self.images[index]),), self.labels[index]

    def _normalised(self, images: Tensor) -> Tensor:
        mean, std = self._statistics
        return (images.float() - mean) / std

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation where the images are; made once, as each copy to a GPU waits for it."""
        unit = 255.0 if self.images.dtype == torch.uint8 else 1.0
        statistics = torch.tensor((self.mean, self.std), device=self.images.device)[..., None, None] * unit
        return statistics[0], statistics[1]


@dataclass(frozen=True, eq=False)
class Samples:
    """A split in memory of any task: ``inputs``, tensors of (N, ...) in the order in which the network takes them, and
    ``targets`` (N, ...). A shuffled epoch leaves out the last, incomplete batch unless it is the only one.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def steps(self, batch_size: int) -> int:
        """The number of batches of one shuffled epoch."""
        return max(1, len(self) // batch_size)

    def batches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Batches ``(inputs, targets)`` of at most ``batch_size`` samples."""
        return (self.at(index) for index in self.order(batch_size, generator))

    @property
    def nbytes(self) -> int:
        """The memory that the samples take."""
        return sum(tensor.nbytes for tensor in (*self.inputs, self.targets))

    def to(self, device: torch.device) -> Self:
        """The split with its samples on a device."""
        return replace(self, inputs=tuple(x.to(device) for x in self.inputs), targets=self.targets.to(device))

    def order(self, batch_size: int, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """The indices of each batch, see :class:`InMemory`."""
        return _order(len(self), batch_size, generator)

    def at(self, index: Tensor) -> Batch:
        """The batch of the samples at these indices."""
        return tuple(tensor[index] for tensor in self.inputs), self.targets[index]


@dataclass(frozen=True)
class Batches:
    """The batches of a split in their fixed order, the same at every iteration."""

    split: Split
    batch_size: int

    def __iter__(self) -> Iterator[Batch]:
        return self.split.batches(self.batch_size)


@dataclass(frozen=True)
class Data:
    """A data set in three parts, of which the test part is never seen while training or choosing.

    ``validation`` is held out of the training data. ``input_shape`` is that of one sample, e.g. (3, 32, 32).
    ``fingerprint`` changes with the content and the options. ``batch_size`` is ``None`` unless the source (DataLoaders)
    fixes it. ``normalisation`` is the mean and standard deviation per channel of the *training* part (or as given), in
    units of [0, 1] for uint8 images. ``task``: what the data are for, ``None`` for classification into ``num_classes``.
    """

    train: Split
    validation: Split
    test: Split
    num_classes: int
    input_shape: tuple[int, ...]
    fingerprint: str
    batch_size: int | None = None
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    task: Task | None = None

    @property
    def purpose(self) -> Task:
        """The task, classification where no other is given."""
        return self.task or classes(self.num_classes)

    def calibration(self, samples: int, batch_size: int) -> tuple[tuple[Tensor, ...], ...]:
        """The inputs of the first batches of the training part, at least ``samples`` samples if it has so many."""
        found: list[tuple[Tensor, ...]] = []
        with seeded(0):  # a DataLoader draws its seed from the global generator
            for inputs, _ in self.train.batches(batch_size):
                found.append(inputs)
                if sum(len(batch[0]) for batch in found) >= samples:
                    break
        return tuple(found)

    def example_inputs(self, samples: int = 1) -> tuple[Tensor, ...]:
        """The inputs of the first ``samples`` samples of the training part."""
        return tuple(tensor[:samples] for tensor in self.calibration(samples, samples)[0])


@dataclass(frozen=True)
class SplitOptions:
    """How a source is split and normalised.

    ``validation``: share of the training data to hold out. ``test_share``: share of everything that becomes the test
    part where the source has none of its own. ``seed`` decides both; classes keep their shares. ``mean`` and ``std``:
    per channel, ``None`` to compute them on the training part.
    """

    validation: float = 0.1
    test_share: float = 0.2
    seed: int = 0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("validation", "test_share"):
            if not 0 < getattr(self, name) < 1:
                raise DataError(f"data: {name}={getattr(self, name)!r} is no share; use a number between 0 and 1.")
        if (self.mean is None) != (self.std is None):
            raise DataError("data: only one of mean and std is given; give both, or neither to have them computed.")
        if self.std is not None and min(self.std) <= 0:
            raise DataError(f"data: std={self.std!r} must be positive in every channel.")


def stratified_split(labels: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices ``(rest, held)`` into ``labels`` (N,), each shuffled; every class gives its share to ``held``.

    ``held`` has ceil(share * N) samples; a class keeps at least one in ``rest``. Raises
    :class:`~chainfx.errors.DataError` if no sample can be held out.
    """
    members = [torch.nonzero(labels == label).flatten() for label in labels.unique()]
    members = [indices[torch.randperm(len(indices), generator=generator, device="cpu")] for indices in members]
    counts = [min(int(share * len(indices)), len(indices) - 1) for indices in members]
    missing = math.ceil(share * len(labels)) - sum(counts)
    by_remainder = sorted(range(len(members)), key=lambda i: counts[i] - share * len(members[i]))
    for index in by_remainder[: max(missing, 0)]:
        counts[index] += counts[index] < len(members[index]) - 1
    if not sum(counts):
        raise DataError(
            f"data: {len(labels)} samples of {len(members)} classes are too few to hold out a share of {share}; "
            f"a class needs at least two."
        )
    held = torch.cat([indices[:count] for indices, count in zip(members, counts, strict=True)])
    rest = torch.cat([indices[count:] for indices, count in zip(members, counts, strict=True)])
    rest = rest[torch.randperm(len(rest), generator=generator, device="cpu")]
    return rest, held[torch.randperm(len(held), generator=generator, device="cpu")]


def build(name: str, train: Arrays, test: Arrays | None, options: SplitOptions) -> Data:
    """The :class:`Data` of ``(images, labels)`` in memory; without ``test`` a stratified test part is split off first.

    ``name`` stands in error messages. Images (N, C, H, W) uint8 or float32, labels (N,) int64 from 0.
    """
    _check(name, *train)
    fingerprint = content_hash(repr(options), train, test)
    if test is None:
        rest, held = stratified_split(train[1], options.test_share, derived_generator(options.seed, "test"))
        train, test = _take(train, rest), _take(train, held)
    else:
        _check(f"{name} (test part)", *test)
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(
            f"{name}: training images are {tuple(train[0].shape[1:])} and test images {tuple(test[0].shape[1:])} "
            f"(channels, height, width); they must be alike."
        )
    rest, held = stratified_split(train[1], options.validation, derived_generator(options.seed, "validation"))
    train, validation = _take(train, rest), _take(train, held)
    mean, std = _normalisation(name, train[0], options)
    return Data(
        train=Images(*train, mean, std),
        validation=Images(*validation, mean, std),
        test=Images(*test, mean, std),
        num_classes=int(max(part[1].max() for part in (train, validation, test))) + 1,
        input_shape=tuple(train[0].shape[1:]),
        fingerprint=fingerprint,
        normalisation=(mean, std),
    )


def _check(name: str, images: Tensor, labels: Tensor) -> None:
    """Raise :class:`~chainfx.errors.DataError` unless images and labels have the form that :func:`build` needs."""
    if images.dim() != 4 or not len(images):
        raise DataError(f"{name}: images of shape {tuple(images.shape)}; they must be (N, channels, H, W) with N > 0.")
    if labels.dim() != 1 or labels.is_floating_point():
        raise DataError(
            f"{name}: labels have shape {tuple(labels.shape)} and type {str(labels.dtype)[6:]}; "
            f"they must be one integer per image."
        )
    if len(labels) != len(images):
        raise DataError(f"{name}: {len(images)} images but {len(labels)} labels; there must be one label per image.")
    if int(labels.min()) < 0:
        raise DataError(f"{name}: label {int(labels.min())} is negative; number the classes from 0.")


def _take(arrays: Arrays, index: Tensor) -> Arrays:
    return arrays[0][index], arrays[1][index]


def _normalisation(name: str, images: Tensor, options: SplitOptions) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, as given or computed; a constant channel has standard deviation 1."""
    channels = images.shape[1]
    if options.mean is not None and options.std is not None:
        if {len(options.mean), len(options.std)} != {channels}:
            raise DataError(
                f"{name}: images have {channels} channels, but mean has {len(options.mean)} values and std "
                f"{len(options.std)}; give one value per channel."
            )
        return tuple(options.mean), tuple(options.std)
    total, squares = (torch.zeros(channels, dtype=torch.float64, device=images.device) for _ in range(2))
    for chunk in images.split(_CHUNK):
        values = chunk.double() / (255 if images.dtype == torch.uint8 else 1)
        total += values.sum((0, 2, 3))
        squares += values.square().sum((0, 2, 3))
    count = images.numel() / channels
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    return tuple(mean.tolist()), tuple(torch.where(std > 1e-6, std, 1.0).tolist())


def halve_validation(data: Data) -> tuple[Data, Split]:
    """The data with half of what is held out, and the other half as a part of its own; of images each has all classes.

    A study chooses on the one (best epoch) and judges on the other. Raises :class:`~chainfx.errors.DataError` for data
    that are not in memory.
    """
    held, generator = data.validation, derived_generator(0, "halves")
    if isinstance(held, Samples):
        order = torch.randperm(len(held), generator=generator, device="cpu").chunk(2)
        chosen, judged = (Samples(*held.at(index)) for index in order)
        return replace(data, validation=chosen, fingerprint=content_hash(data.fingerprint, "halved")), judged
    if not isinstance(held, Images):
        raise DataError(
            "the data come from DataLoaders, which cannot be split; give data in memory, as from_arrays does."
        )
    first, second = stratified_split(held.labels, 0.5, generator)
    parts = [Images(held.images[index], held.labels[index], held.mean, held.std) for index in (first, second)]
    return replace(data, validation=parts[0], fingerprint=content_hash(data.fingerprint, "halved")), parts[1]
