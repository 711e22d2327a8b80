"""What follows a layer and goes into its kernel: BatchNorm, the end of a skip connection, activation, quantizer."""

from dataclasses import dataclass, field

from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm

from chainfx.deploy.integers.activations import activation_of, is_quantizer
from chainfx.deploy.integers.kernels import PLAIN, Activation
from chainfx.deploy.integers.moving import holds_codes
from chainfx.ir.graph import BATCH_NORMS, Layer, edit, shape_of, summands_of

__all__ = ["Chain", "chain_of"]

_SUMMED = (PLAIN, ("relu", ()))  # the activations that the kernel can apply to a sum


@dataclass
class Chain:
    """A layer and the nodes after it whose work its kernel does; ``nodes`` are all of them in order, the layer first.

    ``added``: the second input of the ``addition``. ``quantizer``: the last node if it is one, so that codes come out.
    """

    layer: Layer
    nodes: list[Node] = field(default_factory=list)
    norm: _BatchNorm | None = None
    added: Node | None = None
    activation: tuple[Activation, tuple[float, ...]] = PLAIN
    quantizer: Node | None = None

    @property
    def end(self) -> Node:
        """The last node, whose value the kernel gives."""
        return self.nodes[-1]


def chain_of(layer: Layer, claimed: set[Node]) -> Chain:
    """The longest chain of a layer; no node of ``claimed``, which other chains have, is in it.

    Each node is the only reader of the one before. An addition comes after the BatchNorm, and after it only what the
    kernel can apply to a sum.
    """
    chain = Chain(layer, [layer.node])
    graph_module = layer.graph_module
    while len(chain.end.users) == 1:
        (user,) = chain.end.users
        if user in claimed or not _join(graph_module, chain, user):
            break
        chain.nodes.append(user)
        if chain.quantizer is not None:
            break
    return chain


def _join(graph_module: GraphModule, chain: Chain, user: Node) -> bool:
    """Let the kernel do the work of a node too, if it can; whether it can."""
    untouched = chain.activation == PLAIN
    norm = edit.module_of(graph_module, user, _BatchNorm)
    if norm is not None:
        return untouched and chain.added is None and _join_norm(chain, norm)
    if is_quantizer(user):
        if user.args[2:] == (1, True) or not (chain.added is None or holds_codes(graph_module, chain.added)):
            return False
        chain.quantizer = user
        return True
    activation = activation_of(graph_module, user)
    if activation is not None:
        if not untouched or (chain.added is not None and activation not in _SUMMED):
            return False
        chain.activation = activation
        return True
    added = _other_summand(graph_module, user, chain.end)
    if added is None or not untouched or chain.added is not None or not _is_image(chain.layer):
        return False
    chain.added = added
    return True


def _join_norm(chain: Chain, norm: _BatchNorm) -> bool:
    fits = type(norm) in BATCH_NORMS and norm.track_running_stats and chain.norm is None
    if not fits or (not _is_image(chain.layer) and len(shape_of(chain.layer.node)) != 2):
        return False
    chain.norm = norm
    return True


def _is_image(layer: Layer) -> bool:
    return bool(layer.options)


def _other_summand(graph_module: GraphModule, node: Node, one: Node) -> Node | None:
    """What a node adds to the value of another; ``None`` if it does anything else."""
    summands = summands_of(graph_module, node)
    if summands is None or summands[0] is summands[1]:
        return None
    return summands[1] if summands[0] is one else summands[0]
