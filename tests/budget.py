"""How much of a long list is for ``make test``; all of it is for ``make test-all``."""

import pytest
from hypothesis import settings


def examples(times: float) -> settings:
    """Settings of a property test with ``times`` the examples of the profile (tests/conftest.py): 10, or 200."""
    return settings(max_examples=round(times * settings().max_examples))


def mostly_slow(values, quick):
    """Values for ``pytest.mark.parametrize``; those that are not among the quick ones are slow."""
    assert all(value in values for value in quick)
    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values]
