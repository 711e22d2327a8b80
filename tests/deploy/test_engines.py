import copy
import io
import pickle
import threading

import pytest
import torch
from torch import nn

import chainfx
from chainfx import zoo
from chainfx.deploy import CompressedModel, Machine
from chainfx.deploy.integers.layers import IntegerLayer
from chainfx.errors import InputError
from chainfx.passes import Bf16, EarlyExit, Fuse, PassContext, PostTrainingQuantize, Quantize
from chainfx.training import Trainer, digits
from tests.deploy.integers.nets import NARROW, distance, on_integers, quantized, rows_of, run
from tests.nets import images, small_resnet

WIDE = Machine("AVX-512 VNNI", kernels=True, saturates=False)
NONE = Machine("NEON", kernels=False, saturates=True)
needs_kernels = pytest.mark.skipif(not Machine.here().kernels, reason="this machine has no integer kernels")


@pytest.fixture(scope="module")
def x():
    return images(8, 8)


@pytest.fixture(scope="module")
def network(x):
    """A train form with 8-bit inputs, and 8-bit weights in the first and the last layer alone."""
    return quantized(small_resnet((1, 1)), x, one=Quantize(7, 8))


@needs_kernels
def test_auto_takes_integers_where_a_layer_can_run_in_them(network, x):
    small = CompressedModel(network, (x,), None, machine=NARROW)
    assert small.engine == "int8"
    assert rows_of(small)["conv1"] == (
        "float",
        "sums of two products of input codes up to 254 and weight codes up to 127 do not fit into 16 bits, which AVX2 "
        "without VNNI adds them in; quantize its input to 7 bits, or its weight to 7 bits with scheme='uniform' "
        "(Quantize(first=7, last=7) does both)",
    )
    assert rows_of(small)["stages.0.0.conv1"] == ("int8", "with BatchNorm2d, quantize_activation")
    assert rows_of(small)["fc"][0] == "float"
    exact = run(copy.deepcopy(network).double(), x.double())
    assert distance(run(small, x), exact) <= max(1e-5, 2 * distance(run(network, x), exact))


@pytest.mark.slow
@needs_kernels
def test_integers_move_no_more_answers_of_a_trained_network_than_float32_does():
    """Of real images beside float64; that layers are exact one by one is tested in ``integers/test_rewriting.py``."""
    torch.manual_seed(0)
    trainer, net = Trainer(digits(), epochs=5, batch_size=32), zoo.resnet((1, 1), 8, in_channels=1)
    trainer.fit(net)
    batches = [inputs for (inputs,) in trainer.calibration]
    x = torch.cat([inputs for (inputs,), _ in trainer.validation])
    small = chainfx.compile(net.eval(), [PostTrainingQuantize(7, 8)], example_inputs=x[:2], calibration=batches)
    exact = run(copy.deepcopy(small.graph_module).double(), x.double()).argmax(1)
    moved = {engine: int((run(small.lower(engine), x).argmax(1) != exact).sum()) for engine in ("int8", "float")}
    assert moved["int8"] <= moved["float"] and len(x) == 144 and len(exact.unique()) > 4


def test_with_vnni_every_layer_runs_in_integers(network, x):
    small = CompressedModel(network, (x,), None, machine=WIDE)
    assert [row.name for row in small.lowering if row.engine == "float"] == ["pool"]


def test_without_kernels_everything_is_float_and_says_why(network, x):
    small = CompressedModel(network, (x,), None, machine=NONE)
    assert small.engine == "float"
    assert {row.reason for row in small.lowering} == {"this machine (NEON) has no integer kernels of oneDNN"}
    assert torch.equal(run(small, x), run(network, x))


def test_the_float_engine_is_the_fake_quantized_network_bit_for_bit(network, x):
    small = CompressedModel(network, (x,), None, engine="float", machine=NARROW)
    assert small.engine == "float"
    assert rows_of(small)["stages.0.0.conv1"] == ("float", "engine='float' was asked for")
    assert torch.equal(run(small, x), run(network, x))


@needs_kernels
def test_lower_gives_the_same_network_on_another_engine(network, x):
    small = CompressedModel(network, (x,), None, machine=NARROW)
    other = small.lower("float")
    assert (small.engine, other.engine, other.lower("int8").engine) == ("int8", "float", "int8")
    assert torch.equal(run(other.lower("auto"), x), run(small, x))
    assert small.graph_module.conv1.codes is other.graph_module.conv1.codes
    assert other.lower("auto").machine == NARROW


def test_integers_that_cannot_be_are_one_sentence(x):
    plain = quantized(small_resnet((1, 1)), x, one=Quantize(32, 8, first=8, last=None))
    with pytest.raises(InputError) as caught:
        CompressedModel(plain, (x,), None, engine="int8", machine=NARROW)
    assert str(caught.value) == (
        "engine='int8' was asked for, but no layer can run in integers here (conv1: sums of two products of input "
        "codes up to 254 and weight codes up to 127 do not fit into 16 bits, which AVX2 without VNNI adds them in; "
        "quantize its input to 7 bits, or its weight to 7 bits with scheme='uniform' (Quantize(first=7, last=7) does "
        "both); stages.0.0.conv1: its weight is not quantized; stages.0.0.conv2: its weight is not quantized; ...); "
        "use engine='auto' or 'float', or quantize it otherwise."
    )
    with pytest.raises(InputError) as caught:
        CompressedModel(plain, (x,), None, engine="int4")
    assert str(caught.value) == "engine is 'int4'; give one of 'auto', 'int8', 'sparse', 'float', 'pt2e'."


@pytest.mark.parametrize(
    ("layer", "one", "reason"),
    [
        (nn.ConvTranspose2d(3, 4, 2), Quantize(7, 7, first=7), "conv_transpose2d has no integer kernel"),
        (nn.Conv2d(3, 4, 3), Quantize(7, 32, first=None, last=None), "its input is not quantized"),
    ],
)
def test_each_layer_in_float_has_its_reason(layer, one, reason):
    x = images(2, 6, 3)
    small = CompressedModel(quantized(nn.Sequential(layer), x, one=one), (x,), None, machine=WIDE)
    assert rows_of(small) == {"0": ("float", reason)}


def test_old_dorefa_weights_of_8_bits_stay_in_float(x):
    graph_module = quantized(nn.Sequential(nn.Conv2d(1, 4, 3)), x, one=Quantize(8, 8, scheme="dorefa"))
    (node,) = graph_module.graph.find_nodes(op="call_function", target=chainfx.ir.graph.ops.quantize_weight)
    assert node.args[1:] == (8, "tanh", 0)
    node.update_arg(2, "dorefa")
    graph_module.recompile()
    small = CompressedModel(graph_module, (x,), None, machine=WIDE)
    assert rows_of(small) == {
        "0": ("float", "the values of dorefa at 8 bits are no int8; quantize with 7 bits or scheme='tanh'")
    }


def test_a_network_in_float64_stays_in_float(network, x):
    exact = copy.deepcopy(network).double()
    small = CompressedModel(exact, (x.double(),), None, machine=NARROW)
    assert rows_of(small)["fc"][1] == "integer kernels give float32, and it computes in torch.float64"
    assert torch.equal(run(small, x.double()), run(exact, x.double()))


def test_layers_in_bfloat16_stay_in_float_and_say_so(x):
    small = chainfx.compile(nn.Sequential(nn.Conv2d(1, 4, 3)).eval(), [Bf16()], example_inputs=x)
    reason = "integer kernels give float32, and it computes in torch.bfloat16"
    assert rows_of(small) == {"0": ("float", reason)}


@needs_kernels
def test_another_type_takes_the_network_to_the_float_engine(network, x):
    small = CompressedModel(copy.deepcopy(network), (x,), None, machine=NARROW)
    assert small.to(memory_format=torch.channels_last).engine == "int8"
    assert small.double().engine == "float"
    exact = run(copy.deepcopy(network).double(), x.double())
    assert torch.equal(run(small.segments[0], x.double()), exact)


@needs_kernels
def test_copies_pickles_and_states_hold_codes_and_no_packed_weight(network, x):
    small = CompressedModel(network, (x,), None, machine=NARROW)
    expected = run(small, x)
    stream = io.BytesIO()
    torch.save(small.state_dict(), stream)
    small.load_state_dict(torch.load(io.BytesIO(stream.getvalue())))
    small.share_memory()
    for copied in (copy.deepcopy(small), pickle.loads(pickle.dumps(small)), small.to(torch.float32), small):
        assert copied.engine == "int8"
        assert torch.equal(run(copied, x), expected)
    layers = [module for module in small.segments.modules() if isinstance(module, IntegerLayer)]
    assert {layer.weight.dtype for layer in layers} == {torch.uint8}
    assert not any("decoded" in name and "stages" in name for name in small.state_dict())


@needs_kernels
def test_a_batch_that_is_not_finite_is_one_sentence_and_float_takes_it(network, x):
    small = CompressedModel(network, (x,), None, machine=NARROW)
    for value in (float("nan"), float("inf")):
        wrong = x.clone()
        wrong[2, 0, 1, 1] = value
        with pytest.raises(InputError) as caught:
            small(wrong)
        assert str(caught.value) == (
            "input 'x' has values that are not finite, which the int8 engine has no codes for; mend the batch, or run "
            "the network of lower('float')."
        )
        assert small.lower("float")(wrong).shape == (8, 10)
    large = torch.full_like(x, 3e38)  # finite, as its sum is not
    assert small(large).isfinite().all()


@needs_kernels
@pytest.mark.parametrize("count", [0, 1, 3, 64])
def test_any_batch_size_runs_and_each_sample_has_its_own_answer(network, x, count):
    small = CompressedModel(network, (x,), None, machine=NARROW)
    inputs = images(count, 8, seed=3)
    given = run(small, inputs)
    assert given.shape == (count, 10)
    for row in range(min(count, 3)):
        torch.testing.assert_close(run(small, inputs[row : row + 1]), given[row : row + 1], atol=1e-5, rtol=1e-5)


@needs_kernels
def test_integers_move_no_more_answers_than_float32(x):
    """A code next to a tie may fall to the other side in any arithmetic; a scale that is wrong moves all answers."""
    small, graph_module = on_integers(small_resnet(), images(64, 8))
    inputs = images(64, 8, seed=3)
    exact = run(copy.deepcopy(graph_module).double(), inputs.double())

    def moved(network):
        return float(((run(network, inputs) - exact).abs().amax(1) > 1e-5 * exact.abs().max()).double().mean())

    allowed = moved(small.lower("float")) + 0.1
    assert moved(small) <= allowed
    layer = next(module for module in small.modules() if isinstance(module, IntegerLayer))
    layer.scale.mul_(1.01)
    assert moved(small) > allowed


@needs_kernels
def test_threads_share_a_network(network, x):
    small = CompressedModel(network, (x,), None, machine=NARROW)
    expected, answers = run(small.lower("auto"), x), []
    threads = [threading.Thread(target=lambda: answers.append(run(small, x))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4 and all(torch.equal(answer, expected) for answer in answers)


@needs_kernels
def test_exits_decide_on_values_of_the_integer_network(x):
    graph_module = quantized(small_resnet((2, 2)), x)
    context = PassContext(graph_module, (x,), calibration=[(x,)], tunes=True)
    EarlyExit(exits=1).apply(graph_module, context)
    chainfx.ir.graph.verify(graph_module, (x,))
    with torch.no_grad():
        early = graph_module.eval()(x)[0]
        sure = chainfx.ir.graph.ops.confidence(early, "max-softmax").sort().values
    (mark,) = chainfx.ir.graph.exits_of(graph_module)
    mark.node.update_arg(2, float((sure[3] + sure[4]) / 2))
    graph_module.recompile()
    small = CompressedModel(graph_module, (x,), None, machine=NARROW)
    assert small.engine == "int8"
    torch.testing.assert_close(run(small, x), run(chainfx.ir.graph.Answer(graph_module), x), atol=1e-4, rtol=1e-3)
    seen = []
    small.segments[1].register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    run(small, x)
    assert seen == [4]


@needs_kernels
def test_compile_and_load_take_an_engine(tmp_path, x):
    net = small_resnet((1, 1))
    small = chainfx.compile(net, [PostTrainingQuantize(7, 7)], example_inputs=x, calibration=[x])
    assert small.engine == "int8"
    small.save(tmp_path)
    assert torch.equal(run(chainfx.load(tmp_path), x), run(small, x))
    loaded = chainfx.load(tmp_path, engine="float")
    assert loaded.engine == "float"
    asked = chainfx.compile(net, [PostTrainingQuantize(7, 7)], example_inputs=x, calibration=[x], engine="float")
    assert torch.equal(run(asked, x), run(loaded, x))
    with pytest.raises(InputError, match="engine='int8' was asked for, but no layer"):
        chainfx.compile(net, [PostTrainingQuantize(7, 32)], example_inputs=x, engine="int8")
    chainfx.compile(net, [Fuse()], example_inputs=x).save(tmp_path / "float")
    with pytest.raises(InputError, match="engine='int8' was asked for, but no layer"):
        chainfx.load(tmp_path / "float", engine="int8")


@needs_kernels
def test_a_segment_in_integers_is_one_graph_for_torch_compile(x):
    small, _ = on_integers(small_resnet((1, 1)), x)
    compiled = torch.compile(copy.deepcopy(small.segments[0]), fullgraph=True, backend="eager", dynamic=True)
    for count in (8, 3, 1):
        assert torch.equal(run(compiled, x[:count]), run(small, x[:count]))


@pytest.mark.slow
@needs_kernels
def test_inductor_gives_the_codes_of_the_kernels(x):
    small, _ = on_integers(small_resnet((1, 1)), x)
    expected = run(small, x)
    small.compile()
    torch.testing.assert_close(run(small, x), expected, atol=1e-5, rtol=1e-5)
