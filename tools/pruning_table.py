"""Prune every torchvision classification and segmentation model and the zoo, check each, and write the docs table.

Usage: .venv/bin/python -m tools.pruning_table [--models 'resnet*'] [--jobs 2] [--again]

Each model runs in a process of its own and leaves a JSON file in ``--results``; models that have one are not run again,
so that the sweep can be stopped and resumed. The table in docs/pruning_models.md is made of all files there are.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path

import torch
import torchvision

from tests.ir.channels.prune_models import NAMES, measure, problems

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "pruning_models.md"
RATIOS = (0.3, 0.5)
SECONDS = 3600
COLUMNS = (
    *("model", "image", "groups", "parameters", "in groups", "kept at 0.3", "kept at 0.5"),
    *("analysis", "surgery", "difference", "checks"),
)
HEADER = """# Pruned models

Written by `{command}` (torch {torch}, torchvision {torchvision}, {machine}, one thread); do not edit by hand.

Every network gets seeded random values and BatchNorm statistics, in float64 and eval mode, with a batch of two random
images of the size in the table. A random share of the units of every channel group is removed, once at ratio 0.3 and
once at 0.5, and then all of this is checked at both ratios:

* the pruned network equals the masked original (`tests/ir/channels/absence.py`: the full-size network that ignores
  what was removed): the largest difference relative to the largest output is under 1e-10;
* the keys of the state dict are those from before, its shapes and the MACs of every node are those that the analysis
  predicts;
* it is captured again, with groups of the sizes that were kept; one step of gradient descent is finite and reaches the
  parameters it reached before; `torch.export` (not strict) and `torch.compile(fullgraph=True, backend="aot_eager")`
  compute the same.

*in groups*: the share of all parameters that have a dimension in a group, at least 90 %. *kept*: the share of all
parameters that is left. *analysis*, *surgery*: CPU seconds, the worse of the two runs.

{columns}
{rule}
"""


def main() -> None:
    """Run what has no result yet, then write the table."""
    options = _options()
    if options.one:
        _store(options.one, options.results)
        return
    options.results.mkdir(parents=True, exist_ok=True)
    names = [name for name in NAMES if fnmatchcase(name, options.models)]
    if not names:
        sys.exit(f"--models {options.models!r} matches no model; use one like 'resnet*' or 'zoo.*'.")
    waiting = [name for name in names if options.again or not _is_done(options.results / f"{name}.json")]
    with ThreadPoolExecutor(options.jobs) as pool:
        for line in pool.map(lambda name: _run(name, options.results), waiting):
            print(line, flush=True)
    results = [_load(options.results / f"{name}.json") for name in NAMES]
    _write(PAGE, [result for result in results if result])
    sys.exit(any(_checks(result) != "all" for result in results if result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="*", help="pattern of model names")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time; the largest ones need 8 GB each")
    parser.add_argument("--again", action="store_true", help="run models that have a result, too")
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "pruning", help="folder of the JSON files")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(name: str, results: Path) -> str:
    """Measure one model in a process of its own; a line that says how it went."""
    path = results / f"{name}.json"
    command = [sys.executable, "-W", "ignore", "-m", "tools.pruning_table", "--one", name, "--results", str(results)]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        why = (done.stderr.strip().splitlines() or ["no message"])[-1] if done.returncode else ""
    except subprocess.TimeoutExpired:
        why = f"no result after {SECONDS} seconds"
    if why:
        path.write_text(json.dumps({"model": name, "error": why}))
    return f"{name}: {_checks(_load(path))}"


def _store(name: str, results: Path) -> None:
    """Measure one model in this process, and write its file when it is whole."""
    rows = [measure(name, ratio) for ratio in RATIOS]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    part = results / f"{name}.part"
    part.write_text(json.dumps({"model": name, "rows": rows, "peak_bytes": memory}, indent=1))
    part.replace(results / f"{name}.json")


def _load(path: Path) -> dict | None:
    return json.loads(path.read_text()) if path.exists() else None


def _is_done(path: Path) -> bool:
    return _checks(_load(path)) == "all"


def _checks(result: dict | None) -> str:
    """``all``, or what does not hold."""
    if result is None or "error" in result:
        return "no result" if result is None else result["error"]
    return "; ".join(dict.fromkeys(each for row in result["rows"] for each in problems(row))) or "all"


def _write(page: Path, results: list[dict]) -> None:
    header = HEADER.format(
        command=".venv/bin/python -m tools.pruning_table",
        torch=torch.__version__.partition("+")[0],
        torchvision=torchvision.__version__.partition("+")[0],
        machine=f"{platform.machine()}, {os.cpu_count()} cores",
        columns=f"| {' | '.join(COLUMNS)} |",
        rule="|---" * len(COLUMNS) + "|",
    )
    lines = [_line(result) for result in results]
    page.parent.mkdir(exist_ok=True)
    page.write_text(header + "\n".join(lines) + "\n" + _reasons(results))


def _line(result: dict) -> str:
    if "error" in result:
        return f"| {result['model']} |" + " |" * (len(COLUMNS) - 2) + f" {result['error']} |"
    rows = result["rows"]
    first = rows[0]
    cells = [
        result["model"],
        f"{first['input'][-1]} px",
        f"{first['groups']}",
        f"{first['parameters']:,}",
        f"{first['in_groups'] / first['parameters']:.2%}",
        *(f"{row['kept'] / row['parameters']:.1%}" for row in rows),
        f"{max(row['analysis_seconds'] for row in rows):.2f} s",
        f"{max(row['surgery_seconds'] for row in rows):.2f} s",
        f"{max(row['difference'] for row in rows):.1e}",
        _checks(result),
    ]
    return f"| {' | '.join(cells)} |"


def _reasons(results: list[dict]) -> str:
    """What stays beside the outputs, and why."""
    models: dict[str, list[str]] = {}
    for result in results:
        for _, _, reason in result.get("rows", [{"frozen": []}])[0]["frozen"]:
            names = models.setdefault(reason.partition(" (node ")[0], [])
            if result["model"] not in names:
                names.append(result["model"])
    lines = [
        f"| {reason} | {len(names)} | {', '.join(names[:6])}{', ...' if len(names) > 6 else ''} |"
        for reason, names in models.items()
    ]
    return "\n## What stays, and why\n\n| reason | models | such as |\n|---|---|---|\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
