"""What a pass needs of a run, and whether it is there."""

from collections.abc import Iterator

from chainfx.passes import Pass

__all__ = ["unserved_needs"]


def unserved_needs(one: Pass, *, trainer: bool, calibration: bool) -> Iterator[str]:
    """Of each need of a pass that nothing serves, a text that says so and what to give.

    ``trainer`` and ``calibration``: whether there is a trainer, and whether calibration data were given.

    >>> from chainfx.passes import Quantize
    >>> list(unserved_needs(Quantize(), trainer=False, calibration=True))
    []
    """
    if "training" in one.needs and not trainer:
        yield (
            "this pass trains, and there is no trainer; "
            "give trainer=chainfx.training.Trainer(data, ...) or leave the pass out"
        )
    if "evaluation" in one.needs and not trainer:
        yield "this pass measures accuracy; give a trainer with validation data"
    if "calibration" in one.needs and not (trainer or calibration):
        yield ("this pass needs calibration data and there is none; give calibration=[batches of inputs] or a trainer")
