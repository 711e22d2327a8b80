"""Recompute what the pages of docs/results say from the records beside them.

Usage: .venv/bin/python -m tools.study_results

A page ``NAME.md`` has the verdicts and the law of the packed study ``NAME.json`` between two marks, as
``chainfx study analyse docs/results/NAME.json`` prints them, and ``digits-claims.md`` what ``chainfx study claims
docs/results/*.json`` prints. ``chainfx/study/observed.json`` is what predictions are learnt from.
"""

import dataclasses
import json
import re
import statistics
from pathlib import Path

import chainfx.report  # registers how results are shown
import chainfx.study
from chainfx.study import MEASURED, StudyResult, Verdict, analyse, claims_on, observations_of

RESULTS = Path(__file__).parent.parent / "docs" / "results"
OBSERVED = Path(chainfx.study.__file__).with_name("observed.json")
CLAIMS_PAGE = RESULTS / "digits-claims.md"
_CLAIMED = re.compile(r"(<!-- claims -->\n).*?(<!-- /claims -->)", flags=re.DOTALL)
_SECTION = re.compile(r"(<!-- verdicts -->\n).*?(<!-- /verdicts -->)", flags=re.DOTALL)


def refreshed(page: str, packed: Path) -> str:
    """The text of a page with the verdicts as they come out of the records."""
    result = analyse(packed)
    text = f"{result.design}\n\n{result}{_by_what_was_measured(result) if result.design.measured else ''}"
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return _SECTION.sub(lambda found: f"{found[1]}\n```text\n{lines}\n```\n\n{found[2]}", page)


def _by_what_was_measured(result: StudyResult) -> str:
    """What each pass alone makes of everything that was measured, and the verdicts by it, which are descriptive."""
    lines = ["\n\neach pass alone, exits never taken, as a share of the original (median over seeds)"]
    originals = {seed: next(each for each in of.values() if not each.passes) for seed, of in result.records.items()}
    for letter, grid in result.design.passes.items():
        shares = []
        for name in MEASURED:
            found = [
                record.points[-1].measured[name] / originals[seed].points[0].measured[name]
                for seed, records in result.records.items()
                for record in records.values()
                if record.steps == (f"{letter}:0",) and not record.salt and record.points
            ]
            shares.append(f"{name} {statistics.median(found):.2f}")
        lines.append(f"  {grid[0].label}: {', '.join(shares)}")
    for name in MEASURED:
        verdicts = [each for each in result.judged_by(name).verdicts if each.primary]
        lines += [f"by {name} (descriptive)", *(f"  {_said(each)}" for each in verdicts)]
    return "\n".join(lines)


def _said(verdict: Verdict) -> str:
    outcome = f"{verdict.better} better" if verdict.better else verdict.decision.outcome
    outcome += " (no point of either counts)" if verdict.empty else ""
    sure = f"{verdict.factor:.2f} times further, confidence {verdict.decision.confidence:.3f}"
    return f"{verdict.first} / {verdict.second}: {outcome}" + ("" if verdict.empty else f", {sure}")


def with_claims(page: str) -> str:
    """The text of the page of claims with their verdicts as they come out of all records."""
    found = claims_on([analyse(packed) for packed in sorted(RESULTS.glob("*.json"))])
    parts = []
    for training in dict.fromkeys(each.training for each in found):
        parts += [f"training: {training}", *(str(each) for each in found if each.training == training), ""]
    text = "\n".join(parts).rstrip()
    return _CLAIMED.sub(lambda match: f"{match[1]}\n```text\n{text}\n```\n\n{match[2]}", page)


def observations() -> str:
    """What all studies found of pairs, as the JSON from which predictions are learnt.

    Those with measured times have pairs that others have too, with fewer points.
    """
    results = [analyse(packed) for packed in sorted(RESULTS.glob("*.json"))]
    found = [each for result in results if not result.design.measured for each in observations_of(result)]
    return "[\n" + ",\n".join(json.dumps(dataclasses.asdict(each)) for each in found) + "\n]\n"


def main() -> None:
    """Rewrite every page whose records say something else now, and what predictions are learnt from."""
    OBSERVED.write_text(observations())
    CLAIMS_PAGE.write_text(with_claims(CLAIMS_PAGE.read_text()))
    for packed in sorted(RESULTS.glob("*.json")):
        path = packed.with_suffix(".md")
        page = path.read_text()
        new = refreshed(page, packed)
        path.write_text(new)
        print(f"{path.name}: {'changed' if new != page else 'as it was'}")


if __name__ == "__main__":
    main()
