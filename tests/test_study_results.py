"""The pages of docs/results say what comes out of the records beside them."""

import pytest

from tools.study_results import RESULTS, refreshed


@pytest.mark.parametrize("packed", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_the_verdicts_on_the_page_are_those_of_the_records(packed):
    page = packed.with_suffix(".md").read_text()
    assert refreshed(page, packed) == page, "run python -m tools.study_results"


def test_there_are_results():
    assert [path.stem for path in RESULTS.glob("*.json")]
