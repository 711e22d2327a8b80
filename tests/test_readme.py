"""What the README shows works as written."""

import re
from pathlib import Path

import pytest
import yaml

README = Path(__file__).parent.parent / "README.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


def executed(number, text):
    namespace = {"__name__": f"readme_{number}"}
    exec(compile(text, f"README.md block {number}", "exec"), namespace)
    return namespace


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_blocks_run(number, tmp_path, monkeypatch):
    """As written, but for fewer epochs; the next test runs them all."""
    monkeypatch.chdir(tmp_path)
    namespace = executed(number, blocks("python")[number].replace("epochs=4, batch_size=32", "epochs=1"))
    assert namespace["small"].report.records[-1].modified


@pytest.mark.slow
def test_the_first_example_ends_where_it_says(tmp_path, monkeypatch, capsys):
    """Of the accuracies only about, since the machine decides the last bits of training."""
    monkeypatch.chdir(tmp_path)
    text = blocks("python")[0]
    executed(0, text)
    accuracies, ratios = capsys.readouterr().out.splitlines()[-2:]
    said = [line.partition("  # ")[2] for line in text.splitlines() if line.startswith("print(f")]
    before, after = re.findall(r"[\d.]+(?=%)", accuracies)
    told = re.findall(r"[\d.]+(?=%)", said[0])
    assert [float(before), float(after)] == pytest.approx([float(each) for each in told], abs=1.5)
    assert ratios.split(", ") == re.findall(r"\d+x", said[1])


def test_the_headline_is_that_of_the_demo():
    page = README.read_text()
    shown = page.split("<!-- headline")[1].split("<!-- /headline -->")[0].split("```")[1].strip()
    assert re.fullmatch(
        r"test accuracy [\d.]+% -> [\d.]+%: [\d,.]+x fewer BitOps, [\d.]+x smaller, [\d.]+x faster", shown
    )
    assert shown in page.split("<!-- demo")[1].split("<!-- /demo -->")[0]


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
