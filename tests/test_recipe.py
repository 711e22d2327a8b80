import dataclasses

import numpy as np
import pytest
import torch

from chainfx.errors import RecipeError
from chainfx.passes import pass_names
from chainfx.passes.fuse import Fuse
from chainfx.passes.quantize import Quantize
from chainfx.recipe import load_recipe
from chainfx.search import Range, Search
from chainfx.training import Augment, Trainer, digits

WHOLE = """\
model:
  name: zoo.resnet
  train: true
  options: {blocks: [1, 1], width: 4, in_channels: 1}
data: {source: digits, validation: 0.2, seed: 3}
trainer:
  epochs: 2
  learning_rate: 1e-1
  precision: float32
  augment: {padding: 1, flip: false}
passes:
  - quantize: {weights: 4, skip: [fc]}
  - fuse
order: given
seed: 7
warn_drop: 0.1
workdir: work
output: ${CHAINFX_TEST_OUT}/small
"""


@pytest.fixture
def write(tmp_path):
    def written(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return written


@pytest.fixture
def refused(write, tmp_path):
    def check(text, message, build=lambda recipe: None):
        with pytest.raises(RecipeError) as caught:
            build(load_recipe(write(text)))
        assert str(caught.value).removeprefix(f"{tmp_path}/") == message

    return check


def test_a_whole_recipe(write, tmp_path, monkeypatch):
    monkeypatch.setenv("CHAINFX_TEST_OUT", str(tmp_path / "out"))
    recipe = load_recipe(write(WHOLE))
    assert recipe.passes == (Quantize(weights=4, skip=("fc",)), Fuse())
    assert (recipe.order, recipe.seed, recipe.trains, recipe.warn_drop) == ("given", 7, True, 0.1)
    assert (recipe.workdir, recipe.output) == (tmp_path / "work", tmp_path / "out" / "small")
    data = recipe.data()
    assert data.fingerprint == digits(validation=0.2, seed=3).fingerprint
    expected = Trainer(data, epochs=2, learning_rate=0.1, precision="float32", augment=Augment(1, flip=False))
    assert recipe.trainer(data) == expected
    assert [tuple(x.shape) for x in recipe.example_inputs(data)] == [(1, 1, 8, 8)]


def test_the_seed_decides_the_model_and_leaves_the_global_generator(write, monkeypatch):
    monkeypatch.setenv("CHAINFX_TEST_OUT", "out")
    models = []
    for seed, noise in ((7, 0), (7, 1), (8, 0)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        models.append(load_recipe(write(WHOLE.replace("seed: 7", f"seed: {seed}"))).model().state_dict())
        assert torch.equal(before, torch.get_rng_state())
    same, other = ([torch.equal(value, state[key]) for key, value in models[0].items()] for state in models[1:])
    assert all(same) and not all(other)


def test_defaults_and_a_minimal_recipe(write):
    recipe = load_recipe(write("model: {name: 'torch.nn:Identity'}\ninput: [2, 3]\npasses: [fuse]\n"))
    assert (recipe.order, recipe.seed, recipe.workdir, recipe.output) == ("auto", 0, None, None)
    assert recipe.data() is None and recipe.trainer(None) is None
    assert not recipe.trains and not recipe.model().training
    assert torch.equal(recipe.example_inputs(None)[0], recipe.example_inputs(None)[0])
    assert recipe.example_inputs(None)[0].shape == (2, 3)


def test_paths_are_relative_to_the_recipe(write, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    images, labels = np.zeros((20, 4, 4), np.uint8), np.arange(20) % 2
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "w.pt")
    text = """\
model: {name: 'torch.nn:Linear', weights: w.pt, options: {in_features: 2, out_features: 2}}
data: {source: npz, path: a.npz, test: ./a.npz}
passes: []
"""
    recipe = load_recipe(write(text))
    assert len(recipe.data().test) == 20
    assert torch.equal(recipe.model().weight, torch.load(tmp_path / "w.pt")["weight"])


def test_every_option_of_every_installed_pass_can_be_written(write):
    options = {field.name: getattr(Quantize(), field.name) for field in dataclasses.fields(Quantize)}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    text = f"model: {{name: resnet20}}\npasses:\n  - quantize: {plain}\n".replace("None", "null").replace("'", "")
    assert load_recipe(write(text)).passes == (Quantize(),)


MODEL = "model: {name: resnet20}\n"
KEYS = "data, execution, input, model, order, output, passes, refuse, search, seed, trainer, tuning, warn_drop, workdir"
NEEDED = f"give it of the keys {KEYS} those that it needs"
PASSES = ", ".join(pass_names())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, f"recipe.yaml: a recipe is a mapping, and this is none; {NEEDED}.") for text in ("", "- 1\n")),
        (
            MODEL + "passes: [\n",
            "recipe.yaml:3: not valid YAML: expected the node content, but found '<stream end>'; mend it there.",
        ),
        (
            "model: !!python/object:os.system {}\npasses: []\n",
            "recipe.yaml:1: not valid YAML: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object:os.system'; mend it there.",
        ),
        (MODEL, f"recipe.yaml: the recipe has no 'passes'; its keys are {KEYS}."),
        (
            MODEL + "passes: []\nseed: 1\nseed: 2\n",
            "recipe.yaml:4: seed stands twice, first in line 3; remove one.",
        ),
        (
            MODEL + "passes: []\nsed: 1\n",
            f"recipe.yaml:3: unknown key 'sed' in the recipe; did you mean 'seed'? allowed are {KEYS}.",
        ),
        (MODEL + "passes: []\norder: best\n", "recipe.yaml:3: order='best': should be 'auto' or 'given'."),
        (MODEL + "passes: 3\n", "recipe.yaml:2: passes=3: should be a valid list."),
        (
            MODEL + "passes: []\nseed: x\n",
            "recipe.yaml:3: seed='x': should be a valid integer, unable to parse string as an integer.",
        ),
        (
            MODEL + "passes: []\ninput:\n  - 1\n  - 0\n",
            "recipe.yaml:5: input=0: should be greater than or equal to 1.",
        ),
        (
            "model:\n  nam: resnet20\npasses: []\n",
            "recipe.yaml:1: model has no 'name'; its keys are name, options, train, weights.",
        ),
        (
            MODEL + "passes: []\nworkdir: a/$CHAINFX_UNSET/b\n",
            "recipe.yaml:3: workdir='a/$CHAINFX_UNSET/b': environment variable CHAINFX_UNSET is not set.",
        ),
        (
            MODEL + "passes:\n  - quantise\n",
            f"recipe.yaml:3: unknown pass 'quantise'; did you mean 'quantize'? installed are {PASSES}.",
        ),
        (
            MODEL + "passes:\n  - fuse\n  - quantize: {bits: 3}\n",
            "recipe.yaml:4: unknown key 'bits' in passes[1].quantize; allowed are "
            "activations, first, granularity, last, residuals, scheme, skip, weights.",
        ),
        (
            MODEL + "passes:\n  - quantize:\n      activations: 8\n      weights: four\n",
            "recipe.yaml:5: passes[0].quantize.weights='four': should be a valid integer, "
            "unable to parse string as an integer.",
        ),
        (
            MODEL + "passes:\n  - quantize:\n      granularity: row\n",
            "recipe.yaml:4: passes[0].quantize.granularity='row': should be 'tensor' or 'channel'.",
        ),
        (
            MODEL + "passes:\n  - quantize:\n      first: [8]\n",
            "recipe.yaml:4: passes[0].quantize.first=[8]: should be a valid integer.",
        ),
        (
            MODEL + "passes:\n  - [fuse]\n",
            "recipe.yaml:3: ['fuse'] is not a pass; write '- name' or '- name: {option: value}'.",
        ),
        (
            MODEL + "passes:\n  - fuse: 3\n",
            "recipe.yaml:3: {'fuse': 3} is not a pass; write '- name' or '- name: {option: value}'.",
        ),
        (
            MODEL + "passes: []\ndata: {path: x}\n",
            "recipe.yaml:3: needs a 'source'; use digits, npz, folder or the name of a torchvision data set.",
        ),
        (
            MODEL + "passes: []\ndata:\n  source: npz\n  pth: x\n",
            "recipe.yaml:3: data has no 'path'; its keys are "
            "mean, path, samples, seed, source, std, test, test_samples, test_share, validation.",
        ),
        (
            MODEL + "passes: []\ndata:\n  source: digits\n  size: 3\n",
            "recipe.yaml:5: unknown key 'size' in data; allowed are mean, seed, source, std, test_share, validation.",
        ),
        (
            MODEL + "passes: []\ntrainer: {epochs: 3}\n",
            "recipe.yaml:3: a trainer needs 'data' to train on; add it.",
        ),
        (
            "model: {name: resnet20, train: true}\npasses: []\n",
            "recipe.yaml:1: training the model needs a 'trainer'; add one.",
        ),
        (
            MODEL + "passes: []\ndata: {source: digits}\ntrainer:\n  epoch: 3\n",
            "recipe.yaml:5: unknown key 'epoch' in trainer; did you mean 'epochs'? allowed are augment, batch_size, "
            "compile, epochs, fine_tune_scale, label_smoothing, learning_rate, max_norm, momentum, precision, "
            "weight_decay.",
        ),
        (
            MODEL + "passes: [fuse]\ntuning:\n  fuse:\n    epochs: 0\n",
            "recipe.yaml:5: tuning: epochs=0 is out of range; use None, a whole number from 1 or a tuple of them, "
            "since 0 trains nothing.",
        ),
        (
            MODEL + "passes: [fuse]\ntuning:\n  quantize: {epochs: 3}\n",
            "recipe.yaml:4: tuning names 'quantize', which is no pass of the chain; it has fuse.",
        ),
        (
            MODEL + "passes: [fuse]\nexecution: {device: gpu}\n",
            "recipe.yaml:3: execution: device='gpu' is no device of torch; use 'cpu', 'cuda' or 'cuda:1'.",
        ),
        (
            MODEL + "passes: []\ndata: {source: digits}\ntrainer:\n  precision: half\n",
            "recipe.yaml:5: trainer.precision='half': should be 'auto', 'float32' or 'bfloat16'.",
        ),
        (
            MODEL + "passes: []\ndata: {source: digits}\ntrainer:\n  augment: 3\n",
            "recipe.yaml:5: augment=3: use true, false or a mapping of padding and flip.",
        ),
        (
            MODEL + "passes: []\ndata: {source: digits}\ntrainer:\n  augment: {pad: 3}\n",
            "recipe.yaml:5: unknown key 'pad' in trainer.augment; did you mean 'padding'? "
            "allowed are degrees, flip, padding, scale.",
        ),
        (
            MODEL + "passes: []\ndata: {source: digits}\ntrainer:\n  augment:\n    padding: -1\n",
            "recipe.yaml:6: augment: padding=-1 is negative; use 0 for no crop.",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line(refused, text, message):
    refused(text, message)


@pytest.mark.parametrize("key", ["workdir", "output"])
def test_a_file_where_a_folder_should_be(refused, tmp_path, key):
    (tmp_path / "there").write_text("")
    problem = f"{key}='{tmp_path / 'there'}' is a file; give a folder, which need not exist yet."
    refused(MODEL + f"passes: []\n{key}: there\n", f"recipe.yaml:3: {problem}")


def test_an_option_out_of_range_names_its_own_line(refused, write):
    with pytest.raises(RecipeError, match=r"recipe\.yaml:4: quantize: weights=99 "):
        load_recipe(write(MODEL + "passes:\n  - quantize:\n      weights: 99\n"))
    data = "data:\n  source: digits\n  validation: 2.0\n"
    refused(
        MODEL + "passes: []\n" + data,
        "recipe.yaml:5: data: validation=2.0 is no share; use a number between 0 and 1.",
        lambda recipe: recipe.data(),
    )
    refused(
        MODEL + "passes: []\ndata: {source: digits}\ntrainer:\n  epochs: 0\n",
        "recipe.yaml:5: trainer: epochs=0 is out of range; use at least 1.",
        lambda recipe: recipe.trainer(recipe.data()),
    )


def test_what_is_much_to_lose_may_be_nothing_and_is_no_negative_number(write, refused):
    assert load_recipe(write(MODEL + "passes: []\n")).warn_drop == 0.05
    assert load_recipe(write(MODEL + "passes: []\nwarn_drop: null\n")).warn_drop is None
    refused(
        MODEL + "passes: []\nwarn_drop: -1\n",
        "recipe.yaml:3: warn_drop=-1: should be greater than or equal to 0.",
    )


def test_building_names_the_section_that_is_wrong(refused, tmp_path):
    refused(
        "passes: []\nmodel: {name: qqqqq}\n",
        "recipe.yaml:2: there is no model named 'qqqqq'; use a torchvision name or one of chainfx.zoo. "
        "A factory of your own is package.module:factory.",
        lambda recipe: recipe.model(),
    )
    refused(
        "passes: []\nmodel: {name: resnet20, weights: w.pt}\n",
        f"recipe.yaml:2: weights '{tmp_path}/w.pt': there is no such file.",
        lambda recipe: recipe.model(),
    )
    refused(
        MODEL + "passes: []\ndata: {source: npz, path: a.npz}\n",
        f"recipe.yaml:3: {tmp_path}/a.npz: there is no such file; give a .npz with arrays 'images' and 'labels'.",
        lambda recipe: recipe.data(),
    )
    refused(
        MODEL + "passes: []\ndata: {source: CIFAR11, root: .}\n",
        "recipe.yaml:3: torchvision.datasets has no classification set 'CIFAR11' with a train and a test part.",
        lambda recipe: recipe.data(),
    )
    refused(
        MODEL + "passes: []\n",
        "recipe.yaml: needs 'input' (a shape such as [1, 3, 32, 32]) or 'data'; add one of them.",
        lambda recipe: recipe.example_inputs(None),
    )


READ = "give a YAML file, see chainfx.recipe."


def test_a_recipe_that_is_no_readable_file(tmp_path):
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "none.yaml")
    assert str(caught.value) == f"{tmp_path}/none.yaml: the recipe cannot be read: it does not exist; {READ}"
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "b.yaml")
    assert str(caught.value) == f"{tmp_path}/b.yaml: the recipe cannot be read: it is not UTF-8 text; {READ}"
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path)
    assert str(caught.value) == f"{tmp_path}: the recipe cannot be read: it is a folder; {READ}"


SEARCHING = (
    WHOLE
    + """\
search:
  budget: 0.02
  trials: 6
  options:
    quantize: {weights: [8, 4], activations: {low: 2, high: 8}}
"""
)


def test_a_recipe_has_a_search(write, monkeypatch):
    monkeypatch.setenv("CHAINFX_TEST_OUT", "out")
    search = Search({"quantize": {"weights": [8, 4], "activations": Range(2, 8)}}, budget=0.02, trials=6)
    assert load_recipe(write(SEARCHING)).search == search and load_recipe(write(WHOLE)).search is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  budget: 0.02\n", "", "search: there is no budget; give by how much the metric may get worse, such as "),
        ("budget: 0.02", "budgets: 0.02", "unknown key 'budgets' in search; did you mean 'budget'? allowed are "),
        ("weights: [8, 4]", "weights: 8", "search: weights of quantize is 8; give a list of values to try, or a "),
        ("trials: 6", "trials: 0", "search: trials=0 is out of range; use a whole number from 1."),
    ],
)
def test_a_search_that_cannot_be(write, monkeypatch, old, new, message):
    monkeypatch.setenv("CHAINFX_TEST_OUT", "out")
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(SEARCHING.replace(old, new)))
    assert message in str(caught.value)


def test_a_search_needs_a_trainer(refused):
    refused(
        "model: {name: resnet20}\npasses: [fuse]\ninput: [1, 3, 32, 32]\nsearch: {budget: 0.1}\n",
        "recipe.yaml:4: a search needs a 'trainer', which measures its trials; add one.",
    )
