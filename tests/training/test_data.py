import pytest
import torch

from chainfx.errors import DataError
from chainfx.ir.graph import derived_generator
from chainfx.training import digits
from chainfx.training.data import Batches, SplitOptions, build, stratified_split


def arrays(count=40, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 2, 3, 3), dtype=torch.uint8, generator=generator)
    return images, torch.arange(count) % classes


@pytest.fixture(scope="module")
def data():
    return digits()


def test_the_split_is_a_partition_that_keeps_the_shares_of_the_classes():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    rest, held = stratified_split(labels, 0.2, derived_generator(1, "test"))
    assert sorted([*rest.tolist(), *held.tolist()]) == list(range(100))
    assert labels[held].bincount().tolist() == [10, 6, 4]
    again = stratified_split(labels, 0.2, derived_generator(1, "test"))
    other = stratified_split(labels, 0.2, derived_generator(2, "test"))
    assert torch.equal(held, again[1]) and not torch.equal(held, other[1])


def test_held_out_samples_are_rounded_up_and_a_single_sample_stays():
    labels = torch.tensor([0] * 7 + [1] * 3 + [2])
    rest, held = stratified_split(labels, 0.2, derived_generator(0, "test"))
    assert len(held) == 3 and 2 not in labels[held] and {0, 1, 2} == set(labels[rest].tolist())


def test_nothing_to_hold_out_is_refused():
    with pytest.raises(DataError) as caught:
        stratified_split(torch.arange(3), 0.1, derived_generator(0, "test"))
    assert str(caught.value) == (
        "data: 3 samples of 3 classes are too few to hold out a share of 0.1; a class needs at least two."
    )


def test_the_three_parts_do_not_overlap_and_are_all_of_it():
    images = torch.arange(60).to(torch.uint8)[:, None, None, None].expand(60, 1, 2, 2)
    data = build("data", (images, torch.arange(60) % 3), None, SplitOptions(mean=(0.0,), std=(1 / 255,)))
    seen = [
        [int(v) for (x,), _ in Batches(part, 7) for v in x[:, 0, 0, 0].round()]
        for part in (data.train, data.validation, data.test)
    ]
    assert [len(part) for part in seen] == [43, 5, 12]
    assert sorted(value for part in seen for value in part) == list(range(60))


def test_digits_have_the_documented_sizes(data):
    assert (len(data.train), len(data.validation), len(data.test)) == (1293, 144, 360)
    assert (data.num_classes, data.input_shape, data.batch_size) == (10, (1, 8, 8), None)
    assert data.test.labels.bincount().min() >= 34


def test_the_training_part_alone_decides_the_normalisation(data):
    (inputs,), _ = next(data.train.batches(10_000))
    assert inputs.mean().item() == pytest.approx(0, abs=1e-4) and inputs.std().item() == pytest.approx(1, abs=1e-3)
    images, labels = arrays()
    bright = build("data", (images, labels), (torch.full_like(images, 255), labels), SplitOptions())
    dark = build("data", (images, labels), (torch.zeros_like(images), labels), SplitOptions())
    assert bright.normalisation == dark.normalisation
    (inputs,), _ = next(bright.train.batches(100))
    assert torch.allclose(inputs.mean((0, 2, 3)), torch.zeros(2), atol=1e-5)


def test_given_normalisation_is_in_units_of_one():
    images = torch.full((10, 1, 2, 2), 255, dtype=torch.uint8)
    data = build("data", (images, torch.zeros(10, dtype=torch.int64)), None, SplitOptions(mean=(0.5,), std=(0.25,)))
    (inputs,), _ = next(data.train.batches(1))
    assert inputs.unique().tolist() == [2.0]


def test_a_constant_channel_is_not_divided_by_zero():
    data = build("data", (torch.ones(20, 1, 2, 2, dtype=torch.uint8), torch.arange(20) % 2), None, SplitOptions())
    assert data.normalisation[1] == (1.0,)


def test_shuffling_follows_the_generator_and_drops_only_an_incomplete_batch(data):
    def order(seed):
        return [labels for _, labels in data.train.batches(128, derived_generator(seed, "test"))]

    first, again, other = order(1), order(1), order(2)
    assert all(map(torch.equal, first, again)) and not all(map(torch.equal, first, other))
    assert [len(batch) for batch in first] == [128] * 10 and data.train.steps(128) == 10
    assert [len(y) for _, y in data.train.batches(5000, derived_generator(1, "test"))] == [1293]
    assert sum(len(y) for _, y in data.train.batches(128)) == 1293


def test_calibration_is_the_same_every_time_and_of_all_classes(data):
    first, again = (data.calibration(512, 128) for _ in range(2))
    assert [tuple(x.shape) for (x,) in first] == [(128, 1, 8, 8)] * 4
    assert all(torch.equal(a, b) for (a,), (b,) in zip(first, again, strict=True))
    assert data.train.labels[:512].unique().numel() == 10
    assert torch.equal(data.example_inputs(3)[0], first[0][0][:3])


def test_the_fingerprint_follows_content_and_options():
    images, labels = arrays()
    changed = images.clone()
    changed[3, 0, 0, 0] ^= 1
    other_labels = labels.clone()
    other_labels[0] = 3
    found = [
        build("a", (images, labels), None, SplitOptions()).fingerprint,
        build("a", (changed, labels), None, SplitOptions()).fingerprint,
        build("a", (images, other_labels), None, SplitOptions()).fingerprint,
        build("a", (images, labels), None, SplitOptions(seed=1)).fingerprint,
        build("a", (images, labels), (images, labels), SplitOptions()).fingerprint,
    ]
    assert len(set(found)) == 5
    assert build("b", (images.clone(), labels), None, SplitOptions()).fingerprint == found[0]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ((0, 1, 2, 2), (0,), "x: images of shape (0, 1, 2, 2); they must be (N, channels, H, W) with N > 0."),
        ((5, 1, 2, 2), (4,), "x: 5 images but 4 labels; there must be one label per image."),
        (
            (5, 1, 2, 2),
            (5, 2),
            "x: labels have shape (5, 2) and type int64; they must be one integer per image.",
        ),
    ],
)
def test_wrong_shapes_are_refused(images, labels, message):
    with pytest.raises(DataError) as caught:
        parts = torch.zeros(images, dtype=torch.uint8), torch.zeros(labels, dtype=torch.int64)
        build("x", parts, None, SplitOptions())
    assert str(caught.value) == message


def test_negative_labels_unlike_images_and_wrong_channels_are_refused():
    images, labels = arrays()
    cases = {
        "x: label -1 is negative; number the classes from 0.": lambda: build(
            "x", (images, labels - 1), None, SplitOptions()
        ),
        "x: training images are (2, 3, 3) and test images (2, 3, 2) (channels, height, width); "
        "they must be alike.": lambda: build("x", (images, labels), (images[..., :2], labels), SplitOptions()),
        "x: images have 2 channels, but mean has 1 values and std 1; give one value per channel.": lambda: build(
            "x", (images, labels), None, SplitOptions(mean=(0.5,), std=(0.5,))
        ),
        "data: validation=1.5 is no share; use a number between 0 and 1.": lambda: SplitOptions(validation=1.5),
        "data: only one of mean and std is given; give both, or neither to have them computed.": lambda: SplitOptions(
            mean=(0.5,)
        ),
        "data: std=(0.0,) must be positive in every channel.": lambda: SplitOptions(mean=(0.5,), std=(0.0,)),
    }
    for message, wrong in cases.items():
        with pytest.raises(DataError) as caught:
            wrong()
        assert str(caught.value) == message
