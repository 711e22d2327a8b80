"""Sizes of Deep Compression (Han et al. 2016, tables 1 to 5) from its printed shares, bits and index bits.

Each layer is a mask of that share of its weights and codes of so many bits, counted by chainfx's own formula
(``relative_index``): ``(kept + fillers) (bits + index bits) + 32 entries``, with fillers as places at random need them.
After Huffman coding the printed mean bits take the place of the fixed ones. The source prints layers in thousands of
weights and shares in whole percent.
"""

import numpy as np
import pytest
import torch

from chainfx.bitops.encodings import Stored, find_encoding

# weights, kept %, bits of the codes, index bits, printed size in % of 32-bit floats; after coding mean bits of the
# codes, mean bits of the indices, printed size in %
LENET_300 = [
    (235200, 8, 6, 5, 3.1, 4.4, 3.7, 2.32),
    (30000, 9, 6, 5, 3.8, 4.4, 4.3, 3.04),
    (1000, 26, 6, 5, 15.7, 4.3, 3.2, 12.7),
]
LENET_5 = [
    (500, 66, 8, 5, 78.5, 7.2, 1.5, 67.45),
    (25000, 12, 8, 5, 6.0, 7.2, 3.9, 5.28),
    (400000, 8, 5, 5, 2.7, 4.5, 4.5, 2.45),
    (5000, 19, 5, 5, 6.9, 5.2, 3.7, 6.13),
]
ALEXNET = [
    (35000, 84, 8, 4, 32.6, 6.3, 1.2, 20.53),
    (307000, 38, 8, 4, 14.5, 5.5, 2.3, 9.43),
    (885000, 35, 8, 4, 13.1, 5.1, 2.6, 8.44),
    (663000, 37, 8, 4, 14.1, 5.2, 2.5, 9.11),
    (442000, 37, 8, 4, 14.0, 5.6, 2.5, 9.43),
    (37749000, 9, 5, 4, 3.0, 3.9, 3.2, 2.39),
    (16777000, 9, 5, 4, 3.0, 3.6, 3.7, 2.46),
    (4096000, 25, 5, 4, 7.3, 4, 3.2, 5.85),
]
VGG_16 = [
    (1728, 58, 8, 5, 40.0, 6.8, 1.7, 29.97),
    (36864, 22, 8, 5, 9.8, 6.5, 2.6, 6.99),
    (73728, 34, 8, 5, 14.3, 5.6, 2.4, 8.91),
    (147456, 36, 8, 5, 14.7, 5.9, 2.3, 9.31),
    (294912, 53, 8, 5, 21.7, 4.8, 1.8, 11.15),
    (589824, 24, 8, 5, 9.7, 4.6, 2.9, 5.67),
    (589824, 42, 8, 5, 17.0, 4.6, 2.2, 8.96),
    (1179648, 32, 8, 5, 13.1, 4.6, 2.6, 7.29),
    (2359296, 27, 8, 5, 10.9, 4.2, 2.9, 5.93),
    (2359296, 34, 8, 5, 14.0, 4.4, 2.5, 7.47),
    (2359296, 35, 8, 5, 14.3, 4.7, 2.5, 8.0),
    (2359296, 29, 8, 5, 11.7, 4.6, 2.7, 6.52),
    (2359296, 36, 8, 5, 14.8, 4.6, 2.3, 7.79),
    (102760448, 4, 5, 5, 1.6, 3.6, 3.5, 1.1),
    (16777216, 4, 5, 5, 1.5, 4, 4.3, 1.25),
    (4096000, 23, 5, 5, 7.1, 4, 3.4, 5.24),
]
NETWORKS = {"LeNet-300-100": LENET_300, "LeNet-5": LENET_5, "AlexNet": ALEXNET, "VGG-16": VGG_16}
PIECE = 1 << 20  # of a large layer so much is drawn

# layers further off than 6 %, and why
DEVIATIONS = {
    (30_000, 9): "kept 9 % may be 9.5 %",
    (37_749_000, 9): "fewer fillers than places at random need: the zeros of fc6 lie together",
    (16_777_000, 9): "as fc6",
    (102_760_448, 4): "kept 4 % may be 3.5 %, and as fc6 of AlexNet",
    (16_777_216, 4): "as fc6",
    (1_728, 58): "of 2K, as printed, a codebook takes less than of 1,728 weights",
}


def stored(weights, kept, bits):
    drawn = min(weights, PIECE)
    mask = torch.from_numpy(np.random.default_rng(weights).random(drawn) < kept / 100)
    return Stored(torch.zeros(drawn, dtype=torch.uint8), "codes", bits, masks=(("mask", mask),))


def percent(weights, kept, bits, index_bits, code_bits=None, coded_index_bits=None):
    """The size of a layer in percent of 32-bit floats: by chainfx's formula, and with other mean bits an entry."""
    size = find_encoding(f"relative_index:{index_bits}")(stored(weights, kept, bits)) * (weights / min(weights, PIECE))
    if code_bits is not None:
        size *= (code_bits + coded_index_bits) / (bits + index_bits)
    return 100 * (size + 32 * 2**bits) / (32 * weights)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_layers_have_the_printed_sizes(network):
    for weights, kept, bits, index_bits, printed, *_ in NETWORKS[network]:
        off = abs(percent(weights, kept, bits, index_bits) / printed - 1)
        assert off < 0.06 or (off < 0.15 and (weights, kept) in DEVIATIONS), (weights, off)


@pytest.mark.parametrize(
    ("network", "shared", "coded"),
    [("LeNet-300-100", 32, 40), ("LeNet-5", 33, 39), ("AlexNet", 27, 35), ("VGG-16", 31, 49)],
)
def test_the_rates_of_whole_networks_come_out(network, shared, coded):
    """Within 10 %. The source's rates and its rows differ by as much.

    Its printed sizes of layers give 31.0 and 41.0, 33.0 and 36.6, 26.9 and 34.5, 33.3 and 52.7. Furthest off are
    LeNet-300-100 after coding (43.5: mean bits of its layers say less than their sizes) and AlexNet (25.5 and 32.8: the
    fillers of fc6 and fc7).
    """
    layers = NETWORKS[network]
    total = sum(weights for weights, *_ in layers)
    for rate, take in ((shared, slice(1, 4)), (coded, None)):
        sizes = (row[0] * percent(row[0], *(row[1:4] if take else (*row[1:4], *row[5:7]))) / 100 for row in layers)
        assert total / sum(sizes) == pytest.approx(rate, rel=0.1)
