"""One's own DataLoaders as data: what is held out of them, and the fingerprint of what they give."""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, Subset

from chainfx.errors import DataError
from chainfx.ir.graph import content_hash, derived_generator
from chainfx.training.data import Batch, Data, Split, SplitOptions

__all__ = ["from_loaders"]

_HASHED_SAMPLES = 4096
_READ_TWICE = 16


def from_loaders(
    train: DataLoader[Any],
    test: DataLoader[Any],
    *,
    num_classes: int,
    validation: DataLoader[Any] | None = None,
    validation_share: float = SplitOptions.validation,
    seed: int = SplitOptions.seed,
    fingerprint: str | None = None,
) -> Data:
    """Your own DataLoaders of ``(inputs, targets)``; ``inputs`` is a tensor or a tuple of them, batch first.

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
    parts = (_Loader(train), _Loader(validation), _Loader(test))
    with _seeded():  # a DataLoader draws its seed from the global generator
        inputs, _ = next(parts[1].batches(1))
        size = train.batch_size or len(next(parts[0].batches(1))[1])
    return Data(
        train=parts[0],
        validation=parts[1],
        test=parts[2],
        num_classes=num_classes,
        input_shape=tuple(inputs[0].shape[1:]),
        fingerprint=fingerprint or _fingerprint(train, validation),
        batch_size=size,
    )


@dataclass(frozen=True, eq=False)
class _Loader(Split):
    """A split that a user's DataLoader reads; its own batch size counts."""

    loader: DataLoader[Any]

    def __len__(self) -> int:
        return _samples(self.loader)

    def steps(self, batch_size: int) -> int:
        return len(self.loader)

    def batches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        if self.loader.generator is not None:
            self.loader.generator.manual_seed(0 if generator is None else generator.initial_seed())
        return (_batch(item) for item in self.loader)


def _samples(loader: DataLoader[Any]) -> int:
    dataset: Any = loader.dataset  # torch's Dataset does not declare the length that all but iterable ones have
    return len(dataset)


def _batch(item: Any) -> Batch:
    if isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[1], Tensor):
        inputs = tuple(item[0]) if isinstance(item[0], tuple | list) else (item[0],)
        if all(isinstance(tensor, Tensor) for tensor in inputs) and not item[1].is_floating_point():
            return inputs, item[1]
    raise DataError(
        f"a DataLoader gave a {type(item).__name__} that is not (inputs, targets) with integer targets (N,); "
        f"change its data set or collate_fn."
    )


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


def _fingerprint(train: DataLoader[Any], validation: DataLoader[Any]) -> str:
    return content_hash(_content(train, "training"), _content(validation, "validation"))


def _content(loader: DataLoader[Any], part: str) -> list[str]:
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
    if _hash(loader, few) != _hash(loader, few):
        raise DataError(
            f"the samples of the {part} DataLoader differ from one reading to the next, so chainfx cannot fingerprint "
            f"them; let random transforms draw from torch's global generator, or give fingerprint= a name that changes "
            f"with the data."
        )
    return [content_hash(repr(order)), _hash(loader, chosen)]


def _first_epoch(loader: DataLoader[Any]) -> list[list[Any]]:
    """The indices of each batch of an epoch; own generators of the sampler are left as they were."""
    generator = getattr(loader.sampler, "generator", None)
    state = None if generator is None else generator.get_state()
    try:
        with _seeded():
            if loader.generator is not None:  # which every epoch seeds anew
                loader.generator.manual_seed(0)
            if loader.batch_sampler is None:
                return [[index] for index in islice(loader.sampler, len(loader))]
            return [list(batch) for batch in islice(loader.batch_sampler, len(loader))]
    finally:
        if generator is not None:
            generator.set_state(state)


def _hash(loader: DataLoader[Any], indices: Sequence[Any]) -> str:
    """The content of samples, as the loader transforms and collates them."""
    reader = _Loader(_same_loader(loader, indices, False))
    with _seeded():
        return content_hash(tensor for inputs, targets in reader.batches(1) for tensor in (*inputs, targets))


@contextmanager
def _seeded() -> Iterator[None]:
    """The global random states as after seeding with 0, for transforms that draw from them; given back afterwards."""
    own, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(own)
            np.random.set_state(arrays)
