"""What runs in integers and what in float, and why: a table to read."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from chainfx.rendering import rendered

__all__ = ["Engine", "Lowered", "Lowering"]

Engine = Literal["int8", "sparse", "float", "pt2e"]


@dataclass(frozen=True, slots=True)
class Lowered:
    """One operation of a network: a layer by its path, any other by its node, and the ``engine`` that it runs on.

    ``reason``: why it is in float, what the kernel of a layer in integers does besides, or when a sparse one is dense.
    """

    name: str
    operator: str
    engine: Engine
    reason: str


@dataclass(frozen=True, slots=True)
class Lowering:
    """How a network runs: the ``instructions`` of the processor, and one row for each layer and each other operation.

    ``print`` shows it. Other operations are listed where some layer runs in integers: those between them in float.
    """

    instructions: str
    rows: tuple[Lowered, ...]

    @property
    def engine(self) -> Engine:
        """``"int8"`` or ``"pt2e"`` if any operation does, else ``"sparse"`` if any does, or ``"float"``."""
        found: set[Engine] = {row.engine for row in self.rows}
        engines: tuple[Engine, ...] = ("int8", "pt2e", "sparse")
        return next((engine for engine in engines if engine in found), "float")

    def __iter__(self) -> Iterator[Lowered]:
        return iter(self.rows)

    def __str__(self) -> str:
        return rendered(self, "text")

    def to_dict(self) -> dict[str, Any]:
        """The table as plain JSON."""
        return {"instructions": self.instructions, "engine": self.engine, "rows": [asdict(row) for row in self.rows]}
