"""The pages of docs/results say what comes out of the records beside them."""

import pytest

from tools.study_results import CLAIMS_PAGE, OBSERVED, RESULTS, observations, refreshed, with_claims


@pytest.mark.parametrize("packed", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_the_verdicts_on_the_page_are_those_of_the_records(packed):
    page = packed.with_suffix(".md").read_text()
    assert refreshed(page, packed) == page, "run python -m tools.study_results"


def test_there_are_results():
    assert [path.stem for path in RESULTS.glob("*.json")]


@pytest.mark.slow
def test_the_claims_on_their_page_are_those_of_all_records():
    page = CLAIMS_PAGE.read_text()
    assert with_claims(page) == page, "run python -m tools.study_results"


@pytest.mark.slow
def test_predictions_are_learnt_from_all_of_them():
    assert OBSERVED.read_text() == observations(), "run python -m tools.study_results"
