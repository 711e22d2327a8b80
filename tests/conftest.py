"""Options of the test run: golden texts that are rewritten, and how many examples property tests look at."""

import gc

from hypothesis import HealthCheck, settings

ALWAYS_THE_SAME = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
settings.register_profile("default", settings(max_examples=10, **ALWAYS_THE_SAME))
settings.register_profile("long", settings(max_examples=200, **ALWAYS_THE_SAME))  # what `make test-all` asks for
settings.load_profile("default")

collect_ignore = ["plugin"]  # a package of its own, which tests/passes/test_plugin.py installs


def pytest_addoption(parser):
    parser.addoption("--accept", action="store_true", help="rewrite the golden texts of tests/golden")


def pytest_collection_finish():
    """What is there now stays: the garbage collector need not look at it again and again."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)  # graphs are many small objects: looking through them takes a tenth of the time
