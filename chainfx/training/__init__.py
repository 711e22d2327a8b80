"""How a network is tuned: the default trainer, its losses, and the data sources."""

from chainfx.training.augment import Augment
from chainfx.training.data import Batches, Data, Split, SplitOptions, halve_validation
from chainfx.training.loaders import from_loaders
from chainfx.training.sources import (
    digits,
    from_arrays,
    from_dataset,
    from_folder,
    from_npz,
    from_torchvision,
    open_data,
)
from chainfx.training.trainer import Trainer

__all__ = [
    "Augment",
    "Batches",
    "Data",
    "Split",
    "SplitOptions",
    "Trainer",
    "digits",
    "from_arrays",
    "from_dataset",
    "from_folder",
    "from_loaders",
    "from_npz",
    "from_torchvision",
    "halve_validation",
    "open_data",
]
