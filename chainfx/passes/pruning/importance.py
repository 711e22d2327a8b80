"""How important each unit of a group of coupled channels is: criteria, which have a name, and their scores.

The criteria of chainfx itself are in :mod:`chainfx.passes.pruning.criteria`.

A criterion is a function that sees the whole group: the filters that make its channels, the filters that read them, and
the scales of the normalizations between the two. Register a criterion of your own under a name, by which passes,
recipes and records speak of it::

    @register_importance("largest-weight")
    def largest_weight(group: GroupSlices) -> Tensor:
        return sum(each.total(each.norm(math.inf)) for each in group.having("makes"))
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from chainfx.errors import InputError, PassError
from chainfx.ir.channels import ChannelGroup, Member
from chainfx.passes.pruning.measurements import Evidence, reading_dims
from chainfx.passes.pruning.weights import Weights

__all__ = [
    "Criterion",
    "GroupSlices",
    "Role",
    "Slice",
    "get_importance",
    "importance_names",
    "register_importance",
    "score_groups",
    "slices_of",
]

Role = Literal["makes", "reads", "scales", "other"]


class _Line(NamedTuple):
    """The positions of a dimension and the units they belong to; ``whole``: unit i is position i, for all units."""

    positions: Tensor
    units: Tensor
    whole: bool


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """The part that a group has in one parameter: some positions along one dimension, each of which belongs to a unit.

    The entry ``positions[i]`` belongs to the unit ``units[i]``. ``role`` says what the parameter does with the channels
    of the group: ``makes`` (its dimension is the outputs of a convolution, linear layer or embedding), ``reads`` (it is
    the inputs of a layer that sums over them), ``scales`` (the scale of a BatchNorm) or ``other`` (biases, statistics,
    masks, plain parameters). ``size`` is the number of units of the group.
    """

    path: str
    role: Role
    tensor: Tensor
    dim: int
    size: int
    _line: _Line
    _evidence: Evidence
    _weights: Weights

    @property
    def positions(self) -> Tensor:
        """The positions along the dimension that belong to the group, in order."""
        return self._line.positions

    @property
    def units(self) -> Tensor:
        """The number of the unit that each of the positions belongs to."""
        return self._line.units

    @property
    def mean(self) -> Tensor | None:
        """The mean of what the layer reads at each position, measured on calibration data.

        This attribute and ``power``, ``moment`` and ``slope`` are those of
        :class:`~chainfx.passes.pruning.measurements.Evidence` at the positions of the slice. Each is ``None`` unless
        the criterion was registered as one that needs it (see :func:`register_importance`) and the role is ``reads``.
        """
        return self._evidence.mean.get(self.path)

    @property
    def power(self) -> Tensor | None:
        """The mean square of what the layer reads at each position; see :attr:`mean`."""
        return self._evidence.power.get(self.path)

    @property
    def moment(self) -> Tensor | None:
        """The mean product of what the layer reads at every two positions; see :attr:`mean`."""
        return self._evidence.moment.get(self.path)

    @property
    def slope(self) -> Tensor | None:
        """The derivative of the loss by a factor on each position, one row for every 8 samples; see :attr:`mean`."""
        return self._evidence.slope.get(self.path)

    @property
    def calls(self) -> int:
        """How often the network calls the layer for one input."""
        return self._evidence.calls.get(self.path, 1)

    @property
    def samples(self) -> int:
        """The number of samples that the measurements were made on."""
        return self._evidence.samples

    def norm(self, order: float = 2) -> Tensor:
        """The vector norm of the slice at every position of the dimension, float64 on the CPU, shape (positions,)."""
        if order == math.inf:
            return self.tensor.detach().abs().movedim(self.dim, 0).flatten(1).amax(1).to("cpu", torch.float64)
        return self.power_sum(order).pow(1 / order)

    def power_sum(self, order: float = 2) -> Tensor:
        """The sum of |w|^order at every position of the dimension, float64 on the CPU, shape (positions,)."""
        return self._weights.power_sum(self.path, self.dim, order)

    def total(self, each: Tensor) -> Tensor:
        """Sum values of shape (..., positions) over the positions of each unit; the result has shape (..., size)."""
        if self._line.whole:
            return each.narrow(-1, 0, self.size).to(torch.float64, copy=True)
        found = torch.zeros(*each.shape[:-1], self.size, dtype=torch.float64, device="cpu")
        return found.index_add_(-1, self.units, each[..., self.positions].to(torch.float64))


@dataclass(frozen=True, eq=False)
class GroupSlices:
    """What a criterion may know of a group: its name, the number of its units, its slices, and a source of randomness.

    ``make`` gives the slices that have one of some roles; it is called when a criterion asks for them.
    """

    name: str
    size: int
    make: Callable[[Sequence[Role]], tuple[Slice, ...]] = field(repr=False)
    generator: torch.Generator = field(default_factory=torch.Generator)

    @cached_property
    def slices(self) -> tuple[Slice, ...]:
        """All slices of the group."""
        return self.having(*get_args(Role))

    def having(self, *roles: Role) -> tuple[Slice, ...]:
        """The slices whose role is one of those given."""
        return self.make(roles)

    def zeros(self) -> Tensor:
        """Scores of 0 for every unit, of shape (size,) and in float64, to add to."""
        return torch.zeros(self.size, dtype=torch.float64, device="cpu")


Importance = Callable[[GroupSlices], Tensor]


@dataclass(frozen=True, slots=True)
class Criterion:
    """A registered criterion; the fields are the arguments of :func:`register_importance`."""

    name: str
    score: Importance
    needs: frozenset[str] = frozenset()
    comparable: bool = False


_CRITERIA: dict[str, Criterion] = {}
_NEEDS = frozenset({"activity", "moment", "slope"})


def register_importance(
    name: str, needs: frozenset[str] = frozenset(), *, comparable: bool = False
) -> Callable[[Importance], Importance]:
    """Add a criterion under a new name; :class:`~chainfx.passes.PruneChannels` then takes ``importance=name``.

    The decorated function gets a :class:`GroupSlices` and returns one number for each unit, of shape (size,): the
    higher the number, the more the unit is worth keeping. ``needs`` names the measurements of :class:`Slice` that it
    reads: ``"activity"`` (mean and power), ``"moment"`` and ``"slope"``; a pass that uses such a criterion asks for
    calibration data. ``comparable`` says whether scores of different groups have the same unit of measure; if not, they
    are divided by their mean over the group before the units of all groups are ranked together.

    Raises :class:`InputError` if the name is taken or ``needs`` has something else in it.

    >>> @register_importance("doctest-largest")
    ... def largest(group: GroupSlices) -> Tensor:
    ...     return sum((each.total(each.norm(math.inf)) for each in group.having("makes")), group.zeros())
    >>> "doctest-largest" in importance_names()
    True
    """
    if name in _CRITERIA:
        raise InputError(f"the importance {name!r} is registered already; give yours another name.")
    if not needs <= _NEEDS:
        unknown = ", ".join(repr(each) for each in sorted(needs - _NEEDS))
        raise InputError(f"the importance {name!r} needs {unknown}; it can have activity, moment and slope.")

    def add(score: Importance) -> Importance:
        _CRITERIA[name] = Criterion(name, score, needs, comparable)
        return score

    return add


def importance_names() -> tuple[str, ...]:
    """The names of all registered criteria, sorted."""
    return tuple(sorted(_CRITERIA))


def get_importance(name: str) -> Criterion | None:
    """The criterion that is registered under a name, or ``None`` if there is none."""
    return _CRITERIA.get(name)


def score_groups(
    criterion: Criterion,
    weights: Weights,
    groups: Sequence[ChannelGroup],
    evidence: Evidence,
    generator: torch.Generator,
    name: str = "prune-channels",
) -> list[Tensor]:
    """The scores of the units of each group, one tensor of shape (size,) for each, in float64 on the CPU.

    Raises :class:`PassError`, which begins with the name of the pass, ``name``, for a weight that makes channels and is
    not finite, and for scores that are not one finite number for each unit.
    """
    scores = []
    known = slices_of(weights, groups, evidence, generator, name)
    for slices, score in [(each, _score(criterion, each, name)) for each in known]:
        where = f"{name}: the importance {criterion.name!r}"
        if tuple(score.shape) != (slices.size,):
            raise PassError(
                f"{where} gives shape {tuple(score.shape)} for group {slices.name!r} of {slices.size} units; "
                f"give one number for each."
            )
        if not math.isfinite(score.sum().item()) and not bool(score.isfinite().all()):
            raise PassError(f"{where} is not finite for group {slices.name!r}; give finite numbers.")
        scores.append(score.detach().to("cpu", torch.float64))
    return scores


def _score(criterion: Criterion, group: GroupSlices, name: str) -> Tensor:
    try:
        return criterion.score(group)
    except PassError as error:
        raise PassError(f"{name}: {error}") from error


def slices_of(
    weights: Weights,
    groups: Sequence[ChannelGroup],
    evidence: Evidence,
    generator: torch.Generator,
    name: str = "prune-channels",
) -> Iterator[GroupSlices]:
    """What a criterion may know of every group, in the order of the groups.

    Raises :class:`PassError`, which begins with the name of the pass, ``name``, for a weight that makes channels and is
    not finite, once its group has been looked at.
    """
    look = _Look(weights, evidence)
    for group in groups:
        yield GroupSlices(group.name, group.size, partial(look.slices, group), generator)
        for source in group.sources:
            if not math.isfinite(weights.row_sums(source.path).sum().item()):
                raise PassError(
                    f"{name}: the weight {source.path!r} of group {group.name!r} is not finite everywhere; "
                    f"train the network again before pruning."
                )


_NOTHING = Evidence()


class _Look:
    """Makes slices out of members."""

    def __init__(self, weights: Weights, evidence: Evidence) -> None:
        self.weights = weights
        self.evidence = evidence
        self.lines: dict[tuple[int, int], _Line] = {}

    @cached_property
    def dims(self) -> dict[str, int]:
        """The dimensions that are summed over, by the paths of weights."""
        return reading_dims(self.weights.graph_module)

    @cached_property
    def scales(self) -> set[str]:
        """The paths of the scales of BatchNorms."""
        modules = self.weights.modules
        return {f"{path}.weight" for path, module in modules.items() if isinstance(module, _BatchNorm)}

    def slices(self, group: ChannelGroup, roles: Sequence[Role]) -> tuple[Slice, ...]:
        """The slices of a group that have one of these roles."""
        made = {(source.path, source.dim) for source in group.sources}
        found = []
        for member in group.members:
            role: Role = "other"
            if self.dims.get(member.path) == member.dim:
                role = "reads"
            elif (member.path, member.dim) in made:
                role = "makes"
            elif member.path in self.scales:
                role = "scales"
            if role in roles:
                found.append(self.slice(group, member, role))
        return tuple(found)

    def slice(self, group: ChannelGroup, member: Member, role: Role) -> Slice:
        """The slice of a member of a group."""
        evidence = self.evidence if role == "reads" else _NOTHING
        key = id(member.positions), id(member.units)  # members whose dimensions have the same labels share it
        if key not in self.lines:
            whole = np.array_equal(member.positions, member.units)  # both are in order, and no unit is missing
            self.lines[key] = _Line(torch.from_numpy(member.positions), torch.from_numpy(member.units), whole)
        tensor = self.weights.tensor(member.path)
        return Slice(member.path, role, tensor, member.dim, group.size, self.lines[key], evidence, self.weights)
