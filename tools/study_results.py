"""Recompute what the pages of docs/results say from the records beside them.

Usage: .venv/bin/python -m tools.study_results

A page ``NAME.md`` has the verdicts and the law of the packed study ``NAME.json`` between two marks, as
``chainfx study analyse docs/results/NAME.json`` prints them, and ``digits-claims.md`` what ``chainfx study claims
docs/results/*.json`` prints. ``chainfx/study/observed.json`` is what predictions are learnt from.
"""

import dataclasses
import json
import re
from pathlib import Path

import chainfx.report  # registers how results are shown
import chainfx.study
from chainfx.study import analyse, claims_on, observations_of

RESULTS = Path(__file__).parent.parent / "docs" / "results"
OBSERVED = Path(chainfx.study.__file__).with_name("observed.json")
CLAIMS_PAGE = RESULTS / "digits-claims.md"
_CLAIMED = re.compile(r"(<!-- claims -->\n).*?(<!-- /claims -->)", flags=re.DOTALL)
_SECTION = re.compile(r"(<!-- verdicts -->\n).*?(<!-- /verdicts -->)", flags=re.DOTALL)


def refreshed(page: str, packed: Path) -> str:
    """The text of a page with the verdicts as they come out of the records."""
    result = analyse(packed)
    lines = "\n".join(line.rstrip() for line in f"{result.design}\n\n{result}".splitlines())
    return _SECTION.sub(lambda found: f"{found[1]}\n```text\n{lines}\n```\n\n{found[2]}", page)


def with_claims(page: str) -> str:
    """The text of the page of claims with their verdicts as they come out of all records."""
    found = claims_on([analyse(packed) for packed in sorted(RESULTS.glob("*.json"))])
    parts = []
    for training in dict.fromkeys(each.training for each in found):
        parts += [f"training: {training}", *(str(each) for each in found if each.training == training), ""]
    text = "\n".join(parts).rstrip()
    return _CLAIMED.sub(lambda match: f"{match[1]}\n```text\n{text}\n```\n\n{match[2]}", page)


def observations() -> str:
    """What all studies found of pairs, as the JSON from which predictions are learnt."""
    found = [each for packed in sorted(RESULTS.glob("*.json")) for each in observations_of(analyse(packed))]
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
