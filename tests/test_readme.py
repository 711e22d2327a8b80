"""What the README shows works as written."""

import re
from pathlib import Path

import pytest
import yaml

README = Path(__file__).parent.parent / "README.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_blocks_run(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": f"readme_{number}"}
    exec(compile(blocks("python")[number], f"README.md block {number}", "exec"), namespace)
    assert namespace["small"].report.records[-1].modified


def test_the_recipe_is_valid_and_as_short_as_it_says(tmp_path):
    from chainfx.recipe import load_recipe

    (text,) = blocks("yaml")
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert [one.info.name for one in load_recipe(path).passes] == [
        "distill",
        "prune-channels",
        "quantize",
        "early-exit",
    ]
    assert len(text.splitlines()) <= 15
    assert yaml.safe_load(text)["data"] == {"source": "digits"}


def test_the_sample_output_is_that_of_the_demo():
    shown = README.read_text().split("<!-- demo")[1].split("<!-- /demo -->")[0]
    for word in ("original", "distill(", "prune-channels(", "quantize(", "early-exit(", "order: distill", "seconds"):
        assert word in shown
