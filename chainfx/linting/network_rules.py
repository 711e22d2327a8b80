"""The rules of lint that follow from the machine and from the graph of the network."""

from collections.abc import Callable, Iterator, Mapping

from chainfx.ir.graph import ops
from chainfx.linting.chain import Chain, Step
from chainfx.passes import scheme_of
from chainfx.processor import fit_into_16_bits
from chainfx.scheduler import Finding

__all__ = ["NETWORK_RULES", "channel_counts_left"]

_FLOAT = 32
_KERNEL_BITS = 8
_FITTING_BITS = 7  # of weights on a symmetric grid, whose products with 8 bits are added in 16
_LISTED = 3  # layers that a finding names
_KERNELS = "kernels of torch on this machine"


def integer_kernels(chain: Chain) -> Iterator[Finding]:
    """Widths that the machine has no kernels for: they save storage, not time."""
    for step in chain.of("quantization"):
        widths = sorted({bits for bits in (step.bits("weights"), step.bits("activations")) if bits != _FLOAT})
        if step.bits("activations") == _FLOAT and widths:
            yield step.finding(
                "kernels",
                "info",
                f"{step.name} leaves activations in float, so that the products are computed in float",
                _KERNELS,
                "expect a smaller file, and no gain in time where arithmetic is the bottleneck",
            )
        elif widths and not chain.machine.integers:
            yield step.finding(
                "kernels",
                "warning",
                f"this machine has no integer kernels, so that what {step.name} makes runs in float",
                _KERNELS,
                "expect a smaller file and no gain in time here",
            )
        elif widths and widths[0] < _KERNEL_BITS:
            yield step.finding(
                "kernels",
                "info",
                f"there are no kernels for {widths[0]} bits: such layers run with 8-bit integers or in float",
                _KERNELS,
                "expect a smaller file than with 8 bits, and no more speed",
            )


def saturating_kernels(chain: Chain) -> Iterator[Finding]:
    """Layers that the integer engine leaves in float because sums of two products do not fit into 16 bits."""
    for step in chain.of("quantization") if chain.machine.integers and chain.machine.saturates else ():
        ends = [name for name in ("first", "last") if _overflows(step, name, name)]
        rest = _overflows(step, "weights", "activations")
        if not (ends or rest):
            continue
        fixes = [f"{name}={_FITTING_BITS}" for name in ["weights"] * rest + ends]
        if rest and _scheme(step, _FITTING_BITS) == "dorefa":
            fixes.append("scheme='uniform'")
        where = "its layers" if rest else f"its {' and '.join(ends)} layers"
        yield step.finding(
            "kernels",
            "warning" if rest else "info",
            f"{step.name} leaves {where} in float here: without VNNI, products of integers are added in 16 bits",
            _KERNELS,
            f"use {', '.join(fixes)}",
        )


def _scheme(step: Step, bits: int) -> str:
    """How weights are rounded to so many bits; passes without such an option take the grid of integers."""
    asked = step.option("scheme")
    return scheme_of(asked if isinstance(asked, str) else None, bits, tuned=step.tuned)


def _overflows(step: Step, weights: str, activations: str) -> bool:
    """Whether sums of two products do not fit into 16 bits for the numbers of bits that two options give."""
    bits, activation_bits = step.bits(weights), step.bits(activations)
    scheme = _scheme(step, bits)
    if max(bits, activation_bits) > _KERNEL_BITS or scheme == "exponential":
        return False
    return not fit_into_16_bits(2**activation_bits - 1, ops.weight_range(bits, scheme))


def slow_bfloat16(chain: Chain) -> Iterator[Finding]:
    """Layers in bfloat16 on a processor that has no instructions for it."""
    for step in () if chain.machine.bfloat16 else chain.of("precision"):
        yield step.finding(
            "kernels",
            "warning",
            f"this machine has no instructions for bfloat16, and layers of {step.name} take many times as long here",
            _KERNELS,
            "expect a smaller file, and run it on a GPU or a processor with AVX-512 BF16 or AMX",
        )


def sparse_kernels(chain: Chain) -> Iterator[Finding]:
    """Zeros that the machine multiplies like other numbers."""
    for step in chain.of("pruning"):
        pattern = step.option("pattern")
        if not isinstance(pattern, str):
            continue
        if pattern == "unstructured":
            reason = f"the zeros of {step.name} lie anywhere, and dense kernels multiply them like other numbers"
            fix = "expect a smaller file, time only in linear layers of a million weights that are nine tenths zeros"
            yield step.finding("kernels", "info", reason, _KERNELS, fix)
        elif pattern != "2:4" or not chain.machine.sparse:
            reason = f"this machine has no kernels for the pattern {pattern}, so that its zeros gain no time"
            fix = "run it on a GPU with sparse tensor cores and use 2:4, or use prune-channels"
            yield step.finding("kernels", "warning", reason, _KERNELS, fix)


def channel_counts(chain: Chain) -> Iterator[Finding]:
    """Numbers of channels that do not fill the blocks that kernels work in, where no dry run looks at the graph."""
    for step in () if chain.dry else chain.of("pruning"):
        multiple = step.option("round_to")
        if isinstance(multiple, int) and multiple % _KERNEL_BITS:
            reason = f"{step.name} leaves any number of channels, and kernels work in blocks of 8 or 16"
            fix = "round_to=8 costs few channels and keeps the blocks full"
            yield step.finding("channels", "info", reason, _KERNELS, fix)


def channel_counts_of_network(chain: Chain) -> Iterator[Finding]:
    """Numbers of channels that do not fill the blocks, in the network as it is."""
    if chain.network is not None and chain.network.unfilled and chain.of("pruning", "quantization"):
        reason = f"the network has numbers of channels that are {_no_multiples(chain.network.unfilled)}"
        fix = "prune-channels with round_to=8 makes them such, where the layers lie in its groups"
        yield Finding("channels", "info", (), reason, "the graph of the network", fix)


def channel_counts_left(step: Step, widths: Mapping[str, int]) -> Finding:
    """The finding about layers whose numbers of channels a stage leaves so that they do not fill the blocks."""
    reason = f"{step.name} leaves numbers of channels that are {_no_multiples(widths)}"
    fix = "round_to=8 costs few channels and keeps the blocks full"
    return step.finding("channels", "info", reason, "a dry run without training", fix)


def _no_multiples(widths: Mapping[str, int]) -> str:
    named = [f"{path} ({width})" for path, width in widths.items()][:_LISTED]
    more = f" and {len(widths) - _LISTED} more" if len(widths) > _LISTED else ""
    return f"no multiples of {_KERNEL_BITS}, the blocks of kernels: {', '.join(named)}{more}"


def depthwise_integers(chain: Chain) -> Iterator[Finding]:
    """Depthwise convolutions, which lose most in quantization and gain least."""
    if chain.network is None or chain.network.depthwise == 0:
        return
    share = f"{chain.network.depthwise:.0%} of the multiply-accumulates are in depthwise convolutions"
    for step in chain.of("quantization"):
        if step.option("granularity") == "tensor":
            reason = f"{share}, whose channels differ too much in range for one scale a tensor"
            source, fix = "arXiv 1806.08342 (Krishnamoorthi 2018)", "use granularity='channel'"
            yield step.finding("depthwise", "warning", reason, source, fix)
        else:
            reason = f"{share}, which move much data for little arithmetic and gain little from 8-bit integers"
            source, fix = "a k x k depthwise output takes k * k products", "measure the time before you count on it"
            yield step.finding("depthwise", "info", reason, source, fix)


def heads_not_filters(chain: Chain) -> Iterator[Finding]:
    """Pruning that does not fit the kind of network: channels of a transformer, heads where there are none."""
    kind = chain.network.kind if chain.network else None
    for step in chain.of("pruning"):
        if step.name == "prune-channels" and kind in ("transformer", "language model"):
            reason = f"the network is a {kind}: the channels of its attention are cut inside of every head"
            source, fix = "arXiv 1905.10650 (Michel et al. 2019)", "use prune-heads, which removes whole heads"
            yield step.finding("architecture", "info", reason, source, fix)
        if step.name == "prune-heads" and kind in ("convolutional", "other"):
            reason = "the network has no attention, so there are no heads to prune"
            yield step.finding("architecture", "error", reason, "the graph of the network", "use prune-channels")


def weights_alone(chain: Chain) -> Iterator[Finding]:
    """Quantized activations of a language model."""
    if chain.network is None or chain.network.kind != "language model":
        return
    for step in chain.of("quantization"):
        if step.bits("activations") < _FLOAT:
            yield _outliers(step)


def _outliers(step: Step) -> Finding:
    return step.finding(
        "architecture",
        "warning",
        "the activations of language models have a few very large channels, which one clip for all cuts off",
        "arXiv 2208.07339 (Dettmers et al. 2022)",
        "quantize the weights alone: activations=32, first=None, last=None",
    )


NETWORK_RULES: tuple[Callable[[Chain], Iterator[Finding]], ...] = (
    heads_not_filters,
    weights_alone,
    depthwise_integers,
    integer_kernels,
    saturating_kernels,
    slow_bfloat16,
    sparse_kernels,
    channel_counts,
    channel_counts_of_network,
)
"""The rules in the order in which findings of equal severity are listed."""
