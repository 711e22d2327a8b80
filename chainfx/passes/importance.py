"""How important every unit of a coupled group is: criteria by name, each a function of the group's parameter slices.

The criteria of chainfx itself are in :mod:`chainfx.passes.criteria`.

A criterion sees the whole group: the filters that make its channels, the filters that read them, the scales of the
normalizations in between. One's own criterion is registered under a name, so that recipes and records can say it::

    @register_importance("largest-weight")
    def largest_weight(group: GroupSlices) -> Tensor:
        return sum(each.total(each.norm(math.inf)) for each in group.having("makes"))
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _BatchNorm

from chainfx.errors import InputError, PassError
from chainfx.ir.channels import ChannelGroup, Member
from chainfx.ir.edit import modules_by_path, places_of
from chainfx.passes.evidence import Evidence, reading_dims

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


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """One dimension of one parameter of a group, of which position ``positions[i]`` belongs to unit ``units[i]``.

    ``role``: ``makes`` (the outputs of a convolution, linear layer or embedding), ``reads`` (the inputs of one that
    sums over them), ``scales`` (the scale of a BatchNorm) or ``other`` (biases, statistics, masks, plain parameters).
    ``size``: the number of units of the group. ``mean``, ``power``, ``moment``, ``slope``, ``calls``: what
    :class:`~chainfx.passes.evidence.Evidence` has of the slice, the first four ``None`` unless the criterion needs them
    (see :func:`register_importance`) and the role is ``reads``. ``samples``: on how many that was measured.
    """

    path: str
    role: Role
    tensor: Tensor
    dim: int
    positions: Tensor
    units: Tensor
    size: int
    mean: Tensor | None = None
    power: Tensor | None = None
    moment: Tensor | None = None
    slope: Tensor | None = None
    calls: int = 1
    samples: int = 0
    _sums: dict[tuple[str, float], tuple[Tensor, ...]] = field(
        default_factory=dict
    )  # shared: a weight is in two groups

    def norm(self, order: float = 2) -> Tensor:
        """The vector norm of the slice at every position of the dimension, float64 on the CPU, shape (positions,)."""
        if order == math.inf:
            return self.tensor.detach().abs().movedim(self.dim, 0).flatten(1).amax(1).to("cpu", torch.float64)
        return self.power_sum(order) ** (1 / order)

    def power_sum(self, order: float = 2) -> Tensor:
        """The sum of |w|^order at every position of the dimension, float64 on the CPU, shape (positions,)."""
        if self.dim > 1:
            return _powers(self.tensor, order).movedim(self.dim, 0).flatten(1).sum(1).to("cpu", torch.float64)
        key = (self.path, order)
        if key not in self._sums:
            self._sums[key] = tuple(each.to("cpu", torch.float64) for each in _sums(_powers(self.tensor, order)))
        return self._sums[key][self.dim]

    @property
    def is_finite(self) -> bool:
        """Whether the tensor is finite everywhere: then so are its sums."""
        sums = self._sums.get((self.path, 1)) or self._sums.get((self.path, 2)) or (self.tensor.detach(),)
        return math.isfinite(sums[0].sum(dtype=torch.promote_types(sums[0].dtype, torch.float32)).item())

    def total(self, each: Tensor) -> Tensor:
        """Values at every position, shape (..., positions), summed over those of each unit: shape (..., size)."""
        found = torch.zeros(*each.shape[:-1], self.size, dtype=torch.float64)
        return found.index_add_(-1, self.units, each[..., self.positions].to(torch.float64))


@dataclass(frozen=True, eq=False)
class GroupSlices:
    """What a criterion may know of a group: its name, its number of units, its slices, and a source of randomness.

    ``roles`` are those of the slices, which ``make`` makes, by number, when they are first asked for.
    """

    name: str
    size: int
    roles: tuple[Role, ...]
    make: Callable[[int], Slice] = field(repr=False)
    generator: torch.Generator = field(default_factory=torch.Generator)

    @cached_property
    def slices(self) -> tuple[Slice, ...]:
        """All slices of the group."""
        return self.having(*get_args(Role))

    def having(self, *roles: Role) -> tuple[Slice, ...]:
        """The slices with one of these roles."""
        return tuple(self.make(number) for number, role in enumerate(self.roles) if role in roles)

    def zeros(self) -> Tensor:
        """A score of nothing, shape (size,), float64."""
        return torch.zeros(self.size, dtype=torch.float64)


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
    """Add a criterion under a name of its own; :class:`~chainfx.passes.PruneChannels` then takes ``importance=name``.

    The criterion gets a :class:`GroupSlices` and returns one number a unit, shape (size,): the higher, the more it is
    worth keeping. ``needs``: of ``"activity"`` (mean and power), ``"moment"`` and ``"slope"``, what it reads of
    :class:`Slice`; any of them asks for calibration data. ``comparable``: whether scores of different groups are in one
    unit; those that are not are divided by their mean over the group before units of all groups are ranked together.

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
    """The names of all criteria, sorted."""
    return tuple(sorted(_CRITERIA))


def get_importance(name: str) -> Criterion | None:
    """The criterion of that name, or ``None``."""
    return _CRITERIA.get(name)


def score_groups(
    criterion: Criterion,
    graph_module: GraphModule,
    groups: Sequence[ChannelGroup],
    evidence: Evidence,
    generator: torch.Generator,
    name: str = "prune-channels",
) -> list[Tensor]:
    """The score of every unit of each group, shape (size,), float64 on the CPU.

    Raises :class:`PassError`, in the name of pass ``name``, for a weight that makes channels and is not finite, and for
    scores that are not one finite number a unit.
    """
    scores = []
    known = slices_of(graph_module, groups, evidence, generator, name)
    for slices, score in [(each, _score(criterion, each, name)) for each in known]:
        where = f"{name}: the importance {criterion.name!r}"
        if tuple(score.shape) != (slices.size,):
            raise PassError(
                f"{where} gives shape {tuple(score.shape)} for group {slices.name!r} of {slices.size} units; "
                f"give one number for each."
            )
        if not bool(score.isfinite().all()):
            raise PassError(f"{where} is not finite for group {slices.name!r}; give finite numbers.")
        scores.append(score.detach().to("cpu", torch.float64))
    return scores


def _score(criterion: Criterion, group: GroupSlices, name: str) -> Tensor:
    try:
        return criterion.score(group)
    except PassError as error:
        raise PassError(f"{name}: {error}") from error


def slices_of(
    graph_module: GraphModule,
    groups: Sequence[ChannelGroup],
    evidence: Evidence,
    generator: torch.Generator,
    name: str = "prune-channels",
) -> Iterator[GroupSlices]:
    """What a criterion may know of every group, in order.

    Raises :class:`PassError`, in the name of pass ``name``, for a weight that makes channels and is not finite, once
    the group has been looked at.
    """
    look = _Look(graph_module, evidence)
    for group in groups:
        made = {(source.path, source.dim) for source in group.sources}
        roles = tuple(look.role(member, made) for member in group.members)
        known = GroupSlices(group.name, group.size, roles, partial(look.slice, group, roles), generator)
        yield known
        for each in known.having("makes"):
            if not each.is_finite:
                raise PassError(
                    f"{name}: the weight {each.path!r} of group {group.name!r} is not finite everywhere; "
                    f"train the network again before pruning."
                )


_NOTHING = Evidence()


class _Look:
    """Makes slices out of members."""

    def __init__(self, graph_module: GraphModule, evidence: Evidence) -> None:
        self.graph_module = graph_module
        self.evidence = evidence
        self.dims = reading_dims(graph_module)
        modules = modules_by_path(graph_module)
        self.scales = {f"{path}.weight" for path, module in modules.items() if isinstance(module, _BatchNorm)}
        self.places = places_of(modules)
        self.lines: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.sums: dict[tuple[str, float], tuple[Tensor, ...]] = {}

    def role(self, member: Member, made: set[tuple[str, int]]) -> Role:
        """The role of a member of a group whose layers ``made`` (path, dimension)."""
        if self.dims.get(member.path) == member.dim:
            return "reads"
        if (member.path, member.dim) in made:
            return "makes"
        return "scales" if member.path in self.scales else "other"

    def slice(self, group: ChannelGroup, roles: Sequence[Role], number: int) -> Slice:
        """The slice of a member of a group."""
        member, role = group.members[number], roles[number]
        path, evidence = member.path, self.evidence if role == "reads" else _NOTHING
        line = id(member.positions), id(member.units)  # members whose dimensions have the same labels share it
        if line not in self.lines:
            self.lines[line] = torch.from_numpy(member.positions), torch.from_numpy(member.units)
        return Slice(
            path,
            role,
            self.places[path].tensor,
            member.dim,
            *self.lines[line],
            group.size,
            evidence.mean.get(path),
            evidence.power.get(path),
            evidence.moment.get(path),
            evidence.slope.get(path),
            evidence.calls.get(path, 1),
            evidence.samples,
            self.sums,
        )


def _sums(values: Tensor) -> tuple[Tensor, ...]:
    """The sums over everything else at every position of the first and the second dimension, if there is one."""
    if values.dim() < 2:
        return (values,)
    matrix = values.flatten(1)
    rows = torch.mv(matrix, matrix.new_ones(matrix.shape[1]))  # several times as fast as sum, for columns above all
    columns = torch.mv(matrix.t(), matrix.new_ones(matrix.shape[0]))
    return rows, columns.view(values.shape[1], -1).sum(1)


def _powers(tensor: Tensor, order: float) -> Tensor:
    values = tensor.detach()
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    return values.abs() if order == 1 else values.square() if order == 2 else values.abs().pow(order)
