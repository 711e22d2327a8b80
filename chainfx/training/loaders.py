"""One's own DataLoaders as data: what is held out of them, and the fingerprint of what they give."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, Sampler, SequentialSampler, Subset

from chainfx.errors import DataError
from chainfx.ir.graph import content_hash, derived_generator, seeded
from chainfx.passes import Task
from chainfx.training.data import Batch, Data, Split, SplitOptions

__all__ = ["Loaded", "from_loaders"]

_HASHED_SAMPLES = 4096
_READ_TWICE = 16


def from_loaders(
    train: DataLoader[Any],
    test: DataLoader[Any],
    *,
    num_classes: int | None = None,
    task: Task | None = None,
    inputs: Sequence[str] | None = None,
    targets: str = "labels",
    validation: DataLoader[Any] | None = None,
    validation_share: float = SplitOptions.validation,
    seed: int = SplitOptions.seed,
    fingerprint: str | None = None,
) -> Data:
    """Your own DataLoaders of ``(inputs, targets)``; ``inputs`` is a tensor or a tuple of them, batch first.

    Give ``num_classes`` for classification, with integer targets (N,), or else a ``task`` (see
    :mod:`chainfx.training`). Batches that are mappings, as Hugging Face collators make them, need the names of the
    ``inputs`` in the order in which the network takes them, and that of the ``targets``.

    Without ``validation`` a share of the training loader's data set is held out at random (its transforms, random ones
    too, apply to it; that needs a map-style data set and no own sampler).

    Finished stages are found again by the ``fingerprint`` of the data. By default it is a hash of which samples the
    training and the validation loader draw in their first epoch, in which batches, and of the content of up to 4,096
    samples of each, read once: more are not read, so a change among the others goes unnoticed. Random transforms are no
    hindrance if they draw from the global states of torch, numpy or ``random``. Give a name of your own where reading
    takes too long, and change it whenever the samples, their transforms or the loaders change. Raises
    :class:`~chainfx.errors.DataError` where the name is needed: for data sets without an index, and for samples that
    differ from one reading to the next.
    """
    _refuse_shuffle(test, "test")
    if validation is None:
        train, validation = _hold_out(train, validation_share, seed)
    _refuse_shuffle(validation, "validation")
    if (num_classes is None) == (task is None):
        given = "neither" if task is None else "both"
        raise DataError(f"from_loaders: {given} of num_classes and task is given; give one of them.")
    form = _Form(None if inputs is None else tuple(inputs), targets, classes=task is None)
    parts = (Loaded(train, form), Loaded(validation, form), Loaded(test, form))
    with _all_seeded():  # a DataLoader draws its seed from the global generator
        example, _ = next(parts[1].batches(1))
        size = train.batch_size or len(next(parts[0].batches(1))[0][0])
    return Data(
        train=parts[0],
        validation=parts[1],
        test=parts[2],
        num_classes=num_classes or 0,
        input_shape=tuple(example[0].shape[1:]),
        fingerprint=fingerprint or _fingerprint(train, validation, form),
        batch_size=size,
        task=task,
    )


@dataclass(frozen=True)
class _Form:
    """How the batches of a loader are read: the names in a mapping, and whether targets are classes."""

    inputs: tuple[str, ...] | None
    targets: str
    classes: bool

    def batch(self, item: Any) -> Batch:
        """The batch ``(inputs, targets)`` that a loader gave as ``item``."""
        if isinstance(item, Mapping):
            return self._named(item)
        if isinstance(item, tuple | list) and len(item) == 2:
            inputs = tuple(item[0]) if isinstance(item[0], tuple | list) else (item[0],)
            if isinstance(item[0], Mapping):
                inputs = self._inputs(item[0])
            fits = isinstance(item[1], Tensor) and not item[1].is_floating_point() if self.classes else True
            if fits and all(isinstance(tensor, Tensor) for tensor in inputs):
                return inputs, item[1]
        wanted = "integer targets (N,)" if self.classes else "tensors as inputs"
        raise DataError(
            f"a DataLoader gave a {type(item).__name__} that is not (inputs, targets) with {wanted}; "
            f"change its data set or collate_fn."
        )

    def _named(self, item: Mapping[str, Any]) -> Batch:
        if self.targets not in item:
            raise DataError(
                f"a DataLoader gave a mapping of {', '.join(item)} without {self.targets!r}; name its targets, as in "
                f"from_loaders(..., targets='{[*item, 'labels'][-2]}')."
            )
        return self._inputs(item), item[self.targets]

    def _inputs(self, item: Mapping[str, Any]) -> tuple[Tensor, ...]:
        if self.inputs is None:
            names = [name for name in item if name != self.targets]
            raise DataError(
                f"a DataLoader gave inputs by name; say in which order the network takes them, as in "
                f"from_loaders(..., inputs={names!r})."
            )
        missing = [name for name in self.inputs if name not in item]
        if missing:
            raise DataError(f"a DataLoader gave a mapping of {', '.join(item)} without the input {missing[0]!r}.")
        return tuple(item[name] for name in self.inputs)


@dataclass(frozen=True, eq=False)
class Loaded(Split):
    """A split that a user's DataLoader reads; its own batch size counts."""

    loader: DataLoader[Any]
    form: _Form

    def __len__(self) -> int:
        return _samples(self.loader)

    def steps(self, batch_size: int) -> int:
        """The number of batches that the loader gives."""
        return len(self.loader)

    def batches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """The batches of the loader, whatever ``batch_size`` says; a generator seeds its own."""
        if self.loader.generator is not None:
            self.loader.generator.manual_seed(0 if generator is None else generator.initial_seed())
        return (self.form.batch(item) for item in self.loader)

    def part(self, index: int, count: int) -> "Loaded | None":
        """The split of process ``index`` of ``count``, which reads its own share of each batch and nothing else.

        ``None`` for a loader whose samples are not drawn in batches of indices.
        """
        own = self.loader
        if isinstance(own.dataset, IterableDataset) or own.batch_sampler is None:
            return None
        loader: DataLoader[Any] = DataLoader(
            own.dataset,
            batch_sampler=_Share(own.batch_sampler, index, count),
            num_workers=own.num_workers,
            collate_fn=own.collate_fn,
            pin_memory=own.pin_memory,
            worker_init_fn=own.worker_init_fn,
            generator=own.generator,
        )
        return Loaded(loader, self.form)


@dataclass(frozen=True, eq=False)
class _Share(Sampler[list[Any]]):
    """Every n-th sample of each batch, for one of n processes; a batch of fewer than n stays whole everywhere."""

    batches: Any
    index: int
    count: int

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Any]]:
        for batch in self.batches:
            yield batch if len(batch) < self.count else batch[self.index :: self.count]


def _samples(loader: DataLoader[Any]) -> int:
    dataset: Any = loader.dataset  # torch's Dataset does not declare the length that all but iterable ones have
    return len(dataset)


def _refuse_shuffle(loader: DataLoader[Any], part: str) -> None:
    if isinstance(loader.sampler, RandomSampler):
        raise DataError(
            f"the {part} DataLoader shuffles, so its batches differ every time; make it with shuffle=False."
        )


def _hold_out(loader: DataLoader[Any], share: float, seed: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Two loaders on disjoint parts of the loader's data set, the first one shuffling as the loader did."""
    if type(loader.sampler) not in (RandomSampler, SequentialSampler) or loader.batch_size is None:
        raise DataError(
            f"the training DataLoader draws by its own {type(loader.sampler).__name__}, so chainfx cannot hold out "
            f"validation data; give validation=DataLoader(...)."
        )
    count = _samples(loader)
    held = round(count * share)
    if not 0 < held < count:
        raise DataError(
            f"a share of {share} of {count} training samples cannot be held out; use more, or another share."
        )
    order = torch.randperm(count, generator=derived_generator(seed, "validation"), device="cpu").tolist()
    shuffles = isinstance(loader.sampler, RandomSampler)
    return _same_loader(loader, order[held:], shuffles), _same_loader(loader, order[:held], False)


def _same_loader(loader: DataLoader[Any], indices: Sequence[Any], shuffle: bool) -> DataLoader[Any]:
    alone = None if loader.batch_sampler is None else 1
    return DataLoader(
        Subset(loader.dataset, indices),
        loader.batch_size or alone,
        shuffle,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=shuffle and len(indices) >= (loader.batch_size or 1),
        worker_init_fn=loader.worker_init_fn,
        generator=torch.Generator(device="cpu"),
    )


def _fingerprint(train: DataLoader[Any], validation: DataLoader[Any], form: _Form) -> str:
    return content_hash(_content(train, "training", form), _content(validation, "validation", form))


def _content(loader: DataLoader[Any], part: str, form: _Form) -> list[str]:
    """Hashes of the batches of indices that a loader draws, and of the content of samples among them."""
    if isinstance(loader.dataset, IterableDataset):
        raise DataError(
            f"the {part} DataLoader reads a {type(loader.dataset).__name__}, whose samples have no index, so chainfx "
            f"cannot fingerprint them; give fingerprint= a name that changes with the data."
        )
    order = _first_epoch(loader)
    indices = list({repr(index): index for batch in order for index in batch}.values())
    chosen = indices[:: math.ceil(len(indices) / _HASHED_SAMPLES) or 1]
    few = chosen[:_READ_TWICE]
    if _hash(loader, few, form) != _hash(loader, few, form):
        raise DataError(
            f"the samples of the {part} DataLoader differ from one reading to the next, so chainfx cannot fingerprint "
            f"them; let random transforms draw from torch's global generator, or give fingerprint= a name that changes "
            f"with the data."
        )
    return [content_hash(repr(order)), _hash(loader, chosen, form)]


def _first_epoch(loader: DataLoader[Any]) -> list[list[Any]]:
    """The indices of each batch of an epoch; own generators of the sampler are left as they were."""
    generator = getattr(loader.sampler, "generator", None)
    state = None if generator is None else generator.get_state()
    try:
        with _all_seeded():
            if loader.generator is not None:  # which every epoch seeds anew
                loader.generator.manual_seed(0)
            if loader.batch_sampler is None:
                return [[index] for index in islice(loader.sampler, len(loader))]
            return [list(batch) for batch in islice(loader.batch_sampler, len(loader))]
    finally:
        if generator is not None:
            generator.set_state(state)


def _hash(loader: DataLoader[Any], indices: Sequence[Any], form: _Form) -> str:
    """The content of samples, as the loader transforms and collates them."""
    reader = Loaded(_same_loader(loader, indices, False), form)
    with _all_seeded():
        batches = reader.batches(1)
        return content_hash(tensor for inputs, targets in batches for tensor in (*inputs, *tree_leaves(targets)))


@contextmanager
def _all_seeded() -> Iterator[None]:
    """The global random states as after seeding with 0, for transforms that draw from them; given back afterwards."""
    own, arrays = random.getstate(), np.random.get_state()
    with seeded(0):
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(own)
            np.random.set_state(arrays)
