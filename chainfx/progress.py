"""Progress on a terminal: stage, epoch, metric, remaining time."""

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from chainfx.passes import Epoch
from chainfx.scheduler import Listener, Stage

__all__ = ["TerminalListener"]


class TerminalListener(Listener):
    """Shows a bar for the running stage and a line for each finished one; silent where there is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._progress: Progress | None = None

    def begin(self, index: int, total: int, label: str) -> None:
        """Start the bar of a stage."""
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.start()
            self._progress.add_task(f"stage {index}/{total} {label}", total=None)

    def round(self, index: int, total: int) -> None:
        """Say which round of the stage it is."""
        if self._progress:
            task = self._progress.tasks[0]
            stage = task.description.split(" | ")[0].split(" (round")[0]
            self._progress.update(task.id, total=None, completed=0, description=f"{stage} (round {index}/{total})")

    def epoch(self, epoch: Epoch) -> None:
        """Move the bar by one epoch."""
        if self._progress:
            task = self._progress.tasks[0]
            metric = "" if epoch.metric is None else f", accuracy {epoch.metric:.2%}"
            description = f"{task.description.split(' | ')[0]} | epoch {epoch.index}/{epoch.total}{metric}"
            self._progress.update(task.id, total=epoch.total, completed=epoch.index, description=description)

    def end(self, stage: Stage) -> None:
        """Replace the bar by one line."""
        self.close()
        if self._console.is_terminal:
            record = stage.record
            metric = "" if record.metric is None else f" accuracy {record.metric:.2%}"
            how = "resumed" if stage.resumed else f"{record.seconds:.1f} s"
            self._console.print(f"{record.label}:{metric} ({how})", highlight=False, markup=False)

    def close(self) -> None:
        """Take the bar away; safe to call at any time."""
        if self._progress:
            self._progress.stop()
            self._progress = None
