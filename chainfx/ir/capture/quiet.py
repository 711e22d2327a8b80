"""Silence while something is tried that may fail: torch tells of it on the error stream before it raises."""

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

__all__ = ["quiet"]


class _OtherThreads(logging.Filter):
    """Lets pass what threads other than this one log."""

    def __init__(self, thread: int) -> None:
        super().__init__()
        self.thread = thread

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether another thread logs this, or another library than torch."""
        return record.thread != self.thread or not record.name.startswith("torch")


class _Stream:
    """The error stream for other threads; what this one writes is dropped."""

    def __init__(self, stream: TextIO, thread: int) -> None:
        self._stream, self._thread = stream, thread

    def write(self, text: str) -> int:
        """Write as another thread, or drop the text."""
        return len(text) if threading.get_ident() == self._thread else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what this thread writes to the error stream, and what torch logs in it; only where captures are alone.

    An exception says what went wrong; whoever catches it decides whether anybody is told.
    """
    thread, stream = threading.get_ident(), sys.stderr
    loggers = [logging.root, *map(logging.getLogger, [n for n in logging.root.manager.loggerDict if n[:5] == "torch"])]
    handlers = {handler for logger in loggers for handler in logger.handlers}
    others = _OtherThreads(thread)
    for handler in handlers:
        handler.addFilter(others)
    sys.stderr = _Stream(stream, thread)  # all that is asked of a stream goes through
    try:
        yield
    finally:
        sys.stderr = stream
        for handler in handlers:
            handler.removeFilter(others)
