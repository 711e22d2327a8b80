"""The criteria of importance that come with chainfx; :mod:`chainfx.passes.pruning.importance` says what one is."""

import torch
from torch import Tensor

from chainfx.errors import PassError
from chainfx.ir.graph import layer_path
from chainfx.passes.pruning.importance import GroupSlices, Slice, register_importance
from chainfx.passes.pruning.measurements import shrunk_covariance

__all__ = ["activation", "bn", "fpgm", "l1", "l2", "obs", "random", "reconstruction", "taylor"]

_BLOCK = 64


def _unit_norm(group: GroupSlices, order: int) -> Tensor:
    """The norm of all that makes and reads a unit: (sum over the slices of |w|^order)^(1 / order)."""
    slices = group.having("makes", "reads")
    return sum((each.total(each.power_sum(order)) for each in slices), group.zeros()).pow(1 / order)


@register_importance("l1")
def l1(group: GroupSlices) -> Tensor:
    """The sum of |w| over the filters that make the unit and those that read it (Li et al. 2017, on whole groups)."""
    return _unit_norm(group, 1)


@register_importance("l2")
def l2(group: GroupSlices) -> Tensor:
    """The Euclidean norm of the filters that make the unit and those that read it (Fang et al. 2023, sec. 3.2)."""
    return _unit_norm(group, 2)


@register_importance("bn")
def bn(group: GroupSlices) -> Tensor:
    """The mean |scale| of the group's BatchNorms (Liu et al. 2017, "Network Slimming")."""
    scales = group.having("scales")
    if not scales:
        sources = [each.path for each in group.slices if each.role in ("makes", "reads")]
        raise PassError(
            f"group {group.name!r} has no BatchNorm with a scale, which importance='bn' needs; "
            f"use importance='l1' or add {layer_path(sources[0])!r} to skip."
        )
    return sum((each.total(each.norm(1)) for each in scales), group.zeros()) / len(scales)


@register_importance("random")
def random(group: GroupSlices) -> Tensor:
    """Uniform random numbers that follow from the seed of the run."""
    return torch.rand(group.size, generator=group.generator, dtype=torch.float64, device="cpu")


@register_importance("fpgm")
def fpgm(group: GroupSlices) -> Tensor:
    """The summed Euclidean distance of a unit's filters to those of all others (He et al. 2019, "FPGM", eq. 4).

    A unit near the geometric median of its group is worth little, because the others can do its work.
    """
    total = group.zeros()
    for each in group.having("makes", "reads"):
        filters = each.tensor.detach().movedim(each.dim, 0).flatten(1).to("cpu", torch.float32)
        total += each.total(torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1))
    return total


@register_importance("activation", frozenset({"activity"}), comparable=True)
def activation(group: GroupSlices) -> Tensor:
    """The energy of what a unit adds to the sums of the layers that read it, on calibration data.

    For a channel of mean m and variance v that is read by the weights w_ok, with output o and kernel position k, the
    energy is sum_o (v sum_k w_ok^2 + m^2 (sum_k w_ok)^2): the means add up over the kernel, and the rest is taken as
    independent.
    """
    total = group.zeros()
    for each in group.having("reads"):
        if each.mean is not None and each.power is not None:
            weight = each.tensor.detach().movedim(each.dim, 0)
            steady = weight.reshape(*weight.shape[:2], -1).sum(2).square().sum(1).to("cpu", torch.float64)
            energy = (each.power - each.mean**2) * each.power_sum(2) + each.mean**2 * steady
            total += each.calls * each.total(energy)
    return total


@register_importance("taylor", frozenset({"slope"}), comparable=True)
def taylor(group: GroupSlices) -> Tensor:
    """The mean square of the derivative of the loss by a factor on the unit (Molchanov et al. 2019, eq. 8).

    The factor multiplies the unit in all layers that read it; a factor of 0 is the removal of the unit.
    """
    slopes = [each.total(each.slope) for each in group.having("reads") if each.slope is not None]
    return torch.stack(slopes).sum(0).square().mean(0) if slopes else group.zeros()


@register_importance("reconstruction", frozenset({"activity", "moment"}), comparable=True)
def reconstruction(group: GroupSlices) -> Tensor:
    """The energy that the layers which read the group lose when a unit goes after all units that are worth less.

    Units go one by one, each time the one that adds least to the energy lost so far. So it counts that channels which
    vary together add up or cancel (greedy selection as in Luo et al. 2017, "ThiNet", on the statistics of what is
    read). For layers of more than 4096 channels, the variations of channels are taken as independent.
    """
    energy = torch.zeros(group.size, group.size, dtype=torch.float64, device="cpu")
    for each in group.having("reads"):
        if each.mean is not None and each.power is not None:
            energy += each.calls * _energy(each, each.mean, each.power)
    return _slopes(*_removed_one_by_one(energy))


@register_importance("obs", frozenset({"activity", "moment"}), comparable=True)
def obs(group: GroupSlices) -> Tensor:
    """The energy that the layers which read the group lose when a unit goes and the other units take over its work.

    "Optimal Brain Surgeon" (Hassibi & Stork 1993, eq. 5) on channels: with the covariance C of what a layer reads and
    the weights w_u that read unit u, the loss is |w_u|^2 / [C^-1]_uu if the weights that read the other units are then
    fitted anew. Units go one by one, each time the one that costs least after those before it. It is meant for
    ``compensate=True``, which fits those weights, and for tuning afterwards. For layers of more than 4096 channels, the
    channels are taken as independent.
    """
    alone, readers = group.zeros(), []
    for each in group.having("reads"):
        if each.mean is None or each.power is None:
            continue
        if each.moment is None:
            alone += each.calls * each.total((each.power - each.mean**2) * each.power_sum(2))
        else:
            readers.append(_Reader(each, each.mean, each.moment))
    order, added = torch.zeros(group.size, dtype=torch.int64, device="cpu"), group.zeros()
    left = torch.ones(group.size, dtype=torch.bool, device="cpu")
    for step in range(group.size):
        loss = sum((reader.losses() for reader in readers), alone)
        unit = int(loss.masked_fill(~left, torch.inf).argmin())
        order[step], added[step], left[unit] = unit, alone[unit] + sum(reader.remove(unit) for reader in readers), False
    return _slopes(order, added)


class _Reader:
    """A layer that reads a group, and what it loses with the units, one after the other.

    Removing position i changes the inverse covariance H of what is left by - h H_i^T with h = H_i / H_ii, and the
    weights W, shape (positions, outputs), by - h W_i. Only their products G = W W^T are kept, which change by
    - h b^T - b h^T with b = G_i - G_ii h / 2. Changes are collected, so that the matrices are written once a block.
    """

    def __init__(self, read: Slice, mean: Tensor, moment: Tensor) -> None:
        places = read.positions
        covariance = shrunk_covariance(mean, moment, read.samples)[places][:, places]
        weight = read.tensor.detach().movedim(read.dim, 0)[places].flatten(1).to("cpu", torch.float32)
        self.units, self.size = read.units, read.size
        self.inverse = torch.linalg.inv(covariance)
        self.products = (weight @ weight.t()).double() * read.calls
        self.precision, self.energy = self.inverse.diagonal().clone(), self.products.diagonal().clone()
        self.left = torch.ones(len(places), dtype=torch.bool, device="cpu")
        self.most = int(self.units.bincount().max())
        block = max(_BLOCK, self.most)  # rows H_i, h and b
        self.changes = torch.zeros(3, block, len(places), dtype=torch.float64, device="cpu")
        self.waiting = 0

    def losses(self) -> Tensor:
        """What is lost with each unit that is left, shape (size,), were its positions to go each alone."""
        loss = self.energy / self.precision
        return torch.zeros(self.size, dtype=torch.float64, device="cpu").index_add_(0, self.units, loss)

    def remove(self, unit: int) -> float:
        """Remove a unit; what is lost by that."""
        if self.waiting + self.most > self.changes.shape[1]:
            self._settle()
        return sum(self._remove(place) for place in (self.units == unit).nonzero()[:, 0].tolist())

    def _remove(self, place: int) -> float:
        columns, factors, others = self.changes[:, : self.waiting]
        column = self.inverse[place] - factors[:, place] @ columns
        products = self.products[place] - others[:, place] @ factors - factors[:, place] @ others
        factor = column / column[place]
        other = products - products[place] / 2 * factor
        self.changes[:, self.waiting] = torch.stack([column, factor, other])
        self.waiting += 1
        self.precision -= column * factor
        self.energy -= 2 * factor * other
        self.left[place] = False
        return float(products[place] / column[place])

    def _settle(self) -> None:
        """Write the changes, for the positions that are left."""
        left = self.left.nonzero()[:, 0]
        columns, factors, others = self.changes[:, : self.waiting, left]
        mixed = factors.t() @ others
        self.inverse = self.inverse[left][:, left] - columns.t() @ factors
        self.products = self.products[left][:, left] - mixed - mixed.t()
        self.units, self.precision, self.energy = self.units[left], self.precision[left], self.energy[left]
        self.left, self.changes = self.left[left], self.changes[..., left]
        self.waiting = 0


def _energy(read: Slice, mean: Tensor, power: Tensor) -> Tensor:
    """The products of the parts of every two units in the sums of a layer, shape (size, size)."""
    weight = read.tensor.detach().movedim(read.dim, 0).to("cpu", torch.float32)
    weight = weight.reshape(*weight.shape[:2], -1)
    steady = read.total(mean * weight.sum(2).t().double())  # (outputs, size): what every unit gives on average
    if read.moment is None:
        varying = read.total((power - mean**2) * read.power_sum(2)).diag()
    else:
        flat = weight.flatten(1)
        varying = read.total(read.total((flat @ flat.t()) * (read.moment - torch.outer(mean, mean))).t())
    return steady.t() @ steady + varying


def _removed_one_by_one(energy: Tensor) -> tuple[Tensor, Tensor]:
    """The order in which units go, and how much energy each adds to what is lost; both shape (size,)."""
    size = len(energy)
    order, added = torch.zeros(size, dtype=torch.int64, device="cpu"), torch.zeros_like(energy[0])
    left, own, shared = torch.ones(size, dtype=torch.bool, device="cpu"), energy.diag(), torch.zeros_like(energy[0])
    for step in range(size):
        loss = (own + 2 * shared).masked_fill(~left, torch.inf)
        unit = int(loss.argmin())
        order[step], added[step] = unit, loss[unit]
        left[unit] = False
        shared += energy[:, unit]
    return order, added


def _slopes(order: Tensor, added: Tensor) -> Tensor:
    """The score of every unit: the steepest non-decreasing steps below what is added, in the order of removal.

    Where a unit makes good what one before it lost, the two are worth their mean (pooling of adjacent violators).
    """
    pools: list[tuple[float, int]] = []
    for value in added.tolist():
        total, count = value, 1
        while pools and pools[-1][0] * count >= total * pools[-1][1]:
            before = pools.pop()
            total, count = total + before[0], count + before[1]
        pools.append((total, count))
    steps = torch.cat(
        [torch.full((count,), total / count, dtype=torch.float64, device="cpu") for total, count in pools]
    )
    rank = torch.arange(len(steps), dtype=torch.float64, device="cpu")
    scores = torch.zeros_like(steps)
    scores[order] = steps + rank * steps.abs().amax() * 1e-12  # of one pool, the first to go is worth least
    return scores
