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


def test_only_images_are_cropped():
    with pytest.raises(InputError) as caught:
        Augment()(torch.zeros(4, 10), generator())
    assert str(caught.value) == "augment: inputs of shape (4, 10) are not images (N, C, H, W); train with augment=None."


def test_padding_is_not_negative():
    with pytest.raises(InputError) as caught:
        Augment(padding=-1)
    assert str(caught.value) == "augment: padding=-1 is negative; use 0 for no crop."
