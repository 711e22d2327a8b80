"""Codes of tensors: they come back, are as small as entropy says, and a damaged one is one clear error."""

import heapq
import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainfx.coding import CODERS, Reader, arithmetic, coded_bytes, decode_tensor, encode_tensor, huffman, varint
from chainfx.coding.places import FORMS, decode_places, places_by_form
from chainfx.errors import ArtifactError
from tests.budget import mostly_slow


def again(data, like, *, masked):
    reader = Reader(data)
    found = decode_tensor(reader, like.shape, like.dtype, masked=masked)
    assert reader.left == 0
    return found


def entropy(symbols):
    """The bits of all symbols together, by the definition."""
    counts = np.unique(symbols, return_counts=True)[1]
    return sum(count * math.log2(len(symbols) / count) for count in counts)


SHAPES = st.lists(st.integers(0, 9), min_size=0, max_size=4).map(tuple)


@given(SHAPES, st.integers(1, 256), st.floats(0, 1), st.sampled_from(CODERS), st.integers(0, 2**32 - 1))
def test_codes_and_masks_come_back(shape, kinds, share, coder, seed):
    draw = np.random.default_rng(seed)
    values, kept = draw.integers(0, kinds, shape).astype(np.uint8), np.asarray(draw.random(shape) < share)
    found, mask = again(encode_tensor(values, kept, coder), values, masked=True)
    assert np.array_equal(mask, kept) and np.array_equal(found, values * kept)
    found, mask = again(encode_tensor(values, None, coder), values, masked=False)
    assert mask is None and np.array_equal(found, values)


@given(SHAPES, st.sampled_from(["f4", "f8", "f2", "i8", "i4", "i2", "u1"]), st.integers(0, 2**32 - 1))
def test_any_type_comes_back_bit_for_bit(shape, dtype, seed):
    values = np.random.default_rng(seed).integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8)
    values = values.view(dtype).reshape(shape)
    found, _ = again(encode_tensor(values), values, masked=False)
    assert found.dtype == values.dtype and found.tobytes() == values.tobytes()


@given(st.integers(0, 40), st.integers(1, 12), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_every_form_of_places_comes_back(rows, columns, share, seed):
    kept = np.random.default_rng(seed).random((rows, columns)) < share
    for form, data in places_by_form(kept, adaptive=True).items():
        head = bytes([FORMS.index(form)]) + varint(int(kept.sum()))
        assert np.array_equal(decode_places(Reader(head + data), kept.shape), kept), form


@pytest.mark.parametrize("share", mostly_slow([0.005, 0.05, 0.3, 0.5], [0.05]))
def test_masked_codes_take_little_more_than_their_entropy(share):
    draw = np.random.default_rng(0)
    kept = draw.random((400, 500)) < share
    values = np.clip(draw.normal(8, 3, kept.shape), 0, 15).astype(np.uint8)
    bound = (entropy(kept.reshape(-1)) + entropy(values[kept])) / 8
    static, adaptive = (coded_bytes(values, kept, coder) for coder in CODERS)
    assert bound * 0.99 < adaptive < static
    assert adaptive < 1.03 * bound + 20 and static < 1.08 * bound + 60


def test_floats_that_were_rounded_to_a_shorter_type_take_its_bytes():
    values = np.random.default_rng(0).normal(size=16).astype(np.float32)
    assert coded_bytes(values) == 1 + 4 * 16
    short = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    assert coded_bytes(short) == 2 + 2 * 16
    assert np.array_equal(again(encode_tensor(short), short, masked=False)[0], short)


def test_rows_and_columns_of_zeros_are_left_out():
    draw = np.random.default_rng(0)
    kept = np.zeros((300, 400), np.bool_)
    kept[np.ix_(draw.permutation(300)[:60], draw.permutation(400)[:80])] = draw.random((60, 80)) < 0.2
    found = {form: len(made) for form, made in places_by_form(kept, adaptive=False).items()}
    assert found["stripped"] < 0.8 * min(size for form, size in found.items() if form != "stripped")


def test_neighbours_that_are_there_make_an_element_likelier():
    """Blocks of 4 x 4 in places that are drawn: the entropy of each element alone is no bound."""
    kept = np.kron(np.random.default_rng(0).random((40, 50)) < 0.2, np.ones((4, 4))) > 0
    assert len(places_by_form(kept, adaptive=True)["shares"]) < 0.7 * entropy(kept.reshape(-1)) / 8


def test_the_trust_of_fewest_bytes_is_found_for_small_matrices_alone(monkeypatch):
    kept = np.random.default_rng(0).random((30, 90)) < np.random.default_rng(1).random((30, 1))
    assert arithmetic.encode_places(kept)[0] == 4  # rows that differ are worth more than the share of the whole
    monkeypatch.setattr(arithmetic, "_SMALL", kept.size - 1)
    data = arithmetic.encode_places(kept)
    assert data[0] == 64 and np.array_equal(arithmetic.decode_places(Reader(data), *kept.shape), kept)


def test_a_matrix_of_too_many_diagonals_has_no_shares():
    kept = np.random.default_rng(0).random((2, 5000)) < 0.2
    assert "shares" not in places_by_form(kept, adaptive=True)
    head = bytes([FORMS.index("shares")]) + varint(3) + b"\x04"
    with pytest.raises(ArtifactError, match="an arithmetic code is not as it was written"):
        decode_places(Reader(head), kept.shape)


def test_places_that_lie_in_columns_take_less_than_the_entropy_of_places_anywhere():
    draw = np.random.default_rng(0)
    kept = draw.random((300, 400)) < draw.random(400) ** 4 / 3
    found = places_by_form(kept, adaptive=True)
    assert len(found["shares"]) < 0.85 * entropy(kept.reshape(-1)) / 8
    assert len(found["shares"]) < min(len(found[form]) for form in FORMS[:6])


def test_huffmans_code_is_the_best_prefix_code():
    """Against heapq's own merging of the two least, and Kraft's equality where the limit binds."""
    counts = np.array([20, 18, 10, 10, 10, 6, 6, 4, 4, 4, 4, 3, 1])
    heap, cost = sorted(counts.tolist()), 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        cost += merged
        heapq.heappush(heap, merged)
    assert (huffman.code_lengths(counts) * counts).sum() == cost
    lengths = huffman.code_lengths(2 ** np.arange(20))
    assert lengths.max() == 12 and (0.5 ** lengths.astype(float)).sum() == 1


def test_many_symbols_are_read_in_parts():
    symbols = np.random.default_rng(0).binomial(20, 0.4, 200_003).astype(np.uint8)
    data = huffman.encode(symbols)
    assert np.array_equal(huffman.decode(Reader(data), len(symbols)), symbols)
    assert len(data) < 1.03 * entropy(symbols) / 8


KEPT = np.random.default_rng(1).random((30, 40)) < 0.2
VALUES = np.random.default_rng(2).binomial(15, 0.4, KEPT.shape).astype(np.uint8)


@pytest.mark.parametrize("coder", CODERS)
def test_cut_short_it_is_one_clear_error(coder):
    data = encode_tensor(VALUES, KEPT, coder)
    for size in range(len(data)):
        try:
            again(data[:size], VALUES, masked=True)
        except ArtifactError as error:
            assert str(error).endswith("save the model again.")
        except AssertionError:  # of again(): an arithmetic code may end in zeros that are not needed
            assert coder == "adaptive"


@given(st.data(), st.sampled_from(CODERS))
def test_damaged_it_decodes_to_something_of_that_size_or_is_one_clear_error(data, coder):
    """Nothing else is raised, and nothing larger is made than what the caller asked for."""
    coded = bytearray(encode_tensor(VALUES, KEPT, coder))
    for _ in range(data.draw(st.integers(1, 4))):
        coded[data.draw(st.integers(0, len(coded) - 1))] = data.draw(st.integers(0, 255))
    try:
        values, kept = decode_tensor(Reader(bytes(coded)), VALUES.shape, VALUES.dtype, masked=True)
    except ArtifactError:
        return
    assert values.shape == kept.shape == VALUES.shape


@given(st.binary(max_size=60))
def test_any_bytes_are_a_tensor_or_one_clear_error(data):
    for masked in (False, True):
        try:
            decode_tensor(Reader(data), (5, 7), np.dtype(np.uint8), masked=masked)
        except ArtifactError:
            continue


@pytest.mark.parametrize(
    ("data", "masked", "text"),
    [
        (b"", True, "a coded tensor ends 1 bytes too early; save the model again."),
        (b"\x09", True, "a tensor is stored in form 9, which this chainfx does not know; load it with a newer one."),
        (
            b"\x02\x08\x00",
            True,
            "a tensor has its places in form 8, which this chainfx does not know; load it with a newer one.",
        ),
        (
            b"\x01\x09",
            False,
            "a tensor has code 9 for its symbols, which this chainfx does not know; load it with a newer one.",
        ),
        (b"\x01\x01\x09", False, "a tensor has symbols of 9 bits, which are not of a byte; save the model again."),
        (b"\x02\x00" + b"\xff" * 9, True, "a coded tensor has a number that is too long; save the model again."),
        (b"\x01\x02\x01", False, "a Huffman code is not as it was written; save the model again."),
        (b"\x01\x03\x01", False, "an arithmetic code is not as it was written; save the model again."),
        (
            b"\x04\x03",
            False,
            "a tensor leaves 3 bytes of each number out, which has fewer; save the model again.",
        ),
        (
            b"\x02\x07\x01\x00\x01\x00\x01",
            True,
            "the places of a sparse tensor are not as they were written; save the model again.",
        ),
        (
            b"\x02\x00\x24",
            True,
            "the places of a sparse tensor are not as they were written; save the model again.",
        ),
    ],
)
def test_what_is_wrong_is_said(data, masked, text):
    with pytest.raises(ArtifactError) as caught:
        decode_tensor(Reader(data), (5, 7), np.dtype(np.uint8), masked=masked)
    assert str(caught.value) == text


def test_without_constriction_adaptive_codes_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    assert again(encode_tensor(VALUES, KEPT), VALUES, masked=True)
    with pytest.raises(ArtifactError) as caught:
        encode_tensor(VALUES, KEPT, "adaptive")
    assert str(caught.value) == (
        "adaptive arithmetic codes need the package constriction, which is not installed; "
        "run pip install 'chainfx[coding]', or save with Encode(coder='static')."
    )
