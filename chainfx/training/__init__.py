"""How a network is tuned: the default trainer, its tasks and losses, and the data sources."""

from chainfx.passes import Task
from chainfx.training.augment import Augment
from chainfx.training.data import Batches, Data, Split, SplitOptions, halve_validation
from chainfx.training.loaders import from_loaders
from chainfx.training.own import OwnTrainer, loss_of
from chainfx.training.sources import (
    diabetes,
    digits,
    from_arrays,
    from_dataset,
    from_folder,
    from_npz,
    from_tensors,
    from_torchvision,
    open_data,
)
from chainfx.training.sparsity import GroupLasso
from chainfx.training.tasks import (
    binary_classification,
    classes,
    language_modelling,
    multilabel_classification,
    regression,
    segmentation,
    token_classification,
)
from chainfx.training.terms import Loss
from chainfx.training.trainer import Trainer

__all__ = [
    "Augment",
    "Batches",
    "Data",
    "GroupLasso",
    "Loss",
    "OwnTrainer",
    "Split",
    "SplitOptions",
    "Task",
    "Trainer",
    "binary_classification",
    "classes",
    "diabetes",
    "digits",
    "from_arrays",
    "from_dataset",
    "from_folder",
    "from_loaders",
    "from_npz",
    "from_tensors",
    "from_torchvision",
    "halve_validation",
    "language_modelling",
    "loss_of",
    "multilabel_classification",
    "open_data",
    "regression",
    "segmentation",
    "token_classification",
]
