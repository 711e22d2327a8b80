"""A channel analysis as text: the groups that can be pruned, and the channels that must stay."""

from collections.abc import Sequence

from chainfx.ir.channels import ChannelAnalysis, ChannelGroup

__all__ = ["channels_text"]

_SHOWN = 6


def channels_text(analysis: ChannelAnalysis) -> str:
    """The totals in the first line, and below it one line for each group and each layer with frozen channels."""
    share = 100 * analysis.prunable / max(analysis.parameters, 1)
    totals = (
        f"channel groups: {len(analysis.groups)}, units: {sum(group.size for group in analysis.groups)}; "
        f"{share:.1f} % of the parameters ({analysis.prunable} of {analysis.parameters}) lie in them"
    )
    groups = [_group_line(group, analysis) for group in analysis.groups]
    frozen = [f"  frozen {each.node}: {each.channels} channels, {each.reason}" for each in analysis.frozen]
    return "\n".join([totals, *groups, *frozen])


def _group_line(group: ChannelGroup, analysis: ChannelAnalysis) -> str:
    kind = f", {analysis.fold} of attention" if group.name in analysis.attention else ""
    return (
        f"  {group.name}: {group.size} units{kind}, made by {_listed([source.node for source in group.sources])}; "
        f"{len(group.members)} parameter dimensions of {group.parameters} parameters"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= _SHOWN else [*names[: _SHOWN - 1], f"{len(names) - _SHOWN + 1} more"])
