"""A plan as text: the order, every edge with its reason and source, ties, and what a given order breaks."""

from chainfx.scheduler import Edge, Finding, Plan

__all__ = ["edge_text", "finding_text", "plan_text"]


def plan_text(plan: Plan) -> str:
    """The order in the first line, and below it one line for each edge, each tie and each finding."""
    lines = [f"order: {' -> '.join(plan.order) or 'no passes'}"]
    lines += [f"  {edge_text(edge)}" for edge in plan.edges]
    lines += [f"  tie: {first} and {second}, kept as written" for first, second in plan.ties]
    lines += [f"  broken: {finding_text(finding)}" for finding in plan.findings]
    return "\n".join(lines)


def edge_text(edge: Edge) -> str:
    """Which pass goes before which, why, who says so, and the weaker edges that gave way."""
    text = f"{edge.before} before {edge.after}: {edge.reason} [{edge.kind}: {edge.source}]"
    return text + "".join(f"; overrides {edge_text(weaker)}" for weaker in edge.overrides)


def finding_text(finding: Finding) -> str:
    """Where the two passes stand in the given order, and the edge that this breaks."""
    edge = finding.edge
    where = f"{edge.before} stands at {finding.position}, behind {edge.after} at {finding.after_position}"
    return f"{where}, but {edge_text(edge)}"
