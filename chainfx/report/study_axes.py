"""The axes of the plots on a page: compression to the right, loss of accuracy downwards."""

import math
from collections.abc import Sequence
from html import escape

from chainfx.study import ArmPoint

__all__ = ["HEIGHT", "WIDTH", "Axes"]

WIDTH, HEIGHT = 440, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 10, 10, 40


class Axes:
    """Where points stand: compression to the right, in decades, loss of accuracy downwards to the reference."""

    def __init__(self, points: Sequence[ArmPoint], reference: float, what: str) -> None:
        self.reference, self.what = reference, what
        self.decades = max([1.0, *(math.log10(point.ratio) for point in points if point.ratio > 0)])

    def x(self, ratio: float) -> float:
        """The place of a ratio; below 1 it stands at 1."""
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * max(math.log10(ratio), 0) / self.decades

    def y(self, loss: float) -> float:
        """The place of a loss; a gain stands at 0, what loses more than the reference at the lower edge."""
        return _TOP + (HEIGHT - _TOP - _BOTTOM) * min(max(loss, 0), self.reference) / self.reference

    @property
    def drawn(self) -> str:
        """Lines and numbers."""
        parts = []
        for decade in range(math.floor(self.decades) + 1):
            x = self.x(10.0**decade)
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>')
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 24}" text-anchor="middle">{10**decade}x</text>')
        for part in range(5):
            loss = self.reference * part / 4
            parts.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{self.y(loss):.1f}" y2="{self.y(loss):.1f}"/>')
            parts.append(f'<text x="{_LEFT - 4}" y="{self.y(loss) + 4:.1f}" text-anchor="end">{0 - loss:.1%}</text>')
        label = f"{self.what}: times less than the original; accuracy against it"
        parts.append(f'<text x="{_LEFT}" y="{HEIGHT - 6}">{escape(label)}</text>')
        return "".join(parts)
