"""What the house knows of operators: one name for all spellings of each, and its traits.

``torch.conv2d``, ``F.conv2d``, ``nn.Conv2d`` and ``aten.conv2d.default`` are one operator, ``conv``; ``torch.add``,
``x.add_``, ``+`` and ``+=`` are ``add``. :func:`operator_of` says which operator a node calls, and :func:`names_with`
which operators have a trait. The counter, the channel analysis, shape evaluation and the passes take what they know of
an operator from here: a new one is entered once, in the table below. What a room does with an operator, such as the
formula of its multiply-accumulates or the way it moves channel labels, stays in that room, by the operator's name.
"""

import enum
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.fx import Node

from chainfx.ir.graph import leaves, ops
from chainfx.ir.graph.depthwise import DEPTHWISE

__all__ = ["Operator", "Trait", "call_operator", "name_of", "names_with", "operator_of"]


class Trait(enum.Flag):
    """A fact about an operator, as it acts in eval mode.

    Every operator has exactly one of the first four, which say what work it does, and at most one of the next seven,
    which say from where an element of its result comes.
    """

    MOVEMENT = enum.auto()  #: values are moved, repeated or dropped, without arithmetic
    ARITHMETIC = enum.auto()  #: work in proportion to the number of elements
    CONSTRUCTOR = enum.auto()  #: the values do not depend on those of the inputs
    PRODUCT = enum.auto()  #: multiply-accumulates, for which :mod:`chainfx.bitops` has a formula

    POINTWISE = enum.auto()  #: from the element at the same place of the first input, and from no other
    BROADCAST = enum.auto()  #: from the elements at the same place of all inputs, which are broadcast to one shape
    REARRANGEMENT = enum.auto()  #: from one element of the first input; the arguments name axes and repetitions
    REDUCTION = enum.auto()  #: from all elements along the axes ``dim``, or along all axes without it
    ALONG_AXIS = enum.auto()  #: from all elements along the axis ``dim``; the shape stays
    POOLING = enum.auto()  #: from a window over the last one to three axes, as many as the spelling says
    RESIZING = enum.auto()  #: from all elements that lie along all axes but the first two

    KEEPS_SHAPE = enum.auto()  #: the result for floating point numbers has the shape and dtype of the first input
    KEEPS_LAYOUT = enum.auto()  #: and its order in memory; else the result is contiguous
    KEEPS_FORMAT = enum.auto()  #: the result holds no values but those of its inputs, and constants
    KEEPS_CONSTANTS = enum.auto()  #: a channel that is one value everywhere is still that value afterwards
    FOLDABLE = enum.auto()  #: a channel that is one value everywhere becomes what the operator makes of that value
    ACTIVATION = enum.auto()  #: a nonlinearity of networks
    IDEMPOTENT = enum.auto()  #: a second time changes nothing
    LAYER = enum.auto()  #: a product with a weight that belongs to it, as in convolution and linear layers
    PAIRING = enum.auto()  #: a product of two tensors, both of which may be activations
    SIZES = enum.auto()  #: it reads sizes of a tensor, and none of its values
    VIEW = enum.auto()  #: the result may lie in the memory of the first input
    CUT = enum.auto()  #: the result is a tuple of parts of the first input


_WORK = (Trait.MOVEMENT, Trait.ARITHMETIC, Trait.CONSTRUCTOR, Trait.PRODUCT)
_SOURCES = (
    *(Trait.POINTWISE, Trait.BROADCAST, Trait.REARRANGEMENT, Trait.REDUCTION),
    *(Trait.ALONG_AXIS, Trait.POOLING, Trait.RESIZING),
)


class Operator(NamedTuple):
    """What a node calls: the ``name`` of the operator, and its ``spelling`` there, which is what messages print.

    The name is empty if neither torch nor Python nor chainfx defines it: such a function may do anything. ``rank`` is
    the number of spatial axes where the spelling tells it, as in ``conv2d``, else 0.
    """

    name: str
    spelling: str
    rank: int = 0


_MOVES = Trait.MOVEMENT | Trait.KEEPS_FORMAT
_PASSES_ON = _MOVES | Trait.POINTWISE | Trait.KEEPS_CONSTANTS
_ALIKE = Trait.KEEPS_SHAPE | Trait.KEEPS_LAYOUT
_ACTIVATES = Trait.ARITHMETIC | Trait.ACTIVATION | Trait.POINTWISE | _ALIKE
_MAPS = Trait.ARITHMETIC | Trait.POINTWISE

# each operator once, with other names of the same operator after it: ``name=other=other``
_TABLE: tuple[tuple[Trait, str], ...] = (
    # movement: each element stays where it is
    (_PASSES_ON | _ALIKE | Trait.VIEW, "identity dropout alpha_dropout feature_alpha_dropout stochastic_depth"),
    (_PASSES_ON | Trait.VIEW, "alias contiguous data detach feature_dropout lift_fresh positive=pos requires_grad"),
    (_PASSES_ON, "clone lift_fresh_copy"),
    (
        _MOVES | Trait.POINTWISE | Trait.VIEW,
        "bfloat16 bool cpu cuda double float half int long to=to_copy type type_as",
    ),
    (_MOVES | Trait.BROADCAST | Trait.VIEW, "expand_as"),
    (_MOVES | _ALIKE | Trait.VIEW, "coded_weight exit_point"),
    # movement: elements go elsewhere, by arguments that count no channels
    (
        _MOVES | Trait.REARRANGEMENT | Trait.VIEW,
        "flatten mT movedim=moveaxis permute ravel squeeze t=numpy_T transpose=swapaxes=swapdims unsqueeze",
    ),
    (_MOVES | Trait.REARRANGEMENT, "flip fliplr flipud pixel_unshuffle repeat repeat_interleave tile"),
    # movement: all other
    (
        _MOVES | Trait.VIEW | Trait.CUT,
        "chunk dsplit hsplit split split_with_sizes tensor_split unbind unsafe_chunk unsafe_split vsplit",
    ),
    (
        _MOVES | Trait.VIEW,
        """as_strided broadcast_to diagonal expand getattr getitem narrow reshape=view=unsafe_view select slice
        unflatten unfold view_as=reshape_as""",
    ),
    (
        _MOVES,
        """assign broadcast_tensors cat=concat=concatenate channel_shuffle circular_pad column_stack constant_pad
        constant_pad_nd copy dstack gather hstack im2col index index_put index_select look_up masked_select
        meshgrid native_channel_shuffle native_dropout pad pixel_shuffle reflection_pad replication_pad resize rot90
        scatter select_scatter setitem slice_scatter stack take take_along_dim tril triu vstack zero_pad""",
    ),
    (_MOVES | Trait.KEEPS_SHAPE, "roll"),
    (Trait.MOVEMENT, "embedding"),  # a row of codes is decoded with its own scale: what comes out is float
    (_MOVES | Trait.SIZES, "len numel=nelement shape size"),
    # arithmetic: a function of each element
    (_ACTIVATES | Trait.FOLDABLE | Trait.KEEPS_FORMAT | Trait.IDEMPOTENT, "relu"),
    (_ACTIVATES | Trait.FOLDABLE | Trait.IDEMPOTENT, "relu6"),
    (
        _ACTIVATES | Trait.FOLDABLE,
        """celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish selu sigmoid silu
        softplus softshrink softsign tanh tanhshrink threshold""",
    ),
    (_ACTIVATES, "rrelu"),
    (
        _MAPS | Trait.FOLDABLE,
        """abs=absolute acos=arccos acosh=arccosh asin=arcsin asinh=arcsinh atan=arctan atanh=arctanh ceil cos cosh
        deg2rad digamma erf erfc erfinv exp exp2 expm1 floor frac lgamma log log10 log1p log2 logit neg=negative rad2deg
        reciprocal round rsqrt sign sin sinc sinh sqrt square tan trunc=fix""",
    ),
    (_MAPS, "bernoulli bitwise_not=invert fill isfinite isinf isnan logical_not nan_to_num signbit zero"),
    # arithmetic: a function of equal places of several tensors
    (Trait.ARITHMETIC | Trait.BROADCAST | Trait.FOLDABLE | _ALIKE, "quantize_activation"),
    (
        Trait.ARITHMETIC | Trait.BROADCAST,
        """add=iadd=radd addcdiv addcmul atan2=arctan2 bitwise_and=and=iand bitwise_or=or=ior bitwise_xor=xor=ixor
        clamp=clip clamp_max clamp_min div=divide=true_divide=truediv=itruediv=idiv eq floor_divide=floordiv=ifloordiv
        fmax fmin fmod ge=greater_equal gt=greater heaviside hypot isclose ldexp le=less_equal lerp logaddexp
        logical_and logical_or logical_xor lt=less masked_fill maximum minimum mul=multiply=imul=rmul ne=not_equal
        pow=ipow remainder=mod=imod rsub sub=subtract=isub where xlogy""",
    ),
    # arithmetic: a function of many elements
    (
        Trait.ARITHMETIC | Trait.REDUCTION,
        """all amax amin any argmax argmin count_nonzero logsumexp max mean median min nanmean nansum norm prod std
        std_mean sum var var_mean""",
    ),
    (Trait.ARITHMETIC | Trait.ALONG_AXIS, "cumprod cumsum gumbel_softmax log_softmax softmax softmin"),
    (Trait.ARITHMETIC | Trait.POOLING, "avg_pool lp_pool"),
    (Trait.ARITHMETIC | Trait.POOLING | Trait.KEEPS_CONSTANTS, "adaptive_avg_pool"),
    (
        Trait.ARITHMETIC | Trait.POOLING | Trait.KEEPS_CONSTANTS | Trait.KEEPS_FORMAT,
        "adaptive_max_pool fractional_max_pool max_pool",
    ),
    (Trait.ARITHMETIC | Trait.KEEPS_FORMAT, "adaptive_max_pool_with_indices max_pool_with_indices"),
    (
        Trait.ARITHMETIC | Trait.RESIZING,
        """interpolate upsample upsample_bicubic upsample_bilinear=upsampling_bilinear upsample_linear
        upsample_nearest=upsampling_nearest upsample_nearest_exact upsample_trilinear""",
    ),
    (Trait.ARITHMETIC | _ALIKE, "batch_norm mask_weight quantize_weight sync_batch_norm"),
    (Trait.ARITHMETIC | Trait.KEEPS_SHAPE, "group_norm instance_norm layer_norm"),
    (Trait.ARITHMETIC | Trait.ACTIVATION, "glu prelu"),
    (
        Trait.ARITHMETIC,
        """addr affine_grid aminmax angle argsort batch_norm_no_update batch_norm_with_update binary_cross_entropy
        bincount bucketize cosine_similarity cross cross_entropy cross_map_lrn cummax cummin dequantize_weight diff
        embedding_bag fold ger grid_sample grid_sampler kl_div kron kthvalue l1_loss linalg_norm linalg_vector_norm
        local_response_norm masked_scatter max_unpool mse_loss nanmedian native_batch_norm native_batch_norm_legit
        native_batch_norm_legit_no_training native_group_norm native_layer_norm nll_loss nonzero normalize one_hot outer
        pairwise_distance polar quantile renorm rms_norm scatter_add scatter_reduce searchsorted smooth_l1_loss sort
        topk""",
    ),
    # constructors
    (
        Trait.CONSTRUCTOR | Trait.POINTWISE,
        "empty_like full_like ones_like rand_like randint_like randn_like zeros_like",
    ),
    (
        Trait.CONSTRUCTOR,
        """arange as_tensor empty eye full linspace new_empty new_full new_ones new_tensor new_zeros ones rand randint
        randn scalar_tensor tensor zeros""",
    ),
    # products
    (Trait.PRODUCT | Trait.LAYER, "conv conv_transpose linear"),
    (
        Trait.PRODUCT | Trait.PAIRING,
        """addbmm addmm addmv baddbmm bmm dot einsum inner linalg_vecdot matmul=imatmul=linalg_matmul mm mv
        scaled_dot_product_attention tensordot vdot""",
    ),
    (
        Trait.PRODUCT,
        """bilinear convolution gru gru_cell lstm lstm_cell rnn rnn_cell rnn_relu rnn_relu_cell rnn_tanh
        rnn_tanh_cell""",
    ),
)


_RANK = re.compile(r"([123])d(?=$|withindices$)")


def _bare(spelling: str) -> str:
    """A spelling in lower case, without underscores and without the rank ``1d``, ``2d`` or ``3d``."""
    return _RANK.sub("", spelling.lower().replace("_", ""))


def _entered(table: Iterable[tuple[Trait, str]]) -> tuple[dict[str, Trait], dict[str, str]]:
    """The traits of the operators of a table by name, and their names by bare spelling.

    Raises :class:`ValueError` for an operator that is entered twice, or has traits that exclude one another.
    """
    traits: dict[str, Trait] = {}
    names: dict[str, str] = {}
    for given, words in table:
        for word in words.split():
            name, *others = word.split("=")
            _check(name, given)
            for spelling in (name, *others):
                known = names.setdefault(_bare(spelling), name)
                if known != name or name in traits:
                    raise ValueError(
                        f"the spelling {spelling!r} is entered for {known!r} already; enter each operator once."
                    )
            traits[name] = given
    return traits, names


def _check(name: str, given: Trait) -> None:
    for group, rule in ((_WORK, "exactly"), (_SOURCES, "at most")):
        held = [str(trait.name) for trait in group if trait in given]
        if len(held) > 1 or (not held and group is _WORK):
            known = ", ".join(str(trait.name) for trait in group)
            raise ValueError(
                f"the operator {name!r} is entered as {' and '.join(held) or 'none'} of {known}; give it {rule} one."
            )


_TRAITS, _NAMES = _entered(_TABLE)

_PLAIN_MODULES = ("torch", "_operator", "builtins", "math", ops.__name__, leaves.__name__)
_PACKAGE_FUNCTIONS = frozenset({("torchvision.ops.stochastic_depth", "stochastic_depth")})
# attributes of a tensor that are operators; those of anything else can have any meaning
_ATTRIBUTES = frozenset({"T", "data", "mT", "shape"})


@functools.lru_cache(1024)
def name_of(spelling: str) -> str:
    """The one name of an operator, for any way to spell it; one that the house does not know has its bare spelling.

    >>> name_of("adaptive_avg_pool2d"), name_of("AdaptiveAvgPool2d"), name_of("add_"), name_of("iadd")
    ('adaptive_avg_pool', 'adaptive_avg_pool', 'add', 'add')
    """
    bare = _bare(spelling)
    return _NAMES.get(bare, bare)


@functools.cache
def names_with(trait: Trait) -> frozenset[str]:
    """The names of all operators that have a trait (all of them, if several are given as one flag).

    >>> "relu" in names_with(Trait.POINTWISE), "softmax" in names_with(Trait.POINTWISE)
    (True, False)
    """
    return frozenset(name for name, traits in _TRAITS.items() if trait in traits)


def operator_of(node: Node, module_at: Callable[[str], nn.Module] | None = None) -> Operator:
    """Which operator a node calls.

    ``module_at`` gives the module at a path of the graph; without it the call of a module has no name, nor has a node
    that calls nothing.

    >>> from torch.fx import symbolic_trace
    >>> graph_module = symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 1)))
    >>> [operator_of(node, graph_module.get_submodule) for node in graph_module.graph.find_nodes(op="call_module")]
    [Operator(name='conv', spelling='Conv2d', rank=2)]
    """
    if node.op == "call_function":
        return _attribute_operator(str(node.args[1])) if node.target is getattr else _function_operator(node.target)
    if node.op == "call_method":
        return _spelled(str(node.target))
    if node.op == "call_module" and module_at is not None:
        return _module_operator(type(module_at(str(node.target))))  # type: ignore[arg-type]  # hashable
    return Operator("", str(node.target))


def call_operator(node: Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What the function or method that a node calls gives for these arguments, in place of the node's own."""
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    function: Callable[..., Any] = node.target  # type: ignore[assignment]  # of a call_function node
    return function(*args, **kwargs)


@functools.lru_cache(4096)
def _spelled(spelling: str) -> Operator:
    rank = _RANK.search(spelling.lower().replace("_", ""))
    return Operator(name_of(spelling), spelling, int(rank[1]) if rank else 0)


@functools.lru_cache(4096)
def _attribute_operator(attribute: str) -> Operator:
    return _spelled(attribute if attribute in _ATTRIBUTES else "getattr")._replace(spelling=attribute)


@functools.lru_cache(4096)
def _module_operator(module: type[nn.Module]) -> Operator:
    """That of the torch.nn class whose ``forward`` runs, or of the class above it that the table has; no name else."""
    for base in module.__mro__:
        of_torch = base.__module__.startswith("torch.nn.modules.") and base is not nn.Module
        runs = "forward" in vars(base)
        if of_torch and (runs or name_of(base.__name__) in _TRAITS):
            return _spelled(base.__name__)._replace(spelling=module.__name__)
        if runs:
            break
    return Operator("", module.__name__)


@functools.lru_cache(4096)
def _function_operator(target: Any) -> Operator:
    """That of a function, a built-in one or an ATen overload; one of another package has no name."""
    if isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        packet = target.overloadpacket if isinstance(target, torch._ops.OpOverload) else target
        namespace, _, name = packet._qualified_op_name.partition("::")
        return _spelled(name) if namespace == "aten" else Operator("", name)
    name = getattr(target, "__name__", type(target).__name__)
    if target in DEPTHWISE.values():
        return _spelled(name.removeprefix("depthwise_"))
    home = getattr(target, "__module__", None)
    known = home is None or home in _PLAIN_MODULES or home.startswith("torch.") or (home, name) in _PACKAGE_FUNCTIONS
    return _spelled(name) if known else Operator("", name)
