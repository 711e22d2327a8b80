"""Where data in memory comes from: arrays, ``.npz`` files, image folders, torchvision data sets, the digits."""

import inspect
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NotRequired, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from chainfx.errors import DataError
from chainfx.ir.graph import content_hash, derived_generator
from chainfx.passes import Task
from chainfx.training.data import Arrays, Data, Samples, SplitOptions, build, stratified_split
from chainfx.training.tasks import regression

__all__ = [
    "Options",
    "diabetes",
    "digits",
    "from_arrays",
    "from_dataset",
    "from_folder",
    "from_npz",
    "from_tensors",
    "from_torchvision",
    "open_data",
]

_MEMORY_LIMIT = 8 * 2**30


class Options(TypedDict):
    """The types of the keyword options of every source in memory, for type checkers.

    :class:`~chainfx.training.data.SplitOptions` owns them: it has the defaults and says what they mean.
    """

    validation: NotRequired[float]
    test_share: NotRequired[float]
    seed: NotRequired[int]
    mean: NotRequired[tuple[float, ...] | None]
    std: NotRequired[tuple[float, ...] | None]


def from_tensors(
    inputs: Tensor | tuple[Tensor, ...],
    targets: Tensor,
    test: tuple[tuple[Tensor, ...], Tensor] | None = None,
    *,
    task: Task,
    validation: float = SplitOptions.validation,
    test_share: float = SplitOptions.test_share,
    seed: int = SplitOptions.seed,
) -> Data:
    """Tensors in memory for any task: inputs (N, ...) as the network takes them, targets (N, ...), ``test`` likewise.

    Parts are held out at random. Nothing is normalised.

    >>> from chainfx.training import regression
    >>> x = torch.arange(20.0)[:, None]
    >>> data = from_tensors(x, 2 * x, task=regression())
    >>> len(data.train), len(data.validation), len(data.test)
    (14, 2, 4)
    """
    everything = Samples(inputs if isinstance(inputs, tuple) else (inputs,), targets)
    if {len(tensor) for tensor in everything.inputs} != {len(targets)}:
        sizes = ", ".join(str(len(tensor)) for tensor in everything.inputs)
        raise DataError(f"tensors: inputs of {sizes} samples, but {len(targets)} targets; give one for each sample.")
    options = SplitOptions(validation, test_share, seed)
    rest, held = _apart(everything, options.test_share, seed, "test") if test is None else (everything, Samples(*test))
    train, chosen = _apart(rest, options.validation, seed, "validation")
    parts = [tensor for part in (train, chosen) for tensor in (*part.inputs, part.targets)]
    return Data(
        train=train,
        validation=chosen,
        test=held,
        num_classes=0,
        input_shape=tuple(everything.inputs[0].shape[1:]),
        fingerprint=content_hash(parts),
        task=task,
    )


def _apart(samples: Samples, share: float, seed: int, purpose: str) -> tuple[Samples, Samples]:
    """The samples without a share of them that is drawn at random, and that share."""
    held = round(share * len(samples))
    if not 0 < held < len(samples):
        raise DataError(f"tensors: a share of {share} of {len(samples)} samples cannot be held out; give more samples.")
    order = torch.randperm(len(samples), generator=derived_generator(seed, purpose), device="cpu")
    first, second = (samples.at(index) for index in (order[held:], order[:held]))
    return Samples(*first), Samples(*second)


def digits(**options: Unpack[Options]) -> Data:
    """scikit-learn's handwritten digits: 1,797 real 8x8 grey images in 10 classes, shipped with the library.

    >>> data = digits()
    >>> len(data.train), len(data.validation), len(data.test), data.input_shape
    (1293, 144, 360, (1, 8, 8))
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images.astype(np.uint8))[:, None]
    return build("digits", (images, torch.from_numpy(found.target)), None, SplitOptions(**options))


def diabetes(validation: float = SplitOptions.validation, seed: int = SplitOptions.seed) -> Data:
    """scikit-learn's diabetes data: 10 numbers of 442 patients and how the disease went on, a task of regression.

    The target has mean 0 and standard deviation 1, so that an error of 1 is that of no knowledge. Shipped with the
    library (Efron et al. 2004).

    >>> data = diabetes()
    >>> len(data.train), len(data.validation), len(data.test), data.input_shape
    (319, 35, 88, (10,))
    """
    from sklearn.datasets import load_diabetes

    found = load_diabetes(scaled=False)
    inputs, target = (torch.from_numpy(each).double() for each in (found.data, found.target))
    scaled = [((each - each.mean(0)) / each.std(0)).float() for each in (inputs, target)]
    return from_tensors(scaled[0], scaled[1], task=regression(), validation=validation, seed=seed)


def from_arrays(
    images: np.ndarray[Any, Any],
    labels: np.ndarray[Any, Any],
    test: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None = None,
    **options: Unpack[Options],
) -> Data:
    """Arrays in memory: ``images`` (N, H, W, C) or (N, H, W) uint8, ``labels`` (N,) from 0; ``test`` likewise."""
    held = None if test is None else _arrays("arrays (test part)", *test)
    return build("arrays", _arrays("arrays", images, labels), held, SplitOptions(**options))


def from_npz(
    path: str | Path,
    test: str | Path | None = None,
    samples: int | None = None,
    test_samples: int | None = None,
    **options: Unpack[Options],
) -> Data:
    """A ``.npz`` file with ``images`` (N, H, W, C) or (N, H, W) uint8 and ``labels`` (N,); ``test`` is such a file.

    ``samples`` and ``test_samples``: so many of each file at most, the same ones at every call, with every class in its
    share. Raises :class:`~chainfx.errors.DataError` on what is no such file.
    """
    held = None if test is None else _fewer(_npz(Path(test)), test_samples)
    return build(str(path), _fewer(_npz(Path(path)), samples), held, SplitOptions(**options))


def from_folder(
    path: str | Path, test: str | Path | None = None, size: int | None = None, **options: Unpack[Options]
) -> Data:
    """A folder with one sub-folder of images per class, read as RGB; ``test``: such a folder with the same classes.

    ``size``: the shorter side is scaled to it and the centre square cut out; without it all images must be of one size.
    """
    train, classes = _folder(Path(path), size)
    if test is None:
        return build(str(path), train, None, SplitOptions(**options))
    held, test_classes = _folder(Path(test), size)
    if classes != test_classes:
        differ = ", ".join(sorted(set(classes) ^ set(test_classes)))
        raise DataError(f"{test}: its classes are not those of {path}; they differ in {differ}.")
    return build(str(path), train, held, SplitOptions(**options))


def from_dataset(train: Dataset[Any], test: Dataset[Any] | None = None, **options: Unpack[Options]) -> Data:
    """A map-style data set of (image, class index), such as torchvision's; read once, kept in memory.

    An image is a PIL image, a uint8 array (H, W) or (H, W, C), or a tensor (C, H, W) or (H, W), uint8 or float. Random
    transforms would be frozen by that: leave them out and use the trainer's ``augment``.
    """
    held = None if test is None else _collect("test data set", test)
    return build("data set", _collect("data set", train), held, SplitOptions(**options))


def from_torchvision(name: str, root: str | Path, **options: Unpack[Options]) -> Data:
    """The class ``name`` of ``torchvision.datasets`` (e.g. ``"CIFAR10"``), already on disk below ``root``."""
    import torchvision.datasets

    found = getattr(torchvision.datasets, name, None)
    keys = inspect.signature(found).parameters if isinstance(found, type) else {}
    choice: dict[bool, dict[str, Any]] = {True: {"train": True}, False: {"train": False}}
    if "train" not in keys:
        choice = {True: {"split": "train"}, False: {"split": "test"}}
    if not isinstance(found, type) or not keys.keys() & {"train", "split"}:
        raise DataError(f"torchvision.datasets has no classification set {name!r} with a train and a test part.")
    try:
        train, test = (found(str(root), **choice[part]) for part in (True, False))
    except (RuntimeError, FileNotFoundError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"torchvision's {name} is not readable below {root} ({reason}); download it there.") from error
    return from_dataset(train, test, **options)


def open_data(source: str, **options: Any) -> Data:
    """The data of a source by name, as studies give it: ``digits``, ``diabetes``, ``npz``, ``folder``, or else the
    class of ``torchvision.datasets`` of that name; ``options`` are those of the function of the source.
    """
    readers: dict[str, Callable[..., Data]] = {
        "digits": digits,
        "diabetes": diabetes,
        "npz": from_npz,
        "folder": from_folder,
    }
    return readers[source](**options) if source in readers else from_torchvision(source, **options)


def _arrays(name: str, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Arrays:
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise DataError(
            f"{name}: images have shape {images.shape} and type {images.dtype}; "
            f"they must be (N, H, W, C) or (N, H, W) of uint8."
        )
    if images.ndim == 4 and images.shape[3] > 4 >= images.shape[1]:
        raise DataError(f"{name}: images of shape {images.shape} have channels first; transpose them to (N, H, W, C).")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{name}: labels have type {labels.dtype}; they must be one integer per image.")
    channels_first = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(channels_first)), torch.from_numpy(labels.astype(np.int64))


def _npz(path: Path) -> Arrays:
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; give a .npz with arrays 'images' and 'labels'.")
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in ("images", "labels") if key in stored.files}
            names = ", ".join(stored.files)
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable .npz file ({error}).") from error
    for key in ("images", "labels"):
        if key not in arrays:
            raise DataError(f"{path}: has no array {key!r}, only {names}; it needs 'images' and 'labels'.")
    return _arrays(str(path), arrays["images"], arrays["labels"])


def _fewer(arrays: Arrays, samples: int | None) -> Arrays:
    """So many of the samples at most, drawn by classes."""
    images, labels = arrays
    if samples is None or samples >= len(labels):
        return arrays
    if samples < 1:
        raise DataError(f"npz: {samples} samples cannot be taken; give a number from 1, or leave it out for all.")
    _, chosen = stratified_split(labels, samples / len(labels), derived_generator(0, "fewer"))
    return images[chosen], labels[chosen]


def _folder(path: Path, size: int | None) -> tuple[Arrays, list[str]]:
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension
    from torchvision.transforms import CenterCrop, Compose, Resize

    if not path.is_dir():
        raise DataError(f"{path}: there is no such folder; give one with a sub-folder of images per class.")
    classes = sorted(entry for entry in path.iterdir() if entry.is_dir())
    if not classes:
        raise DataError(f"{path}: has no sub-folders; put the images of each class into a sub-folder of its own.")
    for entry in classes:
        if not any(has_file_allowed_extension(str(file), IMG_EXTENSIONS) for file in entry.rglob("*")):
            raise DataError(f"{entry}: this class has no images ({', '.join(IMG_EXTENSIONS)}); remove it or add some.")
    transform = None if size is None else Compose([Resize(size), CenterCrop(size)])
    folder = ImageFolder(str(path), transform=transform)
    return _collect(str(path), folder), list(folder.classes)


def _collect(name: str, dataset: Dataset[Any]) -> Arrays:
    """All images (N, C, H, W) and labels (N,) of a map-style data set."""
    count = len(dataset) if hasattr(dataset, "__len__") else 0
    if not count:
        raise DataError(
            f"{name}: a {type(dataset).__name__} of no known length; give a map-style data set or DataLoaders."
        )
    first, _ = _sample(name, dataset, 0)
    _refuse_size(name, count, first)
    images = torch.empty(count, *first.shape, dtype=first.dtype, device="cpu")
    labels = torch.zeros(count, dtype=torch.int64, device="cpu")
    for index in range(count):
        image, labels[index] = _sample(name, dataset, index)
        if image.shape != first.shape or image.dtype != first.dtype:
            raise DataError(
                f"{name}: image {index} has shape {tuple(image.shape)}, the first one {tuple(first.shape)} "
                f"(channels, height, width); make them alike, for a folder with size=."
            )
        images[index] = image
    return images, labels


def _sample(name: str, dataset: Dataset[Any], index: int) -> tuple[Tensor, int]:
    try:
        item = dataset[index]
    except OSError as error:  # PIL's UnidentifiedImageError and truncated files
        raise DataError(f"{name}: image {index} cannot be read ({error}).") from error
    if not (isinstance(item, tuple | list) and len(item) == 2):
        raise DataError(f"{name}: sample {index} is a {type(item).__name__}; it must be (image, class index).")
    return _image(name, index, item[0]), int(item[1])


def _image(name: str, index: int, image: Any) -> Tensor:
    """A PIL image, array or tensor as (C, H, W), uint8 or float32."""
    if isinstance(image, Tensor):
        tensor = image[None] if image.dim() == 2 else image
        return tensor if tensor.dtype == torch.uint8 else tensor.float()
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise DataError(
            f"{name}: image {index} has shape {array.shape} and type {array.dtype}; "
            f"an array must be uint8 (H, W) or (H, W, C)."
        )
    return torch.from_numpy(array[None].copy() if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def _refuse_size(name: str, count: int, image: Tensor) -> None:
    needed = count * image.nbytes
    if needed > _MEMORY_LIMIT:
        raise DataError(
            f"{name}: {count} images of shape {tuple(image.shape)} need {needed / 2**30:.1f} GiB of memory, more than "
            f"{_MEMORY_LIMIT / 2**30:.0f}; use DataLoaders (from_loaders) or smaller images."
        )
