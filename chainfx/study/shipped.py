"""The designs that ship: the paper's experiments and ours, on data that every installation has."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from chainfx.errors import StudyError
from chainfx.passes import (
    Distill,
    EarlyExit,
    Fuse,
    Pass,
    PostTrainingQuantize,
    PruneChannels,
    PruneWeights,
    Quantize,
)
from chainfx.study.design import PAPER_CASES, Design
from chainfx.study.orders import ORDERS
from chainfx.study.tuning import Tuning

__all__ = ["GridSize", "shipped_design"]

GridSize = Literal["small", "paper"]
"""How many strengths of each pass a shipped design has: one or two, or as many as the paper's pairs."""

_KEPT: dict[str, Any] = {"threshold": 1.01, "keep": True}
"""What keeps exits whatever they cost: a study reads them at thresholds of its own."""

Grids = Mapping[str, tuple[Pass, ...]]

_TWO_STRENGTHS: Grids = {
    "D": (Distill(width=0.7), Distill(depth=0.5)),
    "P": (PruneChannels(0.25, round_to=1), PruneChannels(0.5, round_to=1)),
    "Q": (Quantize(4, 4), Quantize(2, 4)),
    "E": (EarlyExit(exits=1, **_KEPT),),
}
"""Two strengths of each pass; exits have as many as there are thresholds."""

_MILD_TO_BREAKING: Grids = {
    "D": tuple(Distill(width=share) for share in (0.85, 0.7, 0.5, 0.25)),
    "P": tuple(PruneChannels(share, round_to=1) for share in (0.125, 0.25, 0.5, 0.75)),
    "Q": (Quantize(8, 8), Quantize(4, 4), Quantize(2, 4), Quantize(2, 2)),
    "E": (EarlyExit(exits=1, **_KEPT),),
}

_PAPER: Grids = {
    "D": tuple(Distill(width=share) for share in (0.85, 0.7, 0.6, 0.5, 0.35)),
    "P": tuple(PruneChannels(share, round_to=1) for share in (0.1, 0.2, 0.3, 0.4, 0.5)),
    "Q": (Quantize(8, 8), Quantize(4, 8), Quantize(4, 4), Quantize(2, 4)),
    "E": (EarlyExit(exits=1, **_KEPT),),
}
"""As many strengths as the paper's pairs have: about twenty of each, of exits by their thresholds."""

_GRIDS: Mapping[str, Grids] = {
    "recovery": {"D": (Distill(width=0.7),), "P": _TWO_STRENGTHS["P"], "Q": _TWO_STRENGTHS["Q"]},
    "weakest-first": {letter: grid[::3] for letter, grid in _MILD_TO_BREAKING.items() if letter != "E"},
    "sensitivity": _MILD_TO_BREAKING,
    "alone": _MILD_TO_BREAKING,
    "student": {
        "D": tuple(Distill(width=share) for share in (0.85, 0.7, 0.5)),
        "P": (PruneChannels(0.25, round_to=1),),
        "Q": (Quantize(4, 4),),
    },
    "compatibility": {
        "D": (Distill(width=0.7),),
        "P": (PruneChannels(0.5, round_to=1),),
        "W": (PruneWeights(0.5), PruneWeights(0.7)),
        "T": (PostTrainingQuantize(4, 8), PostTrainingQuantize(4, 4)),
        "Q": (Quantize(8, 8), Quantize(4, 4)),
        "G": (Fuse(),),
    },
}
"""What a design has in place of two strengths of each of the paper's passes."""


_SMALL = {"validation": 0.4, "samples": 1500, "test_samples": 1000}

_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "digits": {
        "network": {"name": "zoo.resnet", "options": {"blocks": [2, 2], "width": 8, "in_channels": 1}},
        "data": {"source": "digits", "validation": 0.4},
        "tuning": Tuning(epochs=4, original_epochs=12, batch_size=64),
        "tiers": (0.006, 0.01, 0.02),
    },
    "diabetes": {
        "network": {"name": "zoo.mlp", "options": {"inputs": 10, "hidden": [16, 16], "outputs": 1}},
        "data": {"source": "diabetes", "validation": 0.5},
        "tuning": Tuning(epochs=20, original_epochs=60, learning_rate=0.02, batch_size=32),
        "tiers": (0.01, 0.02, 0.05),
    },
    "mnist": {
        "network": {"name": "zoo.resnet", "options": {"blocks": [2, 2], "width": 8, "in_channels": 1}},
        "data": _SMALL,
        "tuning": Tuning(epochs=2, original_epochs=6, batch_size=32),
        "tiers": (0.006, 0.01, 0.02),
    },
    "cifar10": {
        "network": {"name": "zoo.resnet", "options": {"blocks": [3, 3, 3], "width": 8, "shortcut": "A"}},
        "data": _SMALL,
        "tuning": Tuning(epochs=2, original_epochs=12, batch_size=32),
        "tiers": (0.01, 0.02, 0.05),
    },
}
"""By data: the network, how much of the data is used, and the training of every stage."""


def shipped_design(
    orders: str,
    data: str = "digits",
    seeds: int = 8,
    folder: str | Path | None = None,
    grid: GridSize = "small",
) -> Design:
    """The design of that name for that data.

    ``data``: ``"digits"`` or ``"mnist"``, on a ResNet of 2+2 blocks; ``"cifar10"``, on a ResNet-20 of half the width;
    ``"diabetes"``, regression by two hidden layers, which has no exits and whose losses are those of its error. MNIST
    and CIFAR-10 use 1,500 images of ``train.npz`` and 1,000 of ``test.npz`` in ``folder``, each with ``images`` and
    ``labels``.

    ``grid``: few strengths of each pass, or ``"paper"`` for the paper's twenty cases of every pair; designs that are
    not the paper's have strengths of their own. Designs that compare arms of different length have both budgets. Stages
    train for few epochs instead of 200.

    Raises :class:`~chainfx.errors.StudyError` on a name that is not known, on data for which no design ships, and
    without the folder that they need.
    """
    if orders not in ORDERS:
        raise StudyError(f"there is no design {orders!r}; use one of {', '.join(ORDERS)}, or a YAML file of your own.")
    if data not in _SETTINGS:
        known = ", ".join(map(repr, _SETTINGS))
        raise StudyError(
            f"no design ships for data {data!r}; use one of {known}, or write a YAML file, see docs/study.md."
        )
    if grid not in get_args(GridSize):
        raise StudyError(f"grid={grid!r} is not known; use 'small' or 'paper'.")
    if grid == "paper" and orders in _GRIDS:
        raise StudyError(f"the design {orders!r} is not one of the paper's and has its own strengths; leave out grid.")
    settings = dict(_SETTINGS[data])
    if "source" not in settings["data"]:
        if folder is None:
            raise StudyError(f"{data!r} is read from files; give the folder of its train.npz and test.npz.")
        files = {name: f"{folder}/{part}.npz" for name, part in (("path", "train"), ("test", "test"))}
        settings["data"] = {"source": "npz", **files, **settings["data"]}
    if grid == "paper":
        settings["cases"] = PAPER_CASES
    grids = _GRIDS.get(orders, _PAPER if grid == "paper" else _TWO_STRENGTHS)
    if data == "diabetes":
        grids = {letter: _of_layers(grid) for letter, grid in grids.items() if letter != "E"}
    design = Design(orders=orders, passes=grids, seeds=tuple(range(seeds)), **settings)
    return dataclasses.replace(design, budget="both") if design.lengths_differ else design


def _of_layers(grid: tuple[Pass, ...]) -> tuple[Pass, ...]:
    """The grid for a network without blocks, whose students are narrower and never shallower."""
    return tuple(Distill(width=0.5) if isinstance(one, Distill) and one.depth is not None else one for one in grid)
