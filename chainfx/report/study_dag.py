"""The law of a study as a drawing: the passes in a row, and an arc for every edge that orders two of them."""

from html import escape

from chainfx.study import LawEdge, MeasuredLaw

__all__ = ["dag_svg"]

_STEP, _HALF_NODE, _NODE, _ARC = 190, 70, 30, 34


def dag_svg(law: MeasuredLaw) -> str:
    """The passes in the order of the law; measured edges are drawn through, cited ones dashed, each with its title.

    An edge that gave way in a cycle goes below the row, against the order.
    """
    places = {name: _HALF_NODE + 5 + index * _STEP for index, name in enumerate(law.order)}
    longest = max([1, *(_length(each, places) for each in law.edges)])
    lowest = max([0, *(_length(each, places) for each in law.gave_way)])
    top = _ARC * longest + 10
    width, height = 2 * _HALF_NODE + 10 + _STEP * (len(places) - 1), top + _NODE + _ARC * lowest + 10
    arcs = [_arc(each, places, top, above=True) for each in law.edges]
    arcs += [_arc(each, places, top + _NODE, above=False) for each in law.gave_way]
    nodes = [
        f'<rect x="{x - _HALF_NODE}" y="{top}" width="{2 * _HALF_NODE}" height="{_NODE}" rx="6"/>'
        f'<text x="{x}" y="{top + _NODE / 2 + 4}" text-anchor="middle">{escape(name)}</text>'
        for name, x in places.items()
    ]
    view = f'viewBox="0 0 {width} {height}" style="width: {width}px" role="img" aria-label="the law"'
    return f'<svg class="dag" {view}>{"".join(arcs)}{"".join(nodes)}</svg>'


def _length(edge: LawEdge, places: dict[str, int]) -> int:
    """How many places an edge spans."""
    return abs(places[edge.after] - places[edge.before]) // _STEP


def _arc(edge: LawEdge, places: dict[str, int], y: int, *, above: bool) -> str:
    start, end = places[edge.before], places[edge.after]
    shift = 12 if end > start else -12  # so that what comes in and what goes out of a pass stay apart
    bend = y - (1 if above else -1) * _ARC * _length(edge, places) * 1.3
    path = f"M {start + shift} {y} Q {(start + end) / 2} {bend:.0f} {end - shift} {y}"
    title = f"{edge.before} before {edge.after}: {edge.kind}, confidence {abs(edge.confidence):.3f}"
    return (
        f'<path class="{edge.kind}" d="{path}"><title>{escape(title)}</title></path>'
        f'<ellipse class="{edge.kind}" cx="{end - shift}" cy="{y}" rx="4" ry="4"/>'
    )
