import pytest
import torch
from torch import nn

import chainfx
from chainfx.errors import PassError
from chainfx.ir.graph import derived_generator, ops
from chainfx.passes import PassContext, Quantize, base
from chainfx.passes.quantizing import observing, quantizers
from chainfx.passes.quantizing.observing import SAMPLES, Observed, observe
from chainfx.training import Trainer, digits
from tests.nets import graph_of


def generator(seed=0):
    return derived_generator(seed, "calibration")


def observed(batches, rng=None):
    """What is kept of the inputs of a linear layer."""
    graph_module = graph_of(nn.Linear(batches[0].shape[1], 2), batches[0][:2])
    node = next(iter(graph_module.graph.nodes))
    return observe(graph_module, {node}, ((batch,) for batch in batches), rng or generator())[node]


def test_up_to_65536_values_are_all_kept():
    values = torch.randn(SAMPLES // 8, 8)
    seen = observed(list(values.split(1000)))
    assert torch.equal(seen.sample.sort().values, values.flatten().sort().values)


def test_a_sample_sees_every_column_of_an_image():
    """4 x 65,536 values in rows of 4: every fourth value, from the first, is of the first column alone."""
    values = torch.zeros(SAMPLES, 4)
    values[:, 1] = torch.linspace(0, 1, SAMPLES)
    seen = observed([values])
    assert len(seen.sample) == SAMPLES
    assert (seen.sample > 0).double().mean().item() == pytest.approx(0.25, abs=0.01)
    assert seen.sample.mean().item() == pytest.approx(0.125, abs=0.005)


def test_the_range_is_exact_and_decides_the_sign():
    """One value in 400,000 is negative and one is large; they lie in different batches."""
    values = torch.full((100_000, 4), 0.5)
    values[7, 3], values[99_000, 2] = -3.0, 7.0
    for batches in ([values], list(values.split(9999)), list(values.flip(0).split(50_000))):
        seen = observed(batches)
        assert (seen.least.item(), seen.greatest.item(), seen.count) == (-3.0, 7.0, 400_000)
    (found,) = quantized_inputs(values)
    assert found.args[2:] == (1, True)


def quantized_inputs(values):
    graph_module = graph_of(nn.Linear(4, 2), values[:2])
    context = PassContext(graph_module, (values[:2],), calibration=[(batch,) for batch in values.split(10_000)])
    result = Quantize(32, 1, first=None, last=None).apply(graph_module, context)
    return result.graph_module.graph.find_nodes(op="call_function", target=ops.quantize_activation)


def test_every_value_of_a_stream_is_kept_with_the_same_probability():
    """The batches have 5 : 1 : 2 : 8 of the values, and so has the sample, but for the width of one draw."""
    sizes = (50_000, 10_000, 20_000, 80_000)
    batches = [torch.full((size, 5), float(index)) for index, size in enumerate(sizes)]
    seen = observed(batches)
    shares = torch.bincount(seen.sample.long(), minlength=4).double() / SAMPLES
    assert shares.tolist() == pytest.approx([size / sum(sizes) for size in sizes], abs=0.01)
    ranks = observed([torch.arange(100_000.0).unflatten(0, (-1, 5)) + 100_000 * batch for batch in range(5)]).sample
    assert ranks.double().mean().item() == pytest.approx(250_000, rel=0.01)
    assert torch.histc(ranks, 20, 0, 500_000).div(SAMPLES / 20).tolist() == pytest.approx([1.0] * 20, abs=0.05)


def test_memory_does_not_grow_with_the_number_of_batches(monkeypatch):
    kept = []
    join = Observed.joined

    def joined(self, other, rng):
        found = join(self, other, rng)
        kept.append([tensor.untyped_storage().nbytes() for tensor in (found.least, found.greatest, found.sample)])
        return found

    monkeypatch.setattr(Observed, "joined", joined)
    observed([torch.randn(30_000, 5) for _ in range(12)])
    assert kept == [[4, 4, 4 * SAMPLES]] * 11
    view = observed([torch.randn(200, 5)[:100]])
    assert view.sample.untyped_storage().nbytes() == 4 * 500


def test_equal_data_and_seed_give_an_equal_sample_and_another_seed_another():
    values = torch.randn(100_000, 5)
    one, again, other = (observed([values], generator(seed)).sample for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    split = observed(list(values.split(7_000))).sample  # the same in distribution alone
    assert not torch.equal(split, one)
    assert split.std().item() == pytest.approx(one.std().item(), rel=0.01)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(value):
    values = torch.randn(8, 4)
    values[5, 2] = value
    with pytest.raises(PassError) as caught:
        observed([values[:4], values[4:]])
    assert str(caught.value) == (
        "quantize: activation 'input_1' has values that are not finite on the calibration data; "
        "mend the data or the network first."
    )


def test_the_range_of_half_precision_does_not_overflow():
    assert observed_of(torch.tensor([-60_000.0, 60_000.0], dtype=torch.float16)).greatest == 60_000


def observed_of(values):
    return Observed.of(values, generator())


def test_too_little_memory_is_no_wrong_batch(monkeypatch):
    def fails(*args):
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(observing.Observed, "of", fails)
        observed([torch.randn(4, 4)])
    monkeypatch.setattr(base, "lacks_memory", lambda error: True)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        observed([torch.randn(4, 4), torch.randn(4, 3)])


@pytest.mark.parametrize(("least", "greatest", "bits"), [(0.0, 64.0, 1), (-64.0, 2.0, 2)])
def test_the_clip_is_searched_up_to_the_largest_of_all_values(least, greatest, bits):
    """The sample is 0.5: a clip of 0.5 would be exact, but of 64 equal steps up to 64 the first is 1."""
    seen = Observed(99, torch.tensor(least), torch.tensor(greatest), torch.tensor([0.5]))
    assert quantizers._best_clip(seen, bits, least < 0) == 1.0


def test_two_bits_on_digits_are_as_good_as_with_all_values(monkeypatch):
    """Accuracy within two points of clips that are chosen on every value of the calibration data."""
    data = digits()
    torch.manual_seed(0)
    net = chainfx.zoo.resnet(blocks=(1, 1), width=8, in_channels=1, num_classes=10)
    trainer = Trainer(data, epochs=4, learning_rate=0.1)
    assert trainer.fit(net) > 0.9
    chain = [Quantize(8, 2)]

    def accuracy():
        x = data.example_inputs(2)
        small = chainfx.compile(net.eval(), chain, example_inputs=x, calibration=list(trainer.calibration))
        return trainer.evaluate(small.graph_module)

    sampled = accuracy()
    monkeypatch.setattr(observing, "SAMPLES", 1 << 40)
    whole = accuracy()
    assert sampled == pytest.approx(whole, abs=0.02)
    assert sampled > 0.3
