"""Finished stages in a folder: written whole or not at all, found by what determines them, opened by their path."""

import shutil
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.fx import GraphModule

from chainfx.errors import ArtifactError, StageWarning
from chainfx.ir.artifact import load_graph, read_document, save_graph, write_document
from chainfx.scheduler.records import Stage, StageRecord

__all__ = ["StageStore", "open_stage"]

_RECORD, _MANIFEST = "record.json", "manifest.json"


def open_stage(path: str | Path) -> Stage:
    """The finished stage in a folder, which is a sub-folder of a ``workdir``, whatever machine or version made it.

    Measure its ``graph_module``, or go on from it with ``chainfx.compile(..., start=stage)``. The record says which
    versions of chainfx and torch made it (``record.surroundings``). Raises :class:`~chainfx.errors.ArtifactError` if
    the folder holds no stage or not all of it as it was written.
    """
    place = Path(path)
    record = _record_in(place)
    graph_module, _ = load_graph(place)
    return Stage(record, graph_module, resumed=True)


class StageStore:
    """Finished stages in a folder, each in a sub-folder named by its fingerprint; several processes may share it.

    A sub-folder is written under another name, beginning with a dot, and renamed when it is complete. A process that is
    killed while it writes leaves such a folder behind, which nothing reads and anybody may delete.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(f"{folder} cannot be made a working folder: {error.strerror}; give another.") from error
        self.folder = folder

    def check(self, graph_module: GraphModule) -> None:
        """Write a network as a stage is written and delete it again, so that what cannot be kept is known beforehand.

        Raises :class:`~chainfx.errors.ArtifactError` if the folder cannot be written to, or if the network has no form
        without code, as with a module of the user's own.
        """
        try:
            with self._draft() as draft:
                save_graph(graph_module, draft)
        except OSError as error:
            raise ArtifactError(
                f"{self.folder} cannot keep stages: {_reason(error)}; give another workdir, or none."
            ) from error
        except ArtifactError as error:
            advice = str(error).removesuffix(".")
            raise ArtifactError(f"{advice}, or leave workdir out: {self.folder} could keep no stage.") from error

    def find(self, fingerprint: str) -> Stage | None:
        """The stored stage of that fingerprint, or ``None`` if there is none.

        A stage that is damaged, cut short or of another format is none either, and a :class:`StageWarning` says so.
        """
        place = self._place(fingerprint)
        if not place.exists():
            return None
        try:
            return _checked(open_stage(place), fingerprint)
        except Exception as error:  # whatever is wrong with a stage, it can be computed again
            reason = _reason(error)
            message = f"the stage in {place} cannot be read and is computed again: {reason}."
            warnings.warn(message, StageWarning, stacklevel=2)
            return None

    def keep(self, stage: Stage) -> Stage:
        """Store a finished stage, and give back what is stored: another process's stage where that was first.

        If it cannot be stored, for instance because the disk is full, a :class:`StageWarning` says so and the stage is
        given back as it is: what took hours to train is not lost by that.
        """
        try:
            with self._draft() as draft:
                write_document(draft / _RECORD, {"record": stage.record.to_dict()})
                save_graph(stage.graph_module, draft)
                return self._put(draft, stage)
        except (OSError, ArtifactError) as error:
            message = f"the stage {stage.record.label!r} is finished but cannot be kept in {self.folder}"
            warnings.warn(f"{message}: {_reason(error)}.", StageWarning, stacklevel=2)
            return stage

    def records(self) -> tuple[StageRecord, ...]:
        """The records of all stages kept here, in the order of their index; no network is read.

        One that cannot be read is left out, and a :class:`StageWarning` says so.
        """
        found = []
        for place in sorted(self.folder.iterdir()):
            if place.name.startswith(".") or not (place / _MANIFEST).exists():
                continue
            try:
                found.append(_record_in(place))
            except ArtifactError as error:
                message = f"the record of the stage in {place} cannot be read and is left out: {_reason(error)}."
                warnings.warn(message, StageWarning, stacklevel=2)
        return tuple(sorted(found, key=lambda record: record.index))

    def _place(self, fingerprint: str) -> Path:
        return self.folder / fingerprint[:24]

    @contextmanager
    def _draft(self) -> Iterator[Path]:
        """A folder of one's own beside the stages; gone afterwards, unless it was renamed."""
        draft = self.folder / f".{uuid.uuid4().hex}.part"
        draft.mkdir()
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _put(self, draft: Path, stage: Stage) -> Stage:
        """Make a complete draft the stage, unless a sound one stands there already; the stage that stands there."""
        place = self._place(stage.record.fingerprint)
        try:
            draft.rename(place)
        except OSError:
            if not place.exists():
                raise
            try:
                return _checked(open_stage(place), stage.record.fingerprint)
            except Exception:  # find() warned of it
                with self._draft() as damaged:
                    place.rename(damaged / place.name)
                    draft.rename(place)
        return stage


def _record_in(place: Path) -> StageRecord:
    """The record in the folder of a stage; chainfx 0.1 kept it in the manifest."""
    if not place.is_dir():
        raise ArtifactError(f"{place} is no folder; give that of a finished stage, a sub-folder of a workdir.")
    try:
        if (place / _RECORD).exists():
            return StageRecord.from_dict(read_document(place / _RECORD)["record"])
        return StageRecord.from_dict(read_document(place / _MANIFEST)["extra"]["record"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{place} holds no stage; give a sub-folder of a workdir.") from error


def _checked(stage: Stage, fingerprint: str) -> Stage:
    if stage.record.fingerprint != fingerprint:
        raise ArtifactError("its record is that of another stage; leave the folders in a workdir as they are.")
    return stage


def _reason(error: Exception) -> str:
    """What is wrong, without the advice that follows it in chainfx's sentences."""
    if isinstance(error, ArtifactError):
        return str(error).partition(";")[0].removesuffix(".")
    return error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
