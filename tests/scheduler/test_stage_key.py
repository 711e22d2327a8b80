"""What a stage depends on: the calibration data and the shapes of the examples are a part of it."""

import pytest

import chainfx
from chainfx.passes import Quantize
from tests.nets import images, small_resnet

X = images(8)


def resumed(folder, *, examples=X, calibration=(X,)):
    """For each pass whether its stage was found in the folder."""
    found = []
    chainfx.compile(
        small_resnet((1, 1)),
        [Quantize(4, 8)],
        example_inputs=examples,
        calibration=list(calibration),
        workdir=folder,
        on_stage=lambda stage: found.append(stage.resumed),
    )
    return found[1:]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the stage of the call as it is written above."""
    folder = tmp_path_factory.mktemp("finished")
    assert resumed(folder) == [False]
    return folder


def test_the_same_call_finds_its_stage(finished):
    assert resumed(finished) == [True]


@pytest.mark.parametrize(
    "change",
    [
        {"calibration": (X + 1,)},
        {"calibration": (X[:4], X[4:])},
        {"calibration": (X, X)},
        {"examples": X[:4]},
        {"examples": images(8, size=12)},
    ],
    ids=["other-values", "other-batches", "more-batches", "a-smaller-batch", "larger-images"],
)
def test_other_data_or_shapes_are_another_stage(finished, change):
    assert resumed(finished, **change) == [False]
