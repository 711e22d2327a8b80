"""ShareWeights: codebooks and how they are tuned, masks, rounds, budgets, what quantization keeps, and its errors."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import chainfx
from chainfx.errors import PassError
from chainfx.ir.graph import edit, facts_of, layers_of, value_of, verify
from chainfx.passes import PassContext, PruneChannels, PruneWeights, Quantize, ShareWeights
from tests.nets import graph_of, images, small_resnet


def applied(one, graph_module, x, round=0, tunes=True):
    graph_module = copy.deepcopy(graph_module)
    context = PassContext(graph_module, (x,), calibration=[(x,)], round=round, tunes=tunes)
    result = one.apply(graph_module, context)
    verify(result.graph_module, (x,))
    return result.graph_module, result


@pytest.fixture
def vectors():
    torch.manual_seed(0)
    x = torch.randn(4, 16)
    return graph_of(nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5)), x), x


def weight_of(layer):
    return value_of(layer.graph_module, layer.weight_read)


@pytest.mark.parametrize("bits", [1, 3, 5])
def test_each_layer_has_at_most_so_many_values_the_nearest_ones(vectors, bits):
    graph_module, x = vectors
    before = [layer.tensor.detach().clone() for layer in layers_of(graph_module)]
    shared, result = applied(ShareWeights(bits), graph_module, x)
    assert result.modified and result.skipped == ()
    for old, layer in zip(before, layers_of(shared), strict=True):
        new = weight_of(layer)
        book = new.unique()
        assert len(book) <= 2**bits
        assert torch.equal((old - new).abs(), (old[..., None] - book).abs().amin(-1))
    assert {fact.entries for fact in facts_of(shared).codebooks.values()} == {2**bits}


def test_masked_weights_are_in_no_codebook(vectors):
    graph_module, x = vectors
    pruned, _ = applied(PruneWeights(0.7), graph_module, x)
    kept = {layer.path: weight_of(layer) for layer in layers_of(pruned)}
    shared, _ = applied(ShareWeights(2, init="optimal"), pruned, x)
    for layer in layers_of(shared):
        old, new = kept[layer.path], weight_of(layer)
        assert torch.equal(old == 0, new == 0)
        book = edit.get_tensor(shared, f"{layer.path}.weight_codebook")
        codes = layer.tensor[old != 0]
        means = [old[old != 0][codes == each].mean() for each in range(len(book))]
        assert torch.allclose(book, torch.stack(means))


def test_a_step_of_tuning_moves_an_entry_by_the_sum_of_the_gradients_of_its_members(vectors):
    graph_module, x = vectors
    shared, _ = applied(ShareWeights(2), graph_module, x)
    dense = copy.deepcopy(graph_module)
    for old, layer in zip(layers_of(dense), layers_of(shared), strict=True):
        edit.set_tensor(dense, old.weight_path, weight_of(layer))
    for network in (shared, dense):
        network(x).square().sum().backward()
    for old, layer in zip(layers_of(dense), layers_of(shared), strict=True):
        sums = torch.zeros(4).index_add(0, layer.tensor.flatten().long(), old.tensor.grad.flatten())
        assert torch.allclose(edit.get_tensor(shared, f"{layer.path}.weight_codebook").grad, sums, atol=1e-5)


def penalty_of(result, graph_module):
    (penalty,) = result.tune.penalties
    return penalty.term(graph_module)()


def test_rounds_draw_the_weights_to_their_entries_before_these_stand(vectors):
    graph_module, x = vectors
    one = ShareWeights(2, rounds=3, pull=0.5)
    same, result = applied(one, graph_module, x)
    assert not result.modified and str(same.graph) == str(graph_module.graph)
    shared, _ = applied(ShareWeights(2), graph_module, x)
    error = sum(
        (old.tensor - weight_of(new)).square().sum()
        for old, new in zip(layers_of(graph_module), layers_of(shared), strict=True)
    )
    assert torch.allclose(penalty_of(result, graph_module), 0.25 * error)
    assert torch.allclose(penalty_of(applied(one, graph_module, x, 1)[1], graph_module), error)
    last, result = applied(one, graph_module, x, 2)
    assert result.modified and result.tune.penalties == () and facts_of(last).codebooks


def test_rounds_without_a_trainer_are_one_sentence(vectors):
    with pytest.raises(PassError) as caught:
        applied(ShareWeights(2, rounds=3), *vectors, tunes=False)
    assert str(caught.value) == (
        "share-weights: rounds=3 works while the network is tuned, and there is no trainer; give trainer=..., or leave "
        "rounds out."
    )


def test_entries_are_rounded_after_tuning(vectors):
    graph_module, x = vectors
    one = ShareWeights(2, entries="bfloat16", biases=True)
    shared, _ = applied(one, graph_module, x)
    books = {path: edit.get_tensor(shared, path) for path in dict(shared.named_parameters()) if "codebook" in path}
    before = {path: book.detach().clone() for path, book in books.items()}
    assert one.finish(shared, PassContext(shared, (x,))).modified and len(books) == 4
    for path, book in books.items():
        assert book.dtype == torch.float32 and torch.equal(book, before[path].bfloat16().float())
    assert any(not torch.equal(book, before[path]) for path, book in books.items())
    assert not ShareWeights(2).finish(shared, PassContext(shared, (x,))).modified


def test_biases_that_have_no_codebook_are_named(vectors):
    graph_module, x = vectors
    with torch.no_grad():
        graph_module.get_parameter("2.bias")[0] = torch.inf
    _, result = applied(ShareWeights(4, biases=True), graph_module, x)
    sizes = {layer.path: layer.bias.target for layer in layers_of(graph_module)}
    assert [(item.node, item.reason) for item in result.skipped] == [
        (sizes["0"], "its 12 numbers are no more than the 16 of a codebook"),
        (sizes["2"], "its 5 numbers are no more than the 16 of a codebook"),
    ]
    _, result = applied(ShareWeights(2, biases=True), graph_module, x)
    assert [(item.node, item.reason) for item in result.skipped] == [("2.bias", "it is not finite everywhere")]


def test_a_budget_gives_bits_to_the_layer_that_needs_them(vectors):
    """All weights of the second layer have two values, so that one bit is enough for it."""
    graph_module, x = vectors
    _, second = layers_of(graph_module)
    edit.set_tensor(graph_module, second.weight_path, second.tensor.sign())
    shared, result = applied(ShareWeights(budget=5.0), graph_module, x)
    bits = result.profile["bits"]
    assert bits == {"0": 3, "2": 1}
    books = [edit.get_tensor(shared, f"{layer.path}.weight_codebook").numel() for layer in layers_of(shared)]
    total = 16 * 12 * bits["0"] + 12 * 5 * bits["2"] + 32 * sum(books)
    assert total <= 5.0 * (16 * 12 + 12 * 5)


def test_quantization_aware_training_after_sharing_keeps_clusters_and_zeros():
    torch.manual_seed(0)
    x, net = images(), small_resnet((1, 1))
    chain = [PruneWeights(0.5), ShareWeights(3), Quantize(8, 8, first=None, last=None)]
    small = chainfx.compile(net, chain, example_inputs=x, calibration=[x])
    shared = chainfx.compile(net, chain[:2], example_inputs=x)
    before, after = facts_of(shared.graph_module), facts_of(small.graph_module)
    assert before.codebooks == after.codebooks and before.masks == after.masks
    for old, new in zip(layers_of(shared.graph_module), layers_of(small.graph_module), strict=True):
        values, coarse = weight_of(old), weight_of(new)
        assert torch.equal(values == 0, coarse == 0) or not (values == 0)[coarse != 0].any()
        for channel in range(len(values)):
            assert len(coarse[channel].unique()) <= len(values[channel].unique())


def test_a_shared_and_quantized_network_is_stored_by_its_codebooks_and_runs_on_codes(tmp_path):
    x = images()
    chain = [ShareWeights(3), Quantize(7, 8, first=None, last=None, scheme="uniform")]
    small = chainfx.compile(small_resnet((1, 1)), chain, example_inputs=x, calibration=[x])
    names = {name.rpartition(".")[2] for name, _ in small.graph_module.named_buffers()}
    assert "weight_codes" in names and "codes" not in names
    small.save(tmp_path)
    assert torch.equal(chainfx.load(tmp_path)(x), small(x))
    assert torch.allclose(small.lower("float")(x), small.graph_module(x), atol=1e-5)


def test_the_same_seed_draws_the_same_centroids(vectors):
    graph_module, x = vectors
    one = ShareWeights(3, init="random")
    books = [applied(one, graph_module, x)[0].get_parameter("0.weight_codebook") for _ in range(2)]
    assert torch.equal(*books)


@pytest.mark.parametrize(
    ("change", "options", "text"),
    [
        (
            lambda w: w,
            {"bits": 7},
            "share-weights: layer '2' has 60 weights that are not masked, fewer than the 128 entries of a codebook of "
            "7 bits; use fewer bits, or add '2' to skip.",
        ),
        (
            lambda w: w * 0,
            {},
            "share-weights: the weights of layer '0' are all zero; train the network first, or add it to skip.",
        ),
        (
            lambda w: w * torch.inf,
            {},
            "share-weights: the weight '0.weight' is not finite everywhere; train the network again first.",
        ),
        (
            lambda w: w,
            {"budget": 0.5},
            "share-weights: budget=0.5 bits a weight are too few; one bit for each takes 1.508 with the codebooks, "
            "give at least that.",
        ),
        (
            lambda w: w,
            {"groups": ("conv*",)},
            "share-weights: the pattern 'conv*' in groups matches no layer; layers are 0, 2.",
        ),
    ],
)
def test_what_cannot_be_shared_is_one_clear_error(vectors, change, options, text):
    graph_module, x = vectors
    edit.set_tensor(graph_module, "0.weight", change(edit.get_tensor(graph_module, "0.weight").detach()))
    with pytest.raises(PassError) as caught:
        applied(ShareWeights(**options), graph_module, x)
    assert str(caught.value) == text


def test_a_layer_without_weights_is_one_clear_error(vectors):
    graph_module, x = vectors
    pruned, _ = applied(PruneWeights(0.5), graph_module, x)
    edit.get_tensor(pruned, "2.weight_mask").zero_()
    with pytest.raises(PassError) as caught:
        applied(ShareWeights(2), pruned, x)
    assert str(caught.value) == (
        "share-weights: layer '2' has no weight that is not masked, so that nothing can be shared; add it to skip."
    )
    with warnings.catch_warnings(action="ignore"):  # torch says that it fills nothing
        empty = graph_of(nn.Linear(0, 3), torch.zeros(2, 0))
    with pytest.raises(PassError) as caught:
        applied(ShareWeights(2), empty, torch.zeros(2, 0))
    assert str(caught.value) == (
        "share-weights: layer 'weight' has no weights, so that nothing can be shared; add it to skip."
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bits": 9}, "bits=9 is out of range; use an integer of 1 to 8."),
        ({"init": "best"}, "init='best' is out of range; use one of 'linear', 'density', 'random', 'optimal'."),
        ({"budget": 0}, "budget=0 is out of range; use a mean number of bits above 0 and up to 32, or None."),
        ({"rounds": 0}, "rounds=0 is out of range; use an integer of at least 1."),
        ({"pull": 0}, "pull=0 is out of range; use a number above 0."),
        ({"entries": "float16"}, "entries='float16' is out of range; use 'float32' or 'bfloat16'."),
        ({"groups": "fc"}, "groups='fc' is out of range; use a tuple of patterns."),
    ],
)
def test_options_out_of_range(options, text):
    with pytest.raises(PassError) as caught:
        ShareWeights(**options)
    assert str(caught.value) == f"share-weights: {text}"


def test_members_of_exact_middles_are_those_of_the_lower_entry():
    from chainfx.passes.sharing import members

    assert members(np.array([0.5, 0.6]), np.array([0.0, 1.0])).tolist() == [0, 1]


def test_channels_are_ranked_by_the_shared_values_and_not_by_their_codes():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(8, 4)).eval()
    net[0].weight.data[::2] *= 1e-3
    stages, x = [], torch.randn(4, 3, 5, 5)
    chain = [ShareWeights(4), PruneChannels(0.5, skip=("2",))]
    chainfx.compile(net, chain, example_inputs=x, order="given", on_stage=stages.append)
    (bias,) = (value for name, value in stages[-1].graph_module.named_parameters() if name == "0.bias")
    assert torch.equal(bias, net[0].bias[1::2])
