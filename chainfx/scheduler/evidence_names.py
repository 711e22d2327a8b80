"""Whether evidence speaks of something that exists: a row that can match nothing is an error of who wrote it."""

import dataclasses
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from chainfx.errors import ScheduleError
from chainfx.passes import Pass
from chainfx.scheduler.evidence import LOSSY, TUNED, Evidence, is_meant

__all__ = ["check_evidence"]


def check_evidence(rows: Iterable[Evidence], passes: Sequence[type[Pass]]) -> None:
    """Refuse a row that names no pass and no family, or asks for an option that none of the passes it names has.

    ``passes``: the classes that are known. Raises :class:`ScheduleError` naming the file and line of the row.
    """
    for row in rows:
        where = f"evidence file {row.origin}: " if row.origin else ""
        for side, option in (("before", row.before), ("after", row.after)):
            if not _meant(option, passes):
                known = sorted({LOSSY, *(name for one in passes for name in (one.info.name, one.info.family) if name)})
                close = get_close_matches(option, known, n=1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise ScheduleError(
                    f"{where}{side}={option!r} is no pass and no family; {hint}known are {', '.join(known)}."
                )
        for side, option in row.asks:
            meant = _meant(getattr(row, side), passes)
            fields = (field.name for one in meant for field in dataclasses.fields(one))  # type: ignore[arg-type]  # passes are dataclasses
            options = sorted({TUNED, *fields})
            if option not in options:
                raise ScheduleError(
                    f"{where}the condition on {side}.{option} can never hold: "
                    f"{getattr(row, side)!r} has the options {', '.join(options)}."
                )


def _meant(name: str, passes: Sequence[type[Pass]]) -> list[type[Pass]]:
    return [one for one in passes if is_meant(name, one.info)]
