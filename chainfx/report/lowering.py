"""How a network runs: each layer and operation, its engine, and the reason."""

from chainfx.deploy import Lowering
from chainfx.report.text_tables import lines_of, plain_table

__all__ = ["lowering_text"]


def lowering_text(lowering: Lowering) -> str:
    """One row for each layer and each other operation of a network."""
    heading = f"runs on {lowering.engine} ({lowering.instructions})"
    table = plain_table(heading, ("operation", "operator", "engine", "reason"), texts=4)
    for row in lowering:
        table.add_row(row.name, row.operator, row.engine, row.reason)
    return "\n".join(lines_of(table)).strip("\n")
