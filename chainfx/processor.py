"""What the processor has instructions for, as torch says it."""

from typing import Any

import torch

__all__ = ["computes_in_bfloat16", "fit_into_16_bits", "has_vnni"]

_MOST_IN_16_BITS = 2**15 - 1


def has_vnni() -> bool:
    """Whether torch's kernels have the instructions of AVX-512 VNNI; a torch that cannot say so counts as without."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    if hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu.get_capabilities().get("avx512_vnni", False))
    supported: Any = getattr(torch.cpu, "_is_vnni_supported", lambda: False)
    return bool(supported())


def computes_in_bfloat16() -> bool:
    """Whether products in bfloat16 are an instruction; processors that are not x86 and older torch count as having it.

    Without one torch computes such layers in float32 piece by piece, which takes tens of times as long.
    """
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(known.get(name, True) for name in ("avx512_bf16", "amx_bf16"))


def fit_into_16_bits(greatest_input: int, greatest_weight: int) -> bool:
    """Whether a signed 16-bit number holds the sum of two products of codes of at most these sizes.

    Integer kernels without VNNI add them so (the instruction ``vpmaddubsw``), and cut larger sums off.

    >>> fit_into_16_bits(255, 63), fit_into_16_bits(255, 127)
    (True, False)
    """
    return 2 * greatest_input * greatest_weight <= _MOST_IN_16_BITS
