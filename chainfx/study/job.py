"""What every process that works on a study is given, wherever it runs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from chainfx.study.design import Case, Design
from chainfx.study.store import StudyStore
from chainfx.study.subject import Subject
from chainfx.study.unit import Unit

__all__ = ["TRIES", "Job", "is_over", "one_thread"]

TRIES = 2
"""How often a case may end the process that works on it before it has failed."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to run cases of a study."""

    design: Design
    subject: Subject
    folder: Path

    @property
    def store(self) -> StudyStore:
        """The store of the study."""
        return StudyStore.create(self.folder, self.design, self.subject.fingerprint)

    def unit(self, cases: tuple[Case, ...]) -> Unit:
        """The unit of some cases."""
        return Unit(cases, self.design, self.subject, self.store)

    def is_over(self, ends: float | None) -> bool:
        """Whether a moment has passed, for all processes that train together."""
        return ends is not None and self.subject.trainer(self.design.tuning, 1).agreed(is_over(ends))


def is_over(ends: float | None) -> bool:
    """Whether a moment of :func:`time.monotonic` has passed; ``None`` never does."""
    return ends is not None and time.monotonic() >= ends


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread, so that results are the same wherever they are made."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
