import csv
import json
import os
import signal
import sys
from types import SimpleNamespace

import pytest

import chainfx
import chainfx.counting
from chainfx.cli import main
from chainfx.errors import PassError
from chainfx.passes import EarlyExit, Quantize, pass_names
from chainfx.training import Trainer
from tests.fresh import fresh
from tests.nets import images, small_resnet
from tests.trainers import FakeTrainer

RECIPE = """\
model: {name: zoo.resnet, options: {blocks: [1], width: 4, in_channels: 1}}
data: {source: digits}
passes: [quantize]
output: small
"""


COMMANDS = ("demo", "lint", "explain", "passes", "plan", "count", "channels", "compile", "export")


@pytest.fixture
def interruptible():
    """Ctrl-C arrives, which a shell lets its background jobs ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def run(monkeypatch, capfd, interruptible):
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
    out = fresh(code + heavy).out
    assert out.splitlines()[-1] == "[]"
    assert all(f" {name} " in out for name in COMMANDS)


def test_the_version(run):
    assert run("--version") == (0, f"chainfx {chainfx.__version__}\n", "")


@pytest.mark.parametrize(
    "command",
    [(), *((name,) for name in COMMANDS)],
)
def test_h_is_help_of_every_command(run, command):
    assert run(*command, "-h") == run(*command, "--help")
    code, out, err = run(*command, "-h")
    assert (code, err) == (0, "") and "Usage: " in out and f"{' '.join(command)} [OPTIONS]" in out


def test_passes_lists_every_pass_in_80_columns_or_as_json(run):
    code, out, err = run("passes")
    assert (code, err) == (0, "") and max(map(len, out.splitlines())) <= 80
    entries = out.rstrip("\n").split("\n\n")
    assert [entry.partition(":")[0] for entry in entries] == list(pass_names())
    assert entries[list(pass_names()).index("quantize")].splitlines() == [
        "quantize: static, sub-neuron; needs calibration",
        "  Quantize weights and inputs of convolution and linear layers, and embeddings,",
        "  to 1..8 bits (32 leaves float).",
        "  weights=8, activations=8, first=8, last=8, scheme=None, granularity='channel',",
        "  skip=(), residuals=True",
    ]
    code, out, err = run("passes", "--json")
    listed = json.loads(out)
    assert (code, err) == (0, "") and [each["name"] for each in listed] == list(pass_names())
    assert listed[list(pass_names()).index("quantize")] == {
        "name": "quantize",
        "kind": "static",
        "granularity": "sub-neuron",
        "needs": ["calibration"],
        "purpose": "Quantize weights and inputs of convolution and linear layers, and embeddings, to 1..8 bits "
        "(32 leaves float).",
        "options": {
            "weights": 8,
            "activations": 8,
            "first": 8,
            "last": 8,
            "scheme": None,
            "granularity": "channel",
            "skip": [],
            "residuals": True,
        },
        "required": [],
    }


def test_plan_of_names_and_of_a_recipe(run, tmp_path):
    code, by_name, _ = run("plan", "fuse", "quantize")
    assert (code, by_name.splitlines()[0]) == (0, "order: quantize -> fuse")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: {name: x}\ndata: {source: digits}\ntrainer: {}\npasses: [fuse, quantize]\n")
    assert run("plan", recipe) == (0, by_name, "")
    code, given, _ = run("plan", "fuse", "quantize", "--order", "given")
    assert given.splitlines()[0] == "order: fuse -> quantize" and "info at 1 and 2 (order)" in given


LINTED = """\
model: {name: zoo.resnet, options: {blocks: [2], width: 4, in_channels: 1}}
input: [2, 1, 8, 8]
data: {source: digits}
trainer: {epochs: 2}
passes:
  - quantize: {weights: 4}
  - prune-channels: {ratio: 0.5, round_to: 8}
"""


def test_lint_of_a_recipe_as_text_json_and_sarif(run, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(LINTED)
    code, out, err = run("lint", recipe)
    assert (code, err) == (0, "") and max(map(len, out.splitlines())) <= 100
    assert out.splitlines()[0] == "chain: quantize(4, 8) -> prune-channels(ratio=0.5, round_to=8)"
    assert "warning at 1 and 2, order: quantize stands before prune-channels" in out
    assert out.splitlines()[-1] == "corrected: prune-channels(ratio=0.5, round_to=8) -> quantize(4, 8)"
    code, out, _ = run("lint", recipe, "--json", "--order", "auto")
    assert code == 0 and {found["rule"] for found in json.loads(out)["findings"]} == {"kernels"}
    assert run("lint", recipe, "--sarif", "--output", tmp_path / "r.sarif") == (0, "", "")
    (log,) = json.loads((tmp_path / "r.sarif").read_text())["runs"]
    places = [result["locations"][0]["physicalLocation"] for result in log["results"]]
    assert len(places) >= 2 and {place["region"]["startLine"] for place in places} == {6}
    assert run("lint", recipe, "--json", "--sarif") == (
        1,
        "",
        "InputError: --json and --sarif do not go together; leave one of them out.\n",
    )


def test_the_exit_code_of_lint_follows_the_worst_finding(run, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(LINTED)
    codes = {word: run("lint", recipe, "--fail-on", word)[0] for word in ("error", "warning", "info", "never")}
    assert codes == {"error": 0, "warning": 3, "info": 3, "never": 0}
    evidence = tmp_path / "mine.toml"
    row = '[[edge]]\nbefore = "quantize"\nafter = "pruning"\nrating = "poor"\n'
    evidence.write_text(row + 'confidence = "measured"\nsource = "mine"\nreason = "so"\n')
    assert run("lint", recipe, "--evidence", evidence)[0] == 3
    evidence.write_text(row)
    code, _, err = run("lint", recipe, "--evidence", evidence)
    assert code == 1 and err.startswith(f"ScheduleError: evidence file {evidence}:1, edge 1: it has the keys ")


def test_a_dry_run_predicts_costs_and_time(run, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(LINTED.replace(", round_to: 8", ""))
    code, out, err = run("lint", recipe, "--dry-run", "--json")
    stages = json.loads(out)["stages"]
    assert (code, err) == (0, "") and len(stages) == 3
    assert stages[0]["costs"]["macs"] > stages[2]["costs"]["macs"] and stages[1]["seconds"] > 0


def test_a_recipe_can_refuse_errors(run, tmp_path):
    recipe = tmp_path / "r.yaml"
    refused = LINTED.replace("trainer: {epochs: 2}\n", "") + "  - early-exit\nrefuse: errors\n"
    recipe.write_text(refused)
    code, _, err = run("compile", recipe)
    assert code == 1 and err.startswith("LintError: the chain prune-channels -> quantize -> early-exit is not run ")
    recipe.write_text(refused.replace("refuse: errors", "refuse: all"))
    code, _, err = run("lint", recipe)
    assert code == 1 and err.startswith(f"RecipeError: {recipe}:8: refuse='all': ")


def test_explain_says_what_could_be_done(run):
    code, out, err = run("explain", "zoo.lenet5", "--input", "1,1,28,28")
    assert (code, err) == (0, "")
    assert out.startswith("a network of the kind convolutional: 2.29 M MACs, 431,080 parameters, 1.6 MiB\n")
    assert "prune-heads cannot be applied: the network has no attention" in out
    code, out, _ = run("explain", "zoo.lenet5", "--input", "1,1,28,28", "--json")
    explained = json.loads(out)
    assert code == 0 and [each["name"] for each in explained["outlooks"]] == list(pass_names())
    assert explained["quantizable"] == 1.0 and explained["heads"] == {}


INPUT = ("--input", "1,3,32,32")


def test_count_prints_a_table_json_or_csv(run, tmp_path):
    code, out, err = run("count", "resnet20", *INPUT, "--json")
    report = json.loads(out)
    assert (code, err, sum(row["macs"] for row in report["rows"])) == (0, "", 40_551_040)
    code, table, _ = run("count", "resnet20", *INPUT, "--convention", "strict")
    assert code == 0 and "40,551,040" in table and "convention strict (1 MAC = 2 FLOPs)" in table
    assert run("count", "resnet20", *INPUT, "--csv", "--output", tmp_path / "rows.csv") == (0, "", "")
    lines = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    assert sum(int(line["macs"]) for line in lines) == 40_551_040 and len(lines) == len(report["rows"])


def test_count_folds_and_sorts_the_tree(run):
    (_, totals, _), (_, folded, _) = run("count", "resnet20", *INPUT, "--depth", 0), run("count", "resnet20", *INPUT)
    assert len(totals.splitlines()) == 3
    _, unfolded, _ = run("count", "resnet20", *INPUT, "--depth", 9, "--sort", "macs")
    lines = [line.split()[0] for line in unfolded.splitlines() if line.startswith((" stages", " conv1", " fc", " bn1"))]
    assert lines == ["stages", "conv1", "fc", "bn1"]
    assert len(folded.splitlines()) < 50 < len(unfolded.splitlines())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A quantized network with an exit, in a folder."""
    x = images()
    passes = [Quantize(weights=4), EarlyExit(exits=1, threshold=0.5, keep=True)]
    folder = tmp_path_factory.mktemp("saved") / "small"
    chainfx.compile(small_resnet((1, 1)), passes, example_inputs=x, trainer=FakeTrainer(x)).save(folder)
    return folder


def test_export_writes_a_folder_or_says_why_not(run, saved, tmp_path):
    assert run("export", saved, tmp_path, "--format", "pt2") == (0, f"exported to {tmp_path}\n", "")
    assert {each.name for each in tmp_path.iterdir()} == {"manifest.json", "segment0.pt2", "segment1.pt2"}
    code, out, err = run("export", saved, tmp_path, "--format", "tflite")
    assert (code, out, err) == (1, "", "InputError: format is 'tflite'; give one of 'onnx', 'pt2', 'aoti'.\n")
    file = tmp_path / "batch.npy"
    for why in ("it does not exist", "it is no .npy or .npz file of numbers"):
        code, out, err = run("export", saved, tmp_path, "--calibration", file)
        said = f"InputError: the calibration {file} cannot be read: {why}; save a batch with numpy.save.\n"
        assert (code, out, err) == (1, "", said)
        file.write_text("no numbers")


def test_count_of_a_saved_network_needs_no_shape_and_knows_its_exit_rates(run, saved):
    code, out, err = run("count", saved, "--convention", "strict")
    assert (code, err) == (0, "")
    assert out.rstrip("\n") == str(chainfx.count(chainfx.load(saved), images(), convention="strict"))
    assert "(leaving: exit1 " in out
    assert run("count", saved / "manifest.json", "--convention", "strict")[1] == out
    _, given, _ = run("count", saved, "--exit-rates", "exit1=0.25", "--depth", 0)
    assert "(leaving: exit1 25.0%)" in given
    assert "1x1x16x16" not in out and "1x4x16x16" in run("count", saved, "--input", "1,1,16,16", "--depth", 9)[1]


def test_count_against_another_network_or_a_report(run, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small_net.py").write_text(
        "from tests.nets import small_resnet\ndef net():\n    return small_resnet((1, 1))\n"
    )
    shape = ("--input", "1,1,8,8")
    assert run("count", "small_net:net", *shape, "--json", "--output", "before.json") == (0, "", "")
    direct = run("count", "small_net:net", "--against", saved, *shape, "--exit-rates", "exit1=0.5")
    assert direct == run("count", "before.json", "--against", saved, "--exit-rates", "exit1=0.5")
    before, after = chainfx.count(small_resnet((1, 1)), images()), chainfx.count(chainfx.load(saved), images())
    assert direct == (0, str(before.diff(after.reprice(exit_rates={"exit1": 0.5}))) + "\n", "")
    _, out, _ = run("count", "before.json", "--against", saved, "--json", "--convention", "strict")
    assert json.loads(out)["after"]["convention"] == "strict" and json.loads(out)["changed"]
    _, out, _ = run("count", "before.json", "--against", saved, "--csv")
    assert out.splitlines()[0].startswith("node,module,operator,change,macs_before,macs_after")


def test_count_takes_several_inputs_of_other_dtypes(run, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two_inputs.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, width):\n"
        "        super().__init__()\n"
        "        self.words, self.out = nn.Embedding(50, width), nn.Linear(width + 3, width)\n"
        "    def forward(self, x, words):\n"
        "        return self.out(torch.cat((x, self.words(words).mean(1)), 1))\n"
        "def net():\n"
        "    return Net(4)\n"
    )
    inputs = ("--input", "1,3", "--input", "1,5:int")
    code, out, err = run("count", "two_inputs:net", *inputs, "--json")
    assert (code, err) == (0, "") and json.loads(out)["totals"]["macs"] == (4 + 3) * 4
    (tmp_path / "report.json").write_text(out)
    code, out, err = run("count", "report.json", "--against", "two_inputs:net", "--json")
    assert (code, err) == (0, "") and json.loads(out)["changed"] == []  # words are words again
    code, _, err = run("count", saved, *inputs)
    assert code == 1 and f"--input is given 2 times, but {str(saved)!r} takes 1; leave the others out." in err
    code, _, err = run("count", "two_inputs:net", "--input", "1,3")
    assert code == 1 and "Net.forward takes x, words and needs x, words, but example_inputs has 1" in err
    code, _, err = run("count", "two_inputs:net", "--input", "1,3", "--input", "1,5:complex")
    assert code == 1 and "--input '1,5:complex': there is no dtype 'complex'; use float, float64, half, int" in err


@pytest.mark.parametrize(
    ("name", "on_meta"), [("resnet18", True), ("regnet_y_400mf", False), ("torchvision.models:resnet18", False)]
)
def test_count_of_a_listed_network_allocates_no_weights(run, monkeypatch, name, on_meta):
    counted, count = [], chainfx.counting.count
    monkeypatch.setattr(
        chainfx.counting, "count", lambda model, *args, **more: counted.append(model) or count(model, *args, **more)
    )
    assert run("count", name, *INPUT)[0] == 0
    assert {parameter.is_meta for parameter in counted[0].parameters()} == {on_meta}


def test_count_cross_checks(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "fvcore", None)
    monkeypatch.setitem(sys.modules, "ptflops", None)
    code, out, err = run("count", "resnet20", *INPUT, "--cross-check")
    assert (code, err) == (0, "")
    assert out.startswith("MACs of one sample (1 MAC = 2 FLOPs): chainfx 40,551,040\ntorch ")


def test_channels_prints_the_analysis_or_json(run, saved):
    code, out, err = run("channels", "resnet20", *INPUT)
    assert (code, err) == (0, "") and out.startswith("channel groups: ") and "frozen fc: 10 channels" in out
    found = json.loads(run("channels", "resnet20", *INPUT, "--json")[1])
    group = next(group for group in found["groups"] if group["name"] == "stages_0_0_conv1")
    assert group["size"] == 16
    assert group["sources"] == [{"node": "stages_0_0_conv1", "path": "stages.0.0.conv1.weight", "dim": 0}]
    assert {"path": "stages.0.0.conv2.weight", "dim": 1, "positions": 16} in group["members"]
    assert {item["node"] for item in found["frozen"]} >= {"fc"}
    assert run("channels", saved)[0] == 0


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


LONG = """\
model: {name: zoo.resnet, options: {blocks: [1], width: 4, in_channels: 1}, train: true}
data: {source: digits}
trainer: {epochs: 1}
passes:
  - prune-channels: {ratio: 0.5}
  - prune-weights: {ratio: 0.5}
"""


@pytest.mark.parametrize("budget", [1, 0])
def test_compile_searches_within_the_budget_of_a_recipe(run, tmp_path, budget):
    (tmp_path / "r.yaml").write_text(
        f"{LONG}output: small\n"
        f"search: {{budget: {budget}, options: {{prune-channels: {{ratio: [0.75, 0.875], keep: [true]}}}}}}\n"
    )
    code, out, err = run("compile", tmp_path / "r.yaml")
    assert out.startswith("the front of 2 trials; accuracy on held-out data, ")
    if budget:
        assert code == 0 and out.splitlines()[-1] == f"saved to {tmp_path / 'small'}"
        return
    assert code == 1 and not (tmp_path / "small").exists() and "no trial is within the budget of 0: " in out
    assert err.splitlines()[-1] == (
        "InputError: the search chose no network, so that there is none to save; see above what is nearest."
    )


@pytest.fixture
def interrupt(monkeypatch):
    def at(number):
        """Ctrl-C when the default trainer begins its training of that number, that of the original network first."""
        begun, train = [], Trainer._train

        def interrupted(*arguments):
            begun.append(arguments)
            if len(begun) == number:
                os.kill(os.getpid(), signal.SIGINT)
            return train(*arguments)

        monkeypatch.setattr(Trainer, "_train", interrupted)

    return at


def test_after_ctrl_c_compile_says_what_is_kept_and_the_same_command_goes_on(run, tmp_path, interrupt):
    (tmp_path / "r.yaml").write_text(LONG + "workdir: work\n")
    interrupt(3)
    code, out, err = run("compile", tmp_path / "r.yaml")
    assert (code, out) == (130, "")
    assert err.splitlines()[-3:] == [
        "interrupted",
        "finished stages: original, prune-channels",
        f"finished stages are kept in {tmp_path / 'work'}; the same command goes on after them",
    ]
    interrupt(0)
    code, out, err = run("compile", tmp_path / "r.yaml")
    assert code == 0 and "prune-channels(ratio=0.5): accuracy" in err
    assert [line for line in err.splitlines() if line.endswith("(resumed)")] == [
        line for line in err.splitlines() if line.startswith("prune-channels(")
    ]


@pytest.mark.parametrize(("number", "stages"), [(1, []), (2, ["finished stages: original"])])
def test_after_ctrl_c_without_a_workdir_nothing_is_kept(run, tmp_path, interrupt, number, stages):
    (tmp_path / "r.yaml").write_text(LONG)
    interrupt(number)
    code, out, err = run("compile", tmp_path / "r.yaml")
    lines = err.splitlines()
    assert (code, out) == (130, "")
    assert lines[lines.index("interrupted") + 1 :] == [
        *stages,
        "nothing is kept; with a workdir in the recipe the same command goes on after a stage",
    ]


def test_after_ctrl_c_the_demo_says_that_it_keeps_nothing(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "chainfx.demo", SimpleNamespace(run_demo=lambda _: signal.raise_signal(2)))
    assert run("demo") == (
        130,
        "",
        "interrupted; the demo keeps nothing, and begins from the start when it is run again\n",
    )


def test_compile_shows_plain_lines_of_progress_in_a_pipe(run, tmp_path):
    (tmp_path / "r.yaml").write_text(LONG)
    code, _, err = run("compile", tmp_path / "r.yaml")
    lines = [line.partition(",")[0] for line in err.splitlines()]
    assert code == 0 and lines[:2] == ["training the original network", "training the original network | epoch 1/1"]
    assert lines[3:5] == ["stage 1/2 prune-channels(ratio=0.5)", "stage 1/2 prune-channels(ratio=0.5) | epoch 1/1"]


@pytest.mark.parametrize(
    ("arguments", "line", "expected"),
    [((), "", 0.05), ((), "warn_drop: 0.2\n", 0.2), (("--warn-drop", "0.1"), "warn_drop: 0.2\n", 0.1)],
)
def test_what_is_much_to_lose_is_said_in_the_recipe_or_on_the_command_line(
    run, tmp_path, monkeypatch, arguments, line, expected
):
    def stand_in(*_, warn_drop, **__):
        raise PassError(f"warn_drop is {warn_drop}")

    monkeypatch.setattr("chainfx.compiler.compile", stand_in)
    (tmp_path / "r.yaml").write_text(RECIPE + line)
    assert run("compile", tmp_path / "r.yaml", *arguments) == (1, "", f"PassError: warn_drop is {expected}\n")


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
            f"{', '.join(pass_names())}.",
        ),
        (
            ("plan", "none.yaml"),
            "RecipeError: none.yaml: the recipe cannot be read: it does not exist; give a YAML file, see "
            "chainfx.recipe.",
        ),
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
        (
            ("count", "resnet20"),
            "InputError: --input is missing: 'resnet20' does not say the shape of its input; give e.g. 1,3,224,224.",
        ),
        (
            ("count", "no/such"),
            "InputError: 'no/such' does not exist; give the folder that CompressedModel.save wrote, "
            "or the name of a network.",
        ),
        (
            ("count", "none.json"),
            "InputError: report 'none.json' cannot be read: it does not exist; give a file that chainfx count "
            "--json wrote.",
        ),
        (
            ("count", "resnet20", *INPUT, "--depth", "-2"),
            "InputError: depth=-2 is not a whole number from 0; give the number of levels to unfold.",
        ),
        (
            ("count", "resnet20", *INPUT, "--sort", "size"),
            "InputError: sort='size' is not known; use 'order', 'macs', 'bitops'.",
        ),
        (
            ("count", "resnet20", *INPUT, "--exit-rates", "exit1:0.5"),
            "InputError: --exit-rates 'exit1:0.5': 'exit1:0.5' is not a name and a number; write exit1=0.3,exit2=0.2.",
        ),
        (
            ("count", "resnet20", *INPUT, "--exit-rates", "exit1=0.5"),
            "CostError: exit_rates names 'exit1', which is no exit of the network; it has no exits.",
        ),
        (
            ("count", "resnet20", *INPUT, "--json", "--depth", "1"),
            "InputError: --json and --depth do not go together; leave one of them out.",
        ),
        (
            ("count", "resnet20", *INPUT, "--cross-check", "--convention", "strict"),
            "InputError: --cross-check and --convention do not go together; leave one of them out.",
        ),
        (
            ("count", "resnet20", *INPUT, "--depth", "0", "--output", "/no/such/folder/a"),
            "InputError: --output '/no/such/folder/a' cannot be written: it does not exist; name a file in a "
            "folder that exists.",
        ),
    ],
)
def test_an_error_is_one_line_on_standard_error_and_exit_code_1(run, arguments, line):
    assert run(*arguments) == (1, "", line + "\n")


def test_a_report_of_another_shape_and_a_file_that_is_no_report(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("count", "resnet20", *INPUT, "--json", "--output", "a.json")
    assert run("count", "resnet20", "--input", "2,3,16,16", "--against", "a.json") == (
        1,
        "",
        "InputError: report 'a.json' is for an input of 1x3x32x32, not 2x3x16x16; count both with one shape.\n",
    )
    (tmp_path / "b.json").write_text('{"rows": 1}')
    assert run("count", "b.json") == (
        1,
        "",
        "InputError: 'b.json' is not a report; give a file that chainfx count --json wrote.\n",
    )
    assert run("count", "a.json", "--cross-check")[2].startswith("InputError: 'a.json' holds no saved network;")


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["chainfx", "--debug", "plan", "quantise"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(PassError):
        main()


def test_wrong_usage_is_exit_code_2(run):
    assert run("count")[0] == 2
    assert run("no-such-command")[0] == 2


@pytest.mark.parametrize("command", ["count", "channels", "explain"])
def test_a_folder_without_a_network_and_a_file_are_said_to_hold_none(run, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "net.pt").touch()
    for name in ("folder", "net.pt"):
        assert run(command, name, "--input", "1,3,32,32") == (
            *(1, ""),
            f"InputError: {name!r} holds no saved network; give the folder that CompressedModel.save wrote, or the "
            "name of a network.\n",
        )
