"""Capture and prune networks of torchvision, timm and transformers; what became of them goes to docs/networks.md.

Usage: .venv/bin/python -m tools.models_table [--models '*resnet*'] [--again]

Each network leaves a JSON file in ``--results``; those that have one are not run again, so that the sweep can be
stopped and resumed. The page is made of all files there are.
"""

import argparse
import json
import traceback
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
import transformers

from tests.ir.channels.families import TIMM, TORCHVISION, TRANSFORMERS, measured

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "networks.md"
FAMILIES = (*TORCHVISION, *TIMM, *TRANSFORMERS)
COLUMNS = ("network", "input", "captured", "sizes fixed", "parameters", "lost", "what stays, and why")
_SIZES = {1: "length", 2: "height", 3: "width"}
HEADER = """# What chainfx can take

Written by `.venv/bin/python -m tools.models_table` ({versions}); do not edit by hand.

Networks that were tried, of the families of torchvision, forty of timm, and three of transformers. Each is built
without weights (narrow or shallow where it is heavy), gets seeded random values in float64, and is captured by
`chainfx.capture`. Then `PruneChannels(0.5, importance="l2")` prunes it, and this is checked: it equals the masked
original, the full-size network that ignores what was removed, to 1e-10; it is saved and loaded, and gives the same.
{enough}.

*captured*: `symbolic` leaves every size free but those of channels; `sizes` and `export` leave the batch free and write
the sizes of the example inputs down, as the next column says. *folded*: weights that the network computes from
parameters (weight standardization, a weight norm, the turned weights of GPT-2) are computed once and stored. *lost*:
the share of all parameters that pruning removed; where nothing stands in its way it is three quarters. The last column
has parameters that were left whole and layers that keep outputs, as a share of what is left; the layer before an output
of the network keeps its outputs everywhere.

| {columns} |
|{rule}|
"""


def main() -> None:
    """Measure what has no result yet, then write the page."""
    options = _options()
    options.results.mkdir(parents=True, exist_ok=True)
    for family in FAMILIES:
        path = options.results / f"{family.package}.{family.name}.json"
        if fnmatchcase(family.name, options.models) and (options.again or not path.exists()):
            try:
                path.write_text(json.dumps(measured(family)))
                print(line(json.loads(path.read_text())), flush=True)
            except Exception:
                print(f"{family.package}.{family.name}:\n{traceback.format_exc()}", flush=True)
    found = [options.results / f"{family.package}.{family.name}.json" for family in FAMILIES]
    PAGE.write_text(page([json.loads(path.read_text()) for path in found if path.exists()]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="*", help="pattern of model names")
    parser.add_argument("--again", action="store_true", help="run models that have a result, too")
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "models", help="folder of the JSON files")
    return parser.parse_args()


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The whole page for what :func:`~tests.ir.channels.families.measured` has seen of each network."""
    versions = ", ".join(
        f"{module.__name__} {module.__version__.partition('+')[0]}"
        for module in (torch, torchvision, timm, transformers)
    )
    enough = sum(row["lost"] >= 0.4 for row in rows)
    header = HEADER.format(
        versions=versions,
        enough=f"{enough} of {len(rows)} lose 40 % or more of their parameters",
        columns=" | ".join(COLUMNS),
        rule="|".join("---" for _ in COLUMNS),
    )
    return header + "\n".join(map(line, rows)) + "\n"


def line(row: Mapping[str, Any]) -> str:
    """The row of the table for one network."""
    cells = (
        f"{row['package']} {row['name']}",
        " x ".join(map(str, row["input"][1:])) if len(row["input"]) > 2 else f"{row['input'][1]} words",
        row["method"] + (f", {row['folded']} folded" if row["folded"] else ""),
        ", ".join(_SIZES[dim] for dim in row["fixed"] if dim > 1 or len(row["input"]) < 4) or "none",
        f"{row['parameters']:,}",
        f"{row['lost']:.1%}",
        "; ".join(_stays(row)) or "none",
    )
    return f"| {' | '.join(cells)} |"


def _stays(row: Mapping[str, Any]) -> list[str]:
    """The reasons for which something stayed whole, the largest first, each with its share of what is left."""
    opaque = [f"opaque: {', '.join(row['opaque'])}"] if row["opaque"] else []
    return opaque + [f"{share:.1%}: {reason}" for reason, share in row["stays"].items() if share >= 0.001]


if __name__ == "__main__":
    main()
