"""Which operator a node calls, under one name for all its spellings, and which operators do no multiply-accumulates.

``torch.conv2d``, ``F.conv2d``, ``nn.Conv2d`` and ``aten.conv2d.default`` all have the key ``conv``: lower case, without
underscores and without a trailing ``1d``, ``2d``, ``3d``.
"""

import functools
import re
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from chainfx.ir.graph import DEPTHWISE, ops

__all__ = ["CONSTRUCTORS", "ELEMENTWISE", "MAX_POOLS", "MOVEMENT", "TRANSPARENT", "key_of", "operator_key"]


@functools.lru_cache(1024)
def operator_key(name: str) -> str:
    """The key of an operator name, the same for all spellings.

    >>> operator_key("adaptive_avg_pool2d"), operator_key("AdaptiveAvgPool2d"), operator_key("add_")
    ('adaptiveavgpool', 'adaptiveavgpool', 'add')
    """
    return re.sub(r"[123]d(?=$|withindices$)", "", name.lower().replace("_", ""))


def _keys(names: str) -> frozenset[str]:
    return frozenset(operator_key(name) for name in names.split())


MOVEMENT = _keys("""
    alias alpha_dropout as_strided bfloat16 bool broadcast_tensors broadcast_to cat channel_shuffle chunk circular_pad
    circular_pad_nd clone column_stack concat concatenate constant_pad constant_pad_nd contiguous copy copy_ cpu cuda
    detach diagonal double dropout dsplit dstack embedding exit_point expand expand_as feature_alpha_dropout
    feature_dropout flatten flip fliplr flipud float gather getattr getitem half hsplit hstack identity im2col index
    index_put index_select int lift_fresh lift_fresh_copy long masked_select meshgrid moveaxis movedim narrow
    native_channel_shuffle native_dropout numpy_T pad permute pixel_shuffle pixel_unshuffle positive ravel
    reflection_pad reflection_pad_nd repeat repeat_interleave replication_pad replication_pad_nd requires_grad_
    reshape reshape_as roll rot90 scatter select select_scatter setitem size slice slice_scatter split
    split_with_sizes squeeze stack stochastic_depth swapaxes swapdims t take take_along_dim tensor_split tile to
    transpose tril triu type type_as unbind unflatten unfold unsafe_chunk unsafe_split unsafe_view unsqueeze view
    view_as vsplit vstack zero_pad
""")
"""No arithmetic: values are moved, repeated or dropped. The format of the elements stays what it was."""

MAX_POOLS = _keys("""
    adaptive_max_pool2d adaptive_max_pool2d_with_indices fractional_max_pool2d max_pool2d max_pool2d_with_indices
""")

TRANSPARENT = MOVEMENT | MAX_POOLS | _keys("relu")
"""The result holds elements of the same format as the input."""

ELEMENTWISE = MAX_POOLS | _keys("""
    abs absolute acos acosh adaptive_avg_pool2d add addcdiv addcmul addr affine_grid all amax amin aminmax and angle
    any argmax argmin argsort asin asinh atan atan2 atanh avg_pool2d batch_norm batch_norm_no_update
    batch_norm_with_update bernoulli binary_cross_entropy bincount bitwise_and bitwise_not bitwise_or bitwise_xor
    bucketize ceil celu clamp clamp_max clamp_min clip cos cosh cosine_similarity cross cross_entropy cross_map_lrn2d
    cummax cummin cumprod cumsum deg2rad dequantize_weight diff digamma div divide elu embedding_bag eq erf erfc
    erfinv exp exp2 expm1 fill fill_ floor floor_divide floordiv fmax fmin fmod fold frac ge gelu ger glu grid_sample
    grid_sampler grid_sampler_2d grid_sampler_3d group_norm gt gumbel_softmax hardshrink hardsigmoid hardswish
    hardtanh heaviside hypot iadd iand ifloordiv imul instance_norm interpolate invert ior ipow isclose isfinite isinf
    isnan isub itruediv kl_div kron kthvalue l1_loss layer_norm ldexp le leaky_relu lerp lgamma linalg_norm
    linalg_vector_norm local_response_norm log log10 log1p log2 log_sigmoid log_softmax logaddexp logical_and
    logical_not logical_or logical_xor logit logsumexp lp_pool2d lt masked_fill masked_scatter max max_unpool2d
    maximum mean median min minimum mish mod mse_loss mul multiply nan_to_num nanmean nansum native_batch_norm
    native_batch_norm_legit native_batch_norm_legit_no_training native_group_norm native_layer_norm ne neg negative
    nll_loss nonzero norm normalize one_hot or outer pairwise_distance polar pow prelu prod quantile
    quantize_activation quantize_weight rad2deg reciprocal relu relu6 remainder renorm rms_norm round rrelu rsqrt rsub
    scatter_add scatter_reduce searchsorted selu sigmoid sign signbit silu sin sinc sinh smooth_l1_loss softmax
    softmax2d softmin softplus softshrink softsign sort sqrt square std std_mean sub subtract sum sync_batch_norm tan
    tanh tanhshrink threshold topk true_divide truediv trunc upsample upsample_bicubic2d upsample_bilinear
    upsample_bilinear2d upsample_linear1d upsample_nearest upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_trilinear3d upsamplingbilinear2d upsamplingnearest2d var var_mean where xlogy xor
""")
"""Work in proportion to the number of elements: arithmetic, reductions, normalization, pooling, softmax."""

CONSTRUCTORS = _keys("""
    arange as_tensor empty empty_like eye full full_like linspace new_empty new_full new_ones new_tensor new_zeros
    ones ones_like rand rand_like randint randn randn_like scalar_tensor tensor zeros zeros_like
""")
"""The values do not depend on those of the inputs, so the work is not done for every sample."""

_PLAIN_MODULES = ("torch", "_operator", "builtins", "math")
_PACKAGE_FUNCTIONS = frozenset({("torchvision.ops.stochastic_depth", "stochastic_depth")})


def key_of(graph_module: GraphModule, node: Node) -> tuple[str | None, str]:
    """The operator key of a node (``None`` if it is nothing that torch or chainfx defines) and the name to print."""
    if node.op == "call_module":
        return _module_key(type(graph_module.get_submodule(str(node.target))))  # type: ignore[arg-type]  # hashable
    if node.op == "call_method":
        return operator_key(str(node.target)), str(node.target)
    return _function_key(node.target)


@functools.lru_cache(1024)
def _module_key(module: type[nn.Module]) -> tuple[str | None, str]:
    """The torch.nn module whose ``forward`` runs; ``None`` for somebody's own ``forward``."""
    own = next((base for base in module.__mro__ if "forward" in vars(base)), nn.Module)
    return (operator_key(own.__name__) if _of_torch(own) else None), module.__name__


def _of_torch(base: type) -> bool:
    return base.__module__.startswith("torch.nn.modules.") and base is not nn.Module


@functools.lru_cache(1024)
def _function_key(target: Any) -> tuple[str | None, str]:
    if isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        overload = target if isinstance(target, torch._ops.OpOverload) else target.default
        _, _, name = overload._schema.name.partition("::")
        return (operator_key(name) if overload.namespace == "aten" else None), name
    name = getattr(target, "__name__", type(target).__name__)
    if target in DEPTHWISE.values():
        return "conv", name.removeprefix("depthwise_")
    home = getattr(target, "__module__", None)
    known = home is None or home in _PLAIN_MODULES or home.startswith("torch.")
    if known or home == ops.__name__ or (home, name) in _PACKAGE_FUNCTIONS:
        return operator_key(name), name
    return None, name
