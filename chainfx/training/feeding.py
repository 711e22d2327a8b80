"""Batches on their way to the device: kept there where they fit, each process its own, the next one copied ahead."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from chainfx.errors import DataWarning
from chainfx.ir.graph import derived_generator
from chainfx.passes import Task
from chainfx.training import machine
from chainfx.training.augment import Augment
from chainfx.training.data import Batch, InMemory, Split
from chainfx.training.loaders import Loaded

__all__ = ["Feed", "resident"]

_SHARE = 0.5  # of the free memory of a device, for the data


def resident(split: Split, device: torch.device) -> Split:
    """A split in memory on the device, if half of the memory that is free there holds it; else the split itself.

    The latter with a :class:`~chainfx.errors.DataWarning`.
    """
    if not isinstance(split, InMemory) or split.targets.device.type == device.type:
        return split
    free = machine.free_memory(device)
    if free is not None and split.nbytes > _SHARE * free:
        message = (
            f"the data take {split.nbytes / 2**30:.1f} GiB, more than half of the {free / 2**30:.1f} GiB that are free "
            f"on {device}; they stay in main memory and are copied batch by batch."
        )
        warnings.warn(message, DataWarning, stacklevel=2)
        return split
    return split.to(device)


@dataclass(frozen=True)
class Feed:
    """The training batches of one tuning, epoch by epoch: shuffled, this process's share, augmented, on the device."""

    split: Split
    batch_size: int
    augment: Augment | None
    task: Task
    device: torch.device
    seed: int

    @property
    def steps(self) -> int:
        """The number of batches of an epoch."""
        return self.split.steps(self.batch_size)

    def epoch(self, index: int) -> Iterator[tuple[Batch, Tensor | None]]:
        """The batches of epoch ``index`` with the places of their samples in the split, where these are in memory."""
        order = derived_generator(self.seed, f"{index}/shuffle")
        place = machine.process_index()
        crops = derived_generator(self.seed, f"{index}/augment{f'/{place}' if place else ''}")
        for batch, places in _ahead(self._read(order), self.device):
            inputs, targets = batch
            if self.augment is not None:
                inputs = tuple(self.augment(tensor, crops) for tensor in inputs)
            yield (inputs, targets), places

    def _read(self, order: torch.Generator) -> Iterator[tuple[Batch, Tensor | None]]:
        if isinstance(self.split, InMemory):
            here = self.split.targets.device
            for places in self.split.order(self.batch_size, order):
                own = machine.own_places(places)
                yield self.split.at(own.to(here, non_blocking=True)), own
            return
        part = self.split.part(*machine.processes()) if isinstance(self.split, Loaded) else None
        if part is not None and machine.process_count() > 1:
            yield from ((self._checked(batch), None) for batch in part.batches(self.batch_size, order))
            return
        for batch in self.split.batches(self.batch_size, order):
            yield self._checked(machine.own_share(batch)), None

    def _checked(self, batch: Batch) -> Batch:
        """The batch of a loader, whose targets are seen here, before they are on the device."""
        if self.task.check is not None:
            self.task.check(batch[1], len(batch[0][0]))
        return batch


def _ahead(
    batches: Iterator[tuple[Batch, Tensor | None]], device: torch.device
) -> Iterator[tuple[Batch, Tensor | None]]:
    """The batches on the device; on a GPU the copy of the next one is under way while one is used."""
    placed = ((machine.placed(batch, device), places) for batch, places in batches)
    if device.type != "cuda":
        yield from placed
        return
    waiting = next(placed, None)
    while waiting is not None:
        current, waiting = waiting, next(placed, None)
        yield current
