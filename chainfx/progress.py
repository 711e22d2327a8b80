"""Progress on standard error: stage, epoch, metric and remaining time."""

import math
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from chainfx.passes import Epoch, Metric
from chainfx.scheduler import Finding, Listener, Stage

__all__ = ["TerminalListener"]

_LINES = 10


class TerminalListener(Listener):
    """Says what runs: a bar that moves on a terminal, plain lines in a pipe or a file; a line for each finished stage.

    Plain lines tell of the beginning of a stage and of its epochs, of at most ten of them. ``metric``: what the trainer
    measures after an epoch.
    """

    def __init__(self, console: Console | None = None, metric: Metric | None = None) -> None:
        self._measured_by = metric or Metric()
        self._console = console or Console(stderr=True)
        self._progress: Progress | None = None
        self._running = self._round = self._metric = ""

    def start(self, running: str) -> None:
        """Begin to show the progress of what ``running`` names."""
        self._running, self._round, self._metric = running, "", ""
        if not self._console.is_terminal:
            self._say(running)
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=self._console, transient=True)
        self._progress.start()
        self._progress.add_task(running, total=None)

    def found(self, findings: Sequence[Finding]) -> None:
        """Say what lint found in a chain before it runs: a line for each error and each warning."""
        for finding in findings:
            if finding.severity != "info":
                self._say(str(finding))

    def begin(self, index: int, total: int, label: str) -> None:
        """Start the bar of a stage."""
        self.start(f"stage {index}/{total} {label}")

    def round(self, index: int, total: int) -> None:
        """Say which round of the stage it is."""
        self._round = f" (round {index}/{total})"
        if self._progress:
            self._progress.reset(self._progress.task_ids[0], description=self._running + self._round)

    def epoch(self, epoch: Epoch) -> None:
        """Move the bar to where the trainer is."""
        if epoch.metric is not None:
            self._metric = f", {_shown(self._measured_by, epoch.metric)}"
        text = f"{self._running}{self._round} | epoch {epoch.index}/{epoch.total}{self._metric}"
        if self._progress:
            done = epoch.index - 1 + epoch.share
            self._progress.update(self._progress.task_ids[0], description=text, completed=done, total=epoch.total)
        elif _is_told(epoch):
            self._say(text)

    def end(self, stage: Stage) -> None:
        """Replace the bar by one line."""
        self.close()
        record = stage.record
        metric = "" if record.metric is None else f" {_shown(record.measured_by, record.metric)}"
        how = "resumed" if stage.resumed else f"{record.seconds:.1f} s"
        self._say(f"{record.label}:{metric} ({how})")

    def close(self) -> None:
        """Take the bar away; safe to call at any time."""
        if self._progress:
            self._progress.stop()
            self._progress = None

    def _say(self, text: str) -> None:
        """One line, however long."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def _shown(metric: Metric, value: float) -> str:
    return f"{metric.name} {metric.text(value)}"


def _is_told(epoch: Epoch) -> bool:
    """Whether a finished epoch is one of the at most ten, the last among them, that plain lines tell of."""
    return epoch.share == 1 and (epoch.index == epoch.total or epoch.index % math.ceil(epoch.total / _LINES) == 0)
