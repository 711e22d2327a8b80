"""What a stage has to say for itself: that it does not pay, or that it lost much, and what the likely causes are."""

from collections.abc import Iterator

from torch.fx import GraphModule

from chainfx.ir.graph import facts_of
from chainfx.passes import Kind, Pass
from chainfx.scheduler.records import Costs, StageRecord

__all__ = ["is_cheaper", "of_cost", "of_loss", "of_replaced"]

_PRICED = "strict"  # every layer at its own width: the nominal convention may rise where layers only go


def is_cheaper(one: Pass, before: Costs, after: Costs) -> bool:
    """Whether a pass made a network cheaper, as :attr:`chainfx.passes.Pass.must_pay` compares; costs under strict."""
    return (_work(one, after), after.storage_bits) < (_work(one, before), before.storage_bits)


def of_cost(one: Pass, before: Costs, after: Costs, *, modified: bool, taken_back: bool) -> tuple[str, ...]:
    """The remark on a pass whose result is no cheaper, with what was done about it; none on one that pays.

    On a pass that need not pay there is a remark only if the network became dearer.
    """
    old, new = _work(one, before), _work(one, after)
    if one.must_pay and not modified:
        return ("changed nothing.",)
    if not taken_back and new <= old:
        return ()
    kind = "expected bit operations" if one.info.kind is Kind.DYNAMIC else "bit operations"
    share = f": {new / old:.3g} times the {kind} of before ({_PRICED})" if old else ""
    done = "; the network was left as it was, which keep=True prevents" if taken_back else ""
    return (f"does not pay{share}{done}.",)


def of_replaced(one: Pass, before: GraphModule, after: GraphModule) -> tuple[str, ...]:
    """The remark on a pass that quantizes what an earlier stage quantized: its quantizers are gone."""
    if "bit-widths" not in one.info.establishes:
        return ()
    old, new = facts_of(before).bit_widths, facts_of(after).bit_widths
    changed = [name for name in old if name in new and old[name] != new[name]]
    if not changed:
        return ("quantizes anew what an earlier stage quantized, to the same bits.",) if old.keys() & new.keys() else ()
    was, now = old[changed[0]], new[changed[0]]
    return (
        f"replaces the quantizers of an earlier stage, of {len(changed)} layer{'s' * (len(changed) > 1)}: "
        f"{changed[0]!r} had {was.weight}-bit weights and a {was.activation}-bit input, and now has {now.weight} and "
        f"{now.activation} bits.",
    )


def of_loss(one: Pass, parent: StageRecord, record: StageRecord, most: float | None) -> str | None:
    """The remark on a stage whose metric is worse than that of its parent by more than ``most``; ``None`` for others.

    ``most`` is in units of the metric, 0.05 for five points of accuracy, and ``None`` for no remark at all.
    """
    if most is None or parent.metric is None or record.metric is None:
        return None
    measured = record.measured_by
    if not measured.loss(parent.metric, record.metric) > most:
        return None
    verb = "fell" if measured.higher_is_better else "rose"
    change = f"{measured.name} {verb} from {measured.text(parent.metric)} to {measured.text(record.metric)}"
    return f"{change}; likely causes: {', '.join(_causes(one, parent, record))}."


def _causes(one: Pass, parent: StageRecord, record: StageRecord) -> Iterator[str]:
    """Why a stage may have lost much, the likeliest first, each with what to do about it."""
    left = record.after.bitops / parent.after.bitops if parent.after.bitops else 1.0
    if one.info.kind is Kind.STATIC and left < 1:
        yield f"too strong a step ({left:.1%} of the bit operations are left: use a milder option, or several steps)"
    yield "too little tuning (raise the trainer's epochs)" if record.tuned else "no tuning (nothing trained after it)"
    if "bit-widths" in one.info.establishes:
        yield "calibration (batches that are too few, or unlike the data)"
    if "exits" in one.info.establishes:
        yield "the exit threshold (raise it, or lower max_drop)"
    elif record.exit_rates:
        yield "the exit threshold (it was chosen before this stage: put early-exit last)"


def _work(one: Pass, costs: Costs) -> float:
    if one.info.kind is Kind.DYNAMIC and costs.expected_bitops is not None:
        return costs.expected_bitops
    return costs.bitops
