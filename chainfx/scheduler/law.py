"""The law of order as data: by which properties of passes they are sorted."""

from dataclasses import dataclass

from chainfx.errors import ScheduleError
from chainfx.passes import PassInfo

__all__ = ["LAW", "Law"]

_KEYS = ("kind", "granularity")


@dataclass(frozen=True, slots=True)
class Law:
    """Compare passes by ``keys``, the first that differs decides: the smaller value goes first.

    A key is ``"kind"`` (static before dynamic) or ``"granularity"`` (large before small); a leading ``-`` turns it
    around. ``source`` says where the law comes from. Raises :class:`ScheduleError` on any other key.
    """

    keys: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        for key in self.keys:
            if key.removeprefix("-") not in _KEYS:
                allowed = ", ".join(sign + name for sign in ("", "-") for name in _KEYS)
                raise ScheduleError(f"the law has the key {key!r}, which no pass declares; use {allowed}.")

    def reason(self, first: PassInfo, second: PassInfo) -> str | None:
        """Why ``first`` goes before ``second``, e.g. "static before dynamic"; ``None`` if the law does not say so."""
        for key in self.keys:
            mine, other = (getattr(info, key.removeprefix("-")) for info in (first, second))
            if mine != other:
                goes_first = (mine < other) != key.startswith("-")
                return f"{mine.word} before {other.word}" if goes_first else None
        return None


LAW = Law(("kind", "granularity"), "arXiv 2403.17447, sec. 5: static to dynamic, then large granularity to small")
"""The law that :func:`~chainfx.scheduler.plan` sorts by: static before dynamic, then large granularity before small."""
