"""The folder of a study: its design, the finished stages, and the records of its cases."""

import errno
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

from chainfx.errors import ArtifactError, StudyError
from chainfx.ir.artifact import read_document, write_document
from chainfx.scheduler import Ground, StageStore
from chainfx.study.design import Case, Design
from chainfx.study.records import CaseRecord, Origin, record_name

__all__ = ["StudyStore"]

_DESIGN, _RECORDS, _STAGES = "design.json", "records", "stages"


class StudyStore:
    """A study in a folder, which several processes and machines may share.

    ``design.json`` is the design, ``records`` has a JSON file for each case, and ``stages`` is a
    :class:`~chainfx.scheduler.StageStore` of the networks. Every file is written under another name and renamed when it
    is complete. The networks can be deleted (:meth:`drop_networks`): the analysis needs the records alone, and cases
    that have a record are not run again.
    """

    def __init__(self, folder: Path, design: Design, subject: str, ground: Ground | None = None) -> None:
        self.folder, self.design, self.subject, self.ground = folder, design, subject, ground or Ground()

    @classmethod
    def create(cls, folder: str | Path, design: Design, subject: str, ground: Ground | None = None) -> Self:
        """The store of a design in a folder, made if there is none; ``subject`` is the fingerprint of network and data.

        ``ground``: what evidence from the study says it was measured on. Raises :class:`~chainfx.errors.StudyError` if
        the folder holds another study; more seeds are the same study.
        """
        place = Path(folder)
        if not (place / _DESIGN).exists():
            try:
                (place / _RECORDS).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StudyError(f"{place} cannot be made a folder: {error.strerror}; give another.") from error
            made = cls(place, design, subject, ground)
            _write(place / _DESIGN, made._header())
            return made
        found = cls.open(place)
        if found.design.hash != design.hash:
            names = ", ".join(_differing(found.design.to_dict(), design.to_dict()))
            raise StudyError(f"{place} holds a study of another design, which differs in {names}; give another folder.")
        if found.subject != subject:
            raise StudyError(f"{place} holds a study of another network or other data; give another folder.")
        seeds = tuple(sorted({*found.design.seeds, *design.seeds}))
        if seeds != tuple(sorted(found.design.seeds)):
            _write(place / _DESIGN, cls(place, replace(design, seeds=seeds), subject, found.ground)._header())
        return cls(place, replace(design, seeds=seeds), subject, found.ground)

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """The study in a folder; raises :class:`~chainfx.errors.StudyError` if there is none."""
        place = Path(folder)
        try:
            content = read_document(place / _DESIGN)
            return cls(place, Design.from_dict(content["design"]), content["subject"], _ground(content))
        except (ArtifactError, KeyError, TypeError) as error:
            raise StudyError(f"{place} holds no study that can be read; give the folder of 'study run'.") from error

    @staticmethod
    def unpack(path: str | Path) -> tuple[Design, tuple[CaseRecord, ...], Ground]:
        """The design, the records and the ground in a file that :meth:`pack` wrote.

        Raises :class:`~chainfx.errors.StudyError` if it is none.
        """
        try:
            content = read_document(Path(path))
            records = tuple(CaseRecord.from_dict(each) for each in content["records"])
            return Design.from_dict(content["design"]), records, _ground(content)
        except (ArtifactError, KeyError, TypeError) as error:
            raise StudyError(f"{path} holds no packed study that can be read; give what 'study pack' wrote.") from error

    @property
    def stages(self) -> StageStore:
        """Where the networks are kept."""
        return StageStore(self.folder / _STAGES)

    def records(self) -> tuple[CaseRecord, ...]:
        """All records, sorted by the name of their file. A file that cannot be read is no record."""
        found = []
        for path in sorted((self.folder / _RECORDS).glob("[!.]*.json")):
            try:
                found.append(CaseRecord.from_dict(read_document(path)))
            except (ArtifactError, KeyError, TypeError):
                continue
        return tuple(found)

    def find(self, case: Case, origin: Origin) -> CaseRecord | None:
        """The record of a case, ``None`` if it has none that can be read."""
        path = self.folder / _RECORDS / record_name(case.hash, origin)
        try:
            return CaseRecord.from_dict(read_document(path))
        except (ArtifactError, KeyError, TypeError):
            return None

    def keep(self, record: CaseRecord) -> None:
        """Write a record; raises :class:`~chainfx.errors.StudyError` if the disk does not take it."""
        _write(self.folder / _RECORDS / record.name, record.to_dict())

    def pack(self, path: str | Path) -> None:
        """Write the design and all records into one JSON file, which :func:`~chainfx.study.analyse` reads as well.

        Raises :class:`~chainfx.errors.StudyError` if it cannot be written.
        """
        records = [record.to_dict() for record in self.records()]
        _write(Path(path), {**self._header(), "records": records})

    def _header(self) -> dict[str, Any]:
        return {"design": self.design.to_dict(), "subject": self.subject, "ground": asdict(self.ground)}

    def drop_networks(self) -> None:
        """Delete the networks and keep the records."""
        shutil.rmtree(self.folder / _STAGES, ignore_errors=True)

    def merge(self, other: Self) -> int:
        """Copy what another store of the same study has and this one has not; the number of new records.

        Raises :class:`~chainfx.errors.StudyError` if it is another study.
        """
        mine = type(self).create(self.folder, other.design, other.subject, other.ground)
        new = {record.name: record for record in other.records()}.keys() - {record.name for record in mine.records()}
        for record in other.records():
            if record.name in new:
                mine.keep(record)
        if (other.folder / _STAGES).exists():
            for stage in other.stages.folder.iterdir():
                if not stage.name.startswith(".") and not (mine.stages.folder / stage.name).exists():
                    draft = mine.stages.folder / f".{uuid.uuid4().hex}.part"
                    shutil.copytree(stage, draft)
                    draft.rename(mine.stages.folder / stage.name)
        return len(new)


def _ground(content: Mapping[str, Any]) -> Ground:
    """The ground in a document; stores of former versions have none."""
    return Ground(**content.get("ground", {}))


def _write(path: Path, body: Mapping[str, Any]) -> None:
    """Write a document under a name of its own first: whoever reads sees all of it or nothing."""
    draft = path.with_name(f".{uuid.uuid4().hex}.json")
    try:
        path.parent.mkdir(exist_ok=True)
        write_document(draft, body)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        advice = "free some space" if error.errno == errno.ENOSPC else "mend that"
        raise StudyError(
            f"{path.parent} takes no more files: {error.strerror}; {advice} and run the same command again."
        ) from error


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [name for name in one if name != "seeds" and one[name] != other[name]]
