"""How many examples property tests look at: multiples of what the profile of the run (tests/conftest.py) asks for."""

from hypothesis import settings


def examples(times: float) -> settings:
    """Settings with ``times`` the examples of the profile: 20 in ``make test``, 200 in ``make test-all``."""
    return settings(max_examples=round(times * settings().max_examples))
