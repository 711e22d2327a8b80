"""``nn.MultiheadAttention`` as a sequence of plain tensor operations, so that a graph shows its matrix products.

Torch computes the attention in one call, in which a pass could not see the projections and the products. The functions
here do the same steps as ``torch.nn.functional.multi_head_attention_forward``, in the same order (Vaswani et al. 2017,
sec. 3.2), so that the results are equal bit for bit. Torch's fused fast path of eval mode rounds in another way; it has
no counterpart here.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["attend"]


def attend(
    attention: nn.MultiheadAttention,
    query: Any,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Any, Any]:
    """Compute what ``attention(query, key, value, ...)`` returns, by operations that a tracer records one by one.

    The arguments are those of the module's ``forward``; each may be a tensor or a proxy of a trace. With L queries, S
    keys and a batch of N, ``query`` has the shape (L, N, E), ``key`` (S, N, kdim) and ``value`` (S, N, vdim); with
    ``batch_first`` N comes first, and without a batch N is left out.

    Returns the output, in the layout of the query, and the attention weights: of shape (N, L, S) if they are averaged
    over the heads, (N, heads, L, S) if not, and ``None`` if ``need_weights`` is false. Raises ``RuntimeError`` as torch
    does if ``is_causal`` is given without ``attn_mask``.
    """
    if is_causal and attn_mask is None:
        raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
    batched = _is_batched(query)
    query, key, value = _sequence_first(attention, batched, query, key, value)
    if not batched and key_padding_mask is not None:
        key_padding_mask = key_padding_mask.unsqueeze(0)
    key_padding_mask = _additive(key_padding_mask, query)
    if is_causal and key_padding_mask is None and not need_weights:
        attn_mask = None
    else:
        attn_mask = _additive(attn_mask, query)
        is_causal = is_causal and key_padding_mask is None
    q, k, v = _project(attention, query, key, value)
    length, batch = query.shape[0], query.shape[1]
    q, k, v, mask = _split_heads(attention, q, k, v, length, batch, attn_mask, key_padding_mask)
    mix = _weigh if need_weights else _fused
    mixed, weights = mix(attention, q, k, v, mask, length, batch, is_causal)
    output = F.linear(mixed, attention.out_proj.weight, attention.out_proj.bias)
    output = output.view(length, batch, attention.embed_dim)
    if weights is not None and average_attn_weights:
        weights = weights.mean(dim=1)
    if not batched:
        return output.squeeze(1), None if weights is None else weights.squeeze(0)
    return (output.transpose(1, 0) if attention.batch_first else output), weights


def _is_batched(query: Any) -> bool:
    """Whether the query has a batch axis; a proxy that does not know its rank is taken to have one."""
    rank = query.dim()
    return not (isinstance(rank, int) and rank == 2)


def _sequence_first(
    attention: nn.MultiheadAttention, batched: bool, query: Any, key: Any, value: Any
) -> tuple[Any, Any, Any]:
    """All three as (length, batch, channels); inputs that are one object stay one if torch keeps them one."""
    if not batched:
        return query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
    if not attention.batch_first:
        return query, key, value
    turned = {id(tensor): tensor for tensor in (query, key, value)}
    turned = {index: tensor.transpose(1, 0) for index, tensor in turned.items()}
    return turned[id(query)], turned[id(key)], turned[id(value)]


def _additive(mask: Any, query: Any) -> Any:
    """A mask to be added to the scores: -inf where a boolean mask is true; float masks and ``None`` unchanged."""
    if mask is None or torch.is_floating_point(mask):
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask, float("-inf"))


def _project(attention: nn.MultiheadAttention, query: Any, key: Any, value: Any) -> tuple[Any, Any, Any]:
    """Queries, keys and values (length, batch, E), by one, two or three linear calls as torch does it."""
    size, weight, bias = attention.embed_dim, attention.in_proj_weight, attention.in_proj_bias
    if not attention._qkv_same_embed_dim:
        weights = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        return _project_each((query, key, value), weights, bias)
    if key is not value:
        return _project_each((query, key, value), weight.chunk(3), bias)
    if query is key:
        q, k, v = _unpack(F.linear(query, weight, bias), 3, size)
        return q, k, v
    parts = weight.split([size, 2 * size])
    biases = (None, None) if bias is None else bias.split([size, 2 * size])
    k, v = _unpack(F.linear(key, parts[1], biases[1]), 2, size)
    return F.linear(query, parts[0], biases[0]), k, v


def _project_each(inputs: tuple[Any, Any, Any], weights: Any, bias: Any) -> tuple[Any, Any, Any]:
    biases = (None, None, None) if bias is None else bias.chunk(3)
    q, k, v = (F.linear(inputs[index], weights[index], biases[index]) for index in range(3))
    return q, k, v


def _unpack(packed: Any, count: int, size: int) -> list[Any]:
    """(length, batch, count * size) as ``count`` contiguous tensors (length, batch, size)."""
    parts = packed.unflatten(-1, (count, size)).unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
    return [parts[index] for index in range(count)]


def _split_heads(
    attention: nn.MultiheadAttention, q: Any, k: Any, v: Any, length: Any, batch: Any, mask: Any, padding: Any
) -> tuple[Any, Any, Any, Any]:
    """q, k, v as (batch * heads, length, head size) with the extra keys an attention may add, and the one mask."""
    heads, size = attention.num_heads, attention.head_dim
    if mask is not None and mask.dim() == 2:
        mask = mask.unsqueeze(0)
    extra = 0
    if attention.bias_k is not None and attention.bias_v is not None:
        k = torch.cat([k, attention.bias_k.repeat(1, batch, 1)])
        v = torch.cat([v, attention.bias_v.repeat(1, batch, 1)])
        extra += 1
    q = q.view(length, batch * heads, size).transpose(0, 1)
    k = k.view(k.shape[0], batch * heads, size).transpose(0, 1)
    v = v.view(v.shape[0], batch * heads, size).transpose(0, 1)
    if attention.add_zero_attn:
        zeros = torch.zeros((batch * heads, 1, size), dtype=k.dtype, device=k.device)
        k, v = torch.cat([k, zeros], dim=1), torch.cat([v, zeros], dim=1)
        extra += 1
    mask, padding = (m if m is None or not extra else F.pad(m, (0, extra)) for m in (mask, padding))
    if padding is not None:
        source = k.size(1)
        padding = padding.view(batch, 1, 1, source).expand(-1, heads, -1, -1).reshape(batch * heads, 1, source)
        mask = padding if mask is None else mask + padding
    return q, k, v, mask


def _weigh(
    attention: nn.MultiheadAttention, q: Any, k: Any, v: Any, mask: Any, length: Any, batch: Any, is_causal: bool
) -> tuple[Any, Any]:
    """The plain form: softmax(q k^T / sqrt(head size) + mask) v as (length * batch, E), and the weights per head."""
    scaled = q * math.sqrt(1.0 / float(attention.head_dim))
    turned = k.transpose(-2, -1)
    scores = torch.bmm(scaled, turned) if mask is None else torch.baddbmm(mask, scaled, turned)
    weights = F.softmax(scores, dim=-1)
    if attention.dropout > 0:
        weights = F.dropout(weights, attention.dropout, attention.training)
    mixed = torch.bmm(weights, v).transpose(0, 1).reshape(length * batch, attention.embed_dim)
    return mixed, weights.view(batch, attention.num_heads, length, k.size(1))


def _fused(
    attention: nn.MultiheadAttention, q: Any, k: Any, v: Any, mask: Any, length: Any, batch: Any, is_causal: bool
) -> tuple[Any, None]:
    """The form without weights: one ``scaled_dot_product_attention``, as (length * batch, E)."""
    heads, size, source = attention.num_heads, attention.head_dim, k.size(1)
    if mask is not None:
        broadcast = bool(mask.size(0) == 1)
        mask = mask.unsqueeze(0) if broadcast else mask.view(batch, heads, -1, source)
    q, k, v = (tensor.view(batch, heads, rows, size) for tensor, rows in ((q, length), (k, source), (v, source)))
    dropout = attention.dropout if attention.training else 0.0
    mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
    return mixed.permute(2, 0, 1, 3).reshape(batch * length, attention.embed_dim), None
