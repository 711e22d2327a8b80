"""Every example in docs/ runs, and prints what the page says."""

import pytest
import torch

from chainfx.bitops import conventions
from chainfx.passes.pruning import importance
from tests.budget import mostly_slow
from tools.update_docs import DOCS, refreshed

SHIPPED = importance.importance_names()


@pytest.fixture(autouse=True)
def own_registries(monkeypatch):
    """A page sees what chainfx ships, and what it registers is gone after it."""
    shipped = {name: each for name, each in conventions._CONVENTIONS.items() if each.__module__ == conventions.__name__}
    monkeypatch.setattr(conventions, "_CONVENTIONS", shipped)
    monkeypatch.setattr(importance, "_CRITERIA", {name: importance._CRITERIA[name] for name in SHIPPED})


TRAINED = ("search.md",)  # pages whose numbers hang on how a version of torch rounds
PAGES = sorted(path.name for path in DOCS.glob("*.md"))


LONG = ("bitops.md", "deployment.md", "lint.md", "passes.md", "pruning.md", "search.md", "study.md", "your_trainer.md")


# what compiles and trains takes as long as a tenth of all tests; .ci/run reads it besides
@pytest.mark.parametrize("name", mostly_slow(PAGES, set(PAGES) - set(LONG)))
def test_the_output_on_the_page_is_what_its_examples_print(name):
    page = (DOCS / name).read_text()
    shown = refreshed(page, name)
    if name in TRAINED and torch.__version__ < "2.14":
        pytest.skip("its examples ran; the accuracies on the page are those that torch 2.14 trains to")
    assert shown == page, "run tools/update_docs.py"


def test_outputs_are_replaced_added_and_removed():
    page = "```python\na = 2\nprint(a + 1)\n```\n\n```text\n4\n```\n\n```python\nb = a\n```\n\n```text\nold\n```\n"
    assert refreshed(page) == "```python\na = 2\nprint(a + 1)\n```\n\n```text\n3\n```\n\n```python\nb = a\n```\n"
    command = "```console\n$ chainfx count no/such\n```\n"
    assert "InputError: 'no/such' does not exist" in refreshed(command)


def test_an_example_that_needs_what_is_not_there_stays_as_it_is():
    page = "```python needs no_such_package\n1 / 0\n```\n\n```text\nold\n```\n"
    assert refreshed(page) == page
    assert refreshed(page.replace("no_such_package", "torch").replace("1 / 0", "print(1)")) == (
        "```python needs torch\nprint(1)\n```\n\n```text\n1\n```\n"
    )


def test_an_example_that_fails_is_an_error():
    with pytest.raises(ZeroDivisionError):
        refreshed("```python\n1 / 0\n```\n")
    with pytest.raises(ValueError, match="only those are run"):
        refreshed("```console\n$ rm file\n```\n")
