import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from chainfx.cli import main
from chainfx.errors import PassError

RECIPE = """\
model: {name: zoo.resnet, options: {blocks: [1], width: 4, in_channels: 1}}
data: {source: digits}
passes: [quantize]
output: small
"""


@pytest.fixture
def run(monkeypatch, capfd):
    def ran(*arguments):
        """Exit code, standard output and standard error of one command."""
        monkeypatch.setattr(sys, "argv", ["chainfx", *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as left:
            main()
        return (left.value.code or 0, *capfd.readouterr())

    return ran


def test_help_is_quick_because_it_imports_nothing_heavy():
    code = "import sys; sys.argv = ['chainfx', '--help']; from chainfx.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    heavy = "print(sorted({'accelerate', 'sklearn', 'torchvision', 'pydantic', 'yaml'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code + heavy], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"
    assert all(f" {name} " in out for name in ("demo", "plan", "count", "compile"))


def test_plan_of_names_and_of_a_recipe(run, tmp_path):
    code, by_name, _ = run("plan", "quantize", "fuse")
    assert (code, by_name.splitlines()[0]) == (0, "order: fuse -> quantize")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: {name: x}\npasses: [quantize, fuse]\n")
    assert run("plan", recipe) == (0, by_name, "")
    code, given, _ = run("plan", "quantize", "fuse", "--order", "given")
    assert given.splitlines()[0] == "order: quantize -> fuse" and "broken" in given


def test_count_prints_a_table_or_json(run):
    code, out, err = run("count", "resnet20", "--input", "1,3,32,32", "--json")
    report = json.loads(out)
    assert (code, err, sum(row["macs"] for row in report["rows"])) == (0, "", 40_551_040)
    code, table, _ = run("count", "resnet20", "--input", "1,3,32,32", "--convention", "strict")
    assert code == 0 and "40,551,040" in table and "strict" in table


def test_compile_runs_a_recipe_and_saves_the_result(run, tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE)
    code, out, err = run("compile", tmp_path / "r.yaml")
    assert code == 0, err
    assert out.splitlines()[0] == "order: quantize" and out.splitlines()[-1] == f"saved to {tmp_path / 'small'}"
    assert (tmp_path / "small" / "manifest.json").is_file()


def test_compile_trains_tunes_and_reports_on_test_data(run, tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    (tmp_path / "r.yaml").write_text(
        "model: {name: 'nets:net', train: true}\ndata: {source: digits}\ntrainer: {epochs: 2, learning_rate: 0.2}\n"
        "passes:\n  - quantize: {weights: 4}\n"
    )
    monkeypatch.chdir(tmp_path)
    code, out, err = run("compile", "r.yaml")
    assert code == 0, err
    last = out.splitlines()[-1].replace("%", "").replace(",", "").split()
    assert last[:2] == ["test", "accuracy:"] and float(last[2]) > 85 and float(last[4]) > 80


def test_the_demo_is_run_with_a_console(run, monkeypatch):
    stand_in = SimpleNamespace(run_demo=lambda console: console.print("the demo"))
    monkeypatch.setitem(sys.modules, "chainfx.demo", stand_in)
    assert run("demo") == (0, "the demo\n", "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("plan", "quantise"),
            "PassError: there is no pass named 'quantise'; did you mean 'quantize'? installed are "
            "distill, early-exit, fuse, prune-channels, quantize.",
        ),
        (("plan", "none.yaml"), "RecipeError: none.yaml: the recipe cannot be read: No such file or directory."),
        (("plan", "fuse", "--order", "best"), "InputError: order='best' is not known; use 'auto' or 'given'."),
        (
            ("count", "resnet20", "--input", "3x32"),
            "InputError: --input '3x32' is not a shape; give at least two positive numbers, e.g. 1,3,224,224.",
        ),
        (
            ("count", "torch.nn:Liner", "--input", "1,3"),
            "InputError: model 'torch.nn:Liner': module 'torch.nn' has nothing callable named 'Liner'; "
            "did you mean 'Linear'?",
        ),
    ],
)
def test_an_error_is_one_line_on_standard_error_and_exit_code_1(run, arguments, line):
    assert run(*arguments) == (1, "", line + "\n")


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["chainfx", "--debug", "plan", "quantise"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(PassError):
        main()


def test_wrong_usage_is_exit_code_2(run):
    assert run("count", "resnet20")[0] == 2
    assert run("no-such-command")[0] == 2
