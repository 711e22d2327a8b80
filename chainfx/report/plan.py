"""A plan as text: the order, every edge with its reason and source, ties, and what a given order breaks."""

from chainfx.scheduler import Edge, Finding, Plan

__all__ = ["edge_text", "finding_text", "plan_text"]

_WORDS = {"network": "network", "data": "data set", "device": "kind of device"}


def plan_text(plan: Plan) -> str:
    """The order in the first line, and below it one line for each edge, each tie and each finding."""
    lines = [f"order: {' -> '.join(plan.order) or 'no passes'}"]
    lines += [f"  {edge_text(edge)}" for edge in plan.edges]
    lines += [f"  tie: {first} and {second}, kept as written" for first, second in plan.ties]
    lines += [f"  {finding_text(finding)}" for finding in plan.findings]
    return "\n".join(lines)


def edge_text(edge: Edge) -> str:
    """Which pass goes before which, why, who says so, and the weaker edges that gave way."""
    text = f"{edge.before} before {edge.after}: {edge.reason} [{edge.kind}: {edge.source}]"
    if edge.elsewhere:
        others = " and ".join(f"another {_WORDS[name]}" for name in edge.elsewhere)
        text += f"; measured elsewhere: {others} than yours"
    return text + "".join(f"; overrides {edge_text(weaker)}" for weaker in edge.overrides)


def finding_text(finding: Finding) -> str:
    """How bad, where, what is wrong, who says so, who says the contrary, and what to do; one line."""
    where = f" at {' and '.join(map(str, finding.positions))}" if finding.positions else ""
    text = f"{finding.severity}{where} ({finding.rule}): {finding.reason} [{finding.source}]"
    contested = f"; contested: {finding.contested}" if finding.contested else ""
    return f"{text}{contested}; to mend it, {finding.fix}"
