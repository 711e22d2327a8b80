import inspect
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from chainfx.errors import DataError
from chainfx.recipe import _SOURCES, _TORCHVISION
from chainfx.training import from_arrays, from_dataset, from_folder, from_loaders, from_npz, from_torchvision
from chainfx.training.data import SplitOptions
from chainfx.training.sources import Options

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 5, 6, 3), dtype=np.uint8)
LABELS = np.arange(40) % 4


def refused(call, message):
    with pytest.raises(DataError) as caught:
        call()
    assert str(caught.value) == message


def pixels(data):
    """All pixels of the data, as stored: the sum does not depend on the split."""
    return sum(int(part.images.sum(dtype=torch.int64)) for part in (data.train, data.validation, data.test))


def test_arrays_become_channels_first():
    data = from_arrays(IMAGES, LABELS)
    assert (data.input_shape, data.num_classes, len(data.test)) == ((3, 5, 6), 4, 8)
    index = next(
        i for i in range(40) if torch.equal(data.train.images[0], torch.from_numpy(IMAGES[i]).permute(2, 0, 1))
    )
    assert data.train.labels[0] == LABELS[index]


def test_npz_with_and_without_a_test_file(tmp_path):
    np.savez(tmp_path / "train.npz", images=IMAGES[..., 0], labels=LABELS.astype(np.uint8))
    np.savez(tmp_path / "test.npz", images=IMAGES[:10, ..., 1], labels=LABELS[:10])
    data = from_npz(tmp_path / "train.npz")
    assert (data.input_shape, len(data.test), pixels(data)) == ((1, 5, 6), 8, int(IMAGES[..., 0].sum(dtype=int)))
    data = from_npz(tmp_path / "train.npz", tmp_path / "test.npz", validation=0.2)
    assert (len(data.train), len(data.validation), len(data.test)) == (32, 8, 10)
    assert torch.equal(data.test.images[:, 0], torch.from_numpy(IMAGES[:10, ..., 1]))


def test_of_npz_files_some_samples_can_be_taken_by_classes(tmp_path):
    path = tmp_path / "train.npz"
    np.savez(path, images=IMAGES, labels=LABELS)
    data = from_npz(path, path, samples=20, test_samples=8)
    assert (len(data.train) + len(data.validation), len(data.test)) == (20, 8)
    assert data.test.labels.bincount().tolist() == [2, 2, 2, 2]
    assert from_npz(path, path, samples=20, test_samples=8).fingerprint == data.fingerprint
    assert from_npz(path, samples=40).fingerprint == from_npz(path).fingerprint
    refused(
        lambda: from_npz(path, samples=0),
        "npz: 0 samples cannot be taken; give a number from 1, or leave it out for all.",
    )


def test_wrong_npz_files_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    refused(lambda: from_npz(path), f"{path}: there is no such file; give a .npz with arrays 'images' and 'labels'.")
    path.write_bytes(b"not a zip file")
    with pytest.raises(DataError, match=r"a\.npz: not a readable \.npz file \("):
        from_npz(path)
    np.savez(path, x=IMAGES, labels=LABELS)
    refused(lambda: from_npz(path), f"{path}: has no array 'images', only x, labels; it needs 'images' and 'labels'.")
    np.savez(path, images=np.array([{}]), labels=LABELS)
    with pytest.raises(DataError, match=r"a\.npz: not a readable \.npz file \(Object arrays"):
        from_npz(path)
    np.savez(path, images=IMAGES / 255, labels=LABELS)
    refused(
        lambda: from_npz(path),
        f"{path}: images have shape (40, 5, 6, 3) and type float64; they must be (N, H, W, C) or (N, H, W) of uint8.",
    )
    np.savez(path, images=IMAGES.transpose(0, 3, 1, 2), labels=LABELS)
    refused(
        lambda: from_npz(path),
        f"{path}: images of shape (40, 3, 5, 6) have channels first; transpose them to (N, H, W, C).",
    )
    np.savez(path, images=IMAGES, labels=LABELS / 1)
    refused(lambda: from_npz(path), f"{path}: labels have type float64; they must be one integer per image.")
    np.savez(path, images=IMAGES, labels=LABELS[:30])
    refused(lambda: from_npz(path), f"{path}: 40 images but 30 labels; there must be one label per image.")
    np.savez(path, images=IMAGES, labels=LABELS - 1)
    refused(lambda: from_npz(path), f"{path}: label -1 is negative; number the classes from 0.")


@pytest.fixture
def folder(tmp_path):
    for index, image in enumerate(IMAGES[:20]):
        (tmp_path / "pets" / f"class{index % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "pets" / f"class{index % 2}" / f"{index}.png")
    return tmp_path / "pets"


def test_an_image_folder_is_read_whole_or_scaled(folder):
    data = from_folder(folder)
    assert (data.input_shape, data.num_classes, pixels(data)) == ((3, 5, 6), 2, int(IMAGES[:20].sum(dtype=int)))
    assert from_folder(folder, size=4).input_shape == (3, 4, 4)
    assert len(from_folder(folder, folder).test) == 20


def test_wrong_folders_are_refused(folder, tmp_path):
    nowhere = tmp_path / "nowhere"
    refused(
        lambda: from_folder(nowhere),
        f"{nowhere}: there is no such folder; give one with a sub-folder of images per class.",
    )
    nowhere.mkdir()
    refused(
        lambda: from_folder(nowhere),
        f"{nowhere}: has no sub-folders; put the images of each class into a sub-folder of its own.",
    )
    Image.fromarray(IMAGES[0][:4]).save(folder / "class1" / "small.png")
    refused(
        lambda: from_folder(folder),
        f"{folder}: image 20 has shape (3, 4, 6), the first one (3, 5, 6) (channels, height, width); "
        f"make them alike, for a folder with size=.",
    )
    (folder / "class1" / "small.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"pets: image 20 cannot be read \(cannot identify image file"):
        from_folder(folder)
    (folder / "class1" / "small.png").unlink()
    (nowhere / "class0").mkdir()
    (folder / "class2").mkdir()
    refused(
        lambda: from_folder(folder),
        f"{folder / 'class2'}: this class has no images (.jpg, .jpeg, .png, .ppm, .bmp, .pgm, .tif, .tiff, .webp); "
        f"remove it or add some.",
    )


def test_test_folders_have_the_same_classes(folder, tmp_path):
    other = tmp_path / "other" / "class7"
    other.mkdir(parents=True)
    Image.fromarray(IMAGES[0]).save(other / "a.png")
    refused(
        lambda: from_folder(folder, other.parent),
        f"{other.parent}: its classes are not those of {folder}; they differ in class0, class1, class7.",
    )


def test_data_sets_of_pil_images_arrays_and_tensors_are_the_same_data():
    channels_first = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    sets = [
        [(convert(image), int(label)) for image, label in zip(source, LABELS, strict=True)]
        for convert, source in ((Image.fromarray, IMAGES), (np.asarray, IMAGES), (torch.clone, channels_first))
    ]
    assert len({from_dataset(items).fingerprint for items in sets}) == 1
    scaled = from_dataset(TensorDataset(channels_first / 255, torch.from_numpy(LABELS)))
    (expected,), _ = next(from_dataset(sets[0]).train.batches(5))
    (found,), _ = next(scaled.train.batches(5))
    assert torch.allclose(found, expected, atol=1e-5)


def test_wrong_data_sets_are_refused(monkeypatch):
    refused(
        lambda: from_dataset([IMAGES[0]] * 3),
        "data set: sample 0 is a ndarray; it must be (image, class index).",
    )
    refused(
        lambda: from_dataset([(IMAGES[0] / 255, 1)] * 3),
        "data set: image 0 has shape (5, 6, 3) and type float64; an array must be uint8 (H, W) or (H, W, C).",
    )
    refused(
        lambda: from_dataset(iter(())),
        "data set: a tuple_iterator of no known length; give a map-style data set or DataLoaders.",
    )
    monkeypatch.setattr("chainfx.training.sources._MEMORY_LIMIT", 2**10)
    refused(
        lambda: from_dataset([(IMAGES[0], 1)] * 40),
        "data set: 40 images of shape (3, 5, 6) need 0.0 GiB of memory, more than 0; "
        "use DataLoaders (from_loaders) or smaller images.",
    )


def test_torchvision_sets_are_found_by_name_and_never_downloaded(tmp_path):
    refused(
        lambda: from_torchvision("CIFAR11", tmp_path),
        "torchvision.datasets has no classification set 'CIFAR11' with a train and a test part.",
    )
    refused(
        lambda: from_torchvision("CIFAR10", tmp_path),
        f"torchvision's CIFAR10 is not readable below {tmp_path} (Dataset not found or corrupted. You can use "
        f"download=True to download it); download it there.",
    )
    refused(
        lambda: from_torchvision("SVHN", tmp_path),
        f"torchvision's SVHN is not readable below {tmp_path} (Dataset not found or corrupted. You can use "
        f"download=True to download it); download it there.",
    )


def test_the_options_of_a_split_have_one_owner():
    fields = get_type_hints(SplitOptions)
    assert {name: get_args(hint)[0] for name, hint in get_type_hints(Options, include_extras=True).items()} == fields
    defaults = inspect.signature(from_loaders).parameters
    assert defaults["validation_share"].default == SplitOptions().validation
    assert defaults["seed"].default == SplitOptions().seed
    for name in ("digits", "npz", "folder", "CIFAR10"):
        section = _SOURCES.get(name, _TORCHVISION).model_fields
        assert {name: section[name].default for name in fields} == vars(SplitOptions())
