"""What a pass that cuts tensors has left whole, so that nothing is left in silence."""

from collections.abc import Callable, Iterable, Sequence

from torch.fx import GraphModule

from chainfx.ir.channels import ChannelGroup
from chainfx.ir.graph import Matrix, Skipped

__all__ = ["group_of", "left_whole", "name_makers"]


def left_whole(
    before: Sequence[Matrix],
    graph_module: GraphModule,
    skipped: Iterable[Skipped],
    reason_of: Callable[[Matrix], str],
) -> tuple[Skipped, ...]:
    """The matrices that have the shape they had ``before`` and are not in ``skipped``, each with its reason.

    ``before``: those of the network as it entered the pass. ``graph_module``: the network after the last cut.
    """
    shapes = {path: tuple(each.shape) for path, each in graph_module.named_parameters(remove_duplicate=False)}
    named = {each.node for each in skipped}
    whole = (matrix for matrix in before if shapes.get(matrix.path) == matrix.shape and not matrix.names & named)
    return tuple(dict.fromkeys(Skipped(matrix.name, reason_of(matrix)) for matrix in whole))


def name_makers(group: ChannelGroup, reason: str) -> tuple[Skipped, ...]:
    """All layers that make the channels of a group which is left alone, with the reason."""
    return tuple(Skipped(source.node, reason) for source in group.sources)


def group_of(matrix: Matrix, groups: Iterable[ChannelGroup]) -> ChannelGroup | None:
    """The first of the groups that a matrix has a dimension in; ``None`` if there is none."""
    return next((group for group in groups if any(member.path in matrix.paths for member in group.members)), None)
