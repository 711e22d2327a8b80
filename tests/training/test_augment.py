import pytest
import torch

from chainfx.errors import InputError
from chainfx.training import Augment

IMAGES = torch.arange(1.0, 6 * 2 * 25 + 1).reshape(6, 2, 5, 5)


def generator():
    return torch.Generator().manual_seed(3)


def test_every_result_is_a_window_of_the_padded_image_or_its_mirror():
    padded = torch.nn.functional.pad(IMAGES, [2] * 4)
    result = Augment(padding=2)(IMAGES, generator())
    assert result.shape == IMAGES.shape
    for image, new in zip(padded, result, strict=True):
        windows = [image[:, r : r + 5, c : c + 5] for r in range(5) for c in range(5)]
        assert any(torch.equal(new, w) or torch.equal(new, w.flip(2)) for w in windows)


def test_rows_and_columns_move_apart():
    image = (10 * torch.arange(1.0, 6)[:, None] + torch.arange(1.0, 6)).expand(40, 1, 5, 5)
    centres = Augment(padding=2, flip=False)(image, generator())[:, 0, 2, 2]
    assert len(centres.unique()) > 15


def test_samples_differ_and_the_generator_alone_decides():
    torch.manual_seed(0)
    first = Augment(padding=2)(IMAGES[:1].expand(6, 2, 5, 5), generator())
    torch.manual_seed(1)
    assert torch.equal(first, Augment(padding=2)(IMAGES[:1].expand(6, 2, 5, 5), generator()))
    assert len({tuple(image.flatten().tolist()) for image in first}) > 1


def test_without_padding_and_flips_it_is_the_identity():
    assert torch.equal(Augment(padding=0, flip=False)(IMAGES, generator()), IMAGES)


def test_images_are_turned_and_stretched_about_the_middle():
    down, right = torch.meshgrid(torch.arange(-10.0, 11), torch.arange(-20.0, 21), indexing="ij")
    where = torch.stack([right, down]).expand(200, 2, 21, 41)  # each pixel holds its own place, right and down
    found = Augment(padding=0, flip=False, degrees=30, scale=0.2)(where, generator())
    assert found.shape == where.shape
    assert found[:, :, 10, 20].abs().max() < 1e-4
    # which way in the image one pixel right and one pixel down in the result lead
    ways = torch.stack([found[:, :, 10, 21], found[:, :, 11, 20]], 2)
    stretched = 1 / ways.norm(dim=2)
    for axis in stretched.T:
        assert 0.8 - 1e-4 <= axis.min() < 0.85 and 1.15 < axis.max() <= 1.2 + 1e-4
    assert (stretched[:, 0] - stretched[:, 1]).abs().max() > 0.2
    assert torch.allclose((ways[:, 0] * ways[:, 1]).sum(1), torch.zeros(200), atol=1e-4)
    angles = torch.atan2(ways[:, 0, 1], ways[:, 0, 0]).rad2deg()
    assert -30 <= angles.min() < -25 and 25 < angles.max() <= 30
    assert torch.equal(found, Augment(padding=0, flip=False, degrees=30, scale=0.2)(where, generator()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"degrees": -1}, "augment: degrees=-1 is not from 0 to 180; use 0 to turn no image."),
        ({"degrees": 200}, "augment: degrees=200 is not from 0 to 180; use 0 to turn no image."),
        ({"degrees": "x"}, "augment: degrees='x' is not from 0 to 180; use 0 to turn no image."),
        ({"padding": 1.5}, "augment: padding=1.5 is no whole number of pixels; use 0 for no crop."),
        ({"scale": "x"}, "augment: scale='x' is not from 0 to below 1; use 0 to stretch no image."),
        ({"scale": 1.0}, "augment: scale=1.0 is not from 0 to below 1; use 0 to stretch no image."),
    ],
)
def test_options_are_numbers_in_range(options, message):
    with pytest.raises(InputError) as caught:
        Augment(**options)
    assert str(caught.value) == message


def test_only_images_are_cropped():
    with pytest.raises(InputError) as caught:
        Augment()(torch.zeros(4, 10), generator())
    assert str(caught.value) == "augment: inputs of shape (4, 10) are not images (N, C, H, W); train with augment=None."


def test_padding_is_not_negative():
    with pytest.raises(InputError) as caught:
        Augment(padding=-1)
    assert str(caught.value) == "augment: padding=-1 is negative; use 0 for no crop."
