"""The terms of a loss against what they are by hand, and what each of them does to a network."""

import copy
import dataclasses
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chainfx
from chainfx.errors import TuningError
from chainfx.ir.graph import exits_of
from chainfx.passes import Distill, EarlyExit, PassContext, PruneChannels, Quantize, TuneRequest
from chainfx.passes import soft_labels as soft_loss
from chainfx.training import Augment, OwnTrainer, Trainer, digits, from_tensors, loss_of, regression
from chainfx.training.contrast import Contrast
from chainfx.training.features import attention_loss
from chainfx.training.losses import self_distillation
from chainfx.training.mixing import Mixing
from chainfx.training.sparsity import GroupLasso
from chainfx.training.taps import Tapped, hinted, penultimate
from tests.nets import graph_of, images, small_resnet
from tests.trainers import few_digits

X = images(8)
DATA = few_digits()
BATCH = next(DATA.train.batches(8, torch.Generator().manual_seed(0)))


def silent(epoch):
    pass


@pytest.fixture
def pair():
    """A network in train form and another one of the same structure, which teaches."""
    return graph_of(small_resnet(), X), graph_of(small_resnet((1, 1), width=6), X)


def loss_with(pair, index=None, **options):
    own, teacher = pair
    loss = loss_of(own.eval(), TuneRequest(teacher=teacher, **options), DATA)
    return loss(loss.network, BATCH, index), loss


def test_recovery_is_a_tenth_of_the_task_and_the_rest_from_the_teacher(pair):
    own, teacher = pair
    inputs, targets = BATCH
    answer, taught = own.eval()(*inputs), teacher.eval()(*inputs)
    expected = 0.1 * F.cross_entropy(answer, targets) + 0.9 * soft_loss(answer, taught, 4.0)
    torch.testing.assert_close(loss_with(pair)[0], expected)
    assert loss_with(pair, loss="task")[0].item() == pytest.approx(F.cross_entropy(answer, targets).item())


def test_without_a_soft_loss_a_task_recovers_on_its_own_loss():
    x = torch.randn(20, 4)
    task = dataclasses.replace(regression(2), soft=None)
    data = from_tensors(x, x[:, :2], task=task)
    model, teacher = (graph_of(nn.Sequential(nn.Linear(4, 2)), x[:2]) for _ in range(2))
    loss = loss_of(model, TuneRequest(teacher=teacher), data)
    torch.testing.assert_close(loss(model, ((x,), x[:, :2])), F.mse_loss(model(x), x[:, :2]))
    with pytest.raises(TuningError) as caught:
        loss_of(model, TuneRequest(loss="kd", teacher=teacher), data)
    assert str(caught.value) == (
        "tuning: loss='kd' needs a soft loss, and the task 'regression, 2 outputs' has none; use loss='task', or give "
        "the task one."
    )


def test_a_teacher_with_other_outputs():
    own, teacher = graph_of(small_resnet((1, 1)), X), graph_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), X)
    with pytest.raises(TuningError) as caught:
        loss_with((own, teacher))
    assert str(caught.value) == (
        "tuning: the teacher answers a batch with (8, 7), the network with (8, 10); give a teacher with the same "
        "outputs, or use loss='task'."
    )


def test_terms_that_compare_need_a_teacher():
    with pytest.raises(TuningError) as caught:
        loss_of(graph_of(small_resnet((1, 1)), X), TuneRequest(hint_weight=1.0), DATA)
    assert str(caught.value) == (
        "tuning: contrast_weight, hint_weight and attention_weight compare the network with a teacher, and there is "
        "none; give TuneRequest(teacher=...)."
    )


def test_contrast_is_the_formula_of_the_paper():
    """Two classes of three samples, worked out with loops."""
    torch.manual_seed(0)
    classes = torch.tensor([0, 0, 0, 1, 1, 1])
    contrast = Contrast(5, 4, classes, 3, torch.Generator().manual_seed(1))
    own, taught, index = torch.randn(2, 5), torch.randn(2, 4), torch.tensor([1, 4])
    banks = contrast.bank_own.clone(), contrast.bank_taught.clone()
    others = []
    draw = contrast._others
    contrast._others = lambda index: others.append(draw(index)) or others[0]
    found = contrast(own, taught, index)
    assert (classes[others[0]] != classes[index][:, None]).all()
    a = F.normalize(contrast.embed_own(own), dim=1).detach()
    b = F.normalize(contrast.embed_taught(taught), dim=1).detach()
    total = 0.0
    for anchors, bank in ((a, banks[1]), (b, banks[0])):
        rows = [[index[i], *others[0][i]] for i in range(2)]
        raw = [[math.exp(float(anchors[i] @ bank[j]) / 0.07) for j in rows[i]] for i in range(2)]
        scale = sum(map(sum, raw)) / 8 * 6
        for row in raw:
            positive, *negatives = (value / scale for value in row)
            total -= math.log(positive / (positive + 3 / 6)) / 2
            total -= sum(math.log((3 / 6) / (value + 3 / 6)) for value in negatives) / 2
    assert found.item() == pytest.approx(total, rel=1e-4)
    torch.testing.assert_close(contrast.bank_own[1], F.normalize((banks[0][1] + a[0]) / 2, dim=0))
    assert torch.equal(contrast.bank_own[0], banks[0][0])


def test_contrast_trains_its_embeddings_and_needs_to_know_the_samples(pair):
    value, loss = loss_with(
        pair, index=torch.arange(8), hard_weight=1.0, soft_weight=0.0, contrast_weight=0.8, negatives=16
    )
    assert {name.split(".")[0] for name, _ in loss.modules.named_parameters()} == {"contrast"}
    value.backward()
    assert all(parameter.grad is not None for parameter in loss.modules.parameters())
    with pytest.raises(TuningError) as caught:
        loss_with(pair, contrast_weight=0.8)
    assert str(caught.value) == (
        "tuning: contrast_weight needs to know which samples a batch has; give loss(network, batch, index)."
    )


def test_attention_maps_are_means_of_squares_of_length_one():
    one = torch.tensor([[[[3.0, 0.0], [0.0, 4.0]]]])
    flat = torch.ones(1, 2, 2, 2)
    left = torch.tensor([9.0, 0, 0, 16]) / math.sqrt(81 + 256)
    assert float(attention_loss([one], [flat])) == pytest.approx(float((left - 0.5).square().mean()))
    assert float(attention_loss([one], [5 * one])) == pytest.approx(0)


@pytest.mark.parametrize("what", ["hint_weight", "attention_weight"])
def test_features_come_nearer_to_those_of_the_teacher(pair, what):
    own, teacher = pair
    before, _ = loss_with(pair, loss="task", **{what: 1.0})
    task, _ = loss_with(pair, loss="task")
    request = TuneRequest(loss="task", teacher=teacher, learning_rate=0.02, from_scratch=True, **{what: 100.0})
    kept = set(own.state_dict())
    Trainer(digits(), epochs=2).tune(own, request, seed=0, on_epoch=silent)
    assert set(own.state_dict()) == kept
    after = loss_with(pair, loss="task", **{what: 1.0})[0] - loss_with(pair, loss="task")[0]
    assert after < before - task


def test_nodes_are_named_for_both_networks_or_taken_evenly(pair):
    own, teacher = pair
    assert len(hinted(None, own, teacher, (X,))) == 2
    name = next(node.name for node in own.graph.nodes if node.name.startswith("relu"))
    assert hinted((name, f"{name}=flatten"), own, teacher, (X,)) == [(name, name), (name, "flatten")]
    with pytest.raises(TuningError) as caught:
        hinted(("relu=nowhere",), own, teacher, (X,))
    assert str(caught.value) == "tuning: layers names 'nowhere', but the teacher has no such node."


def test_a_network_without_feature_maps():
    flat = graph_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), X)
    with pytest.raises(TuningError) as caught:
        loss_of(flat, TuneRequest(teacher=flat, attention_weight=1.0), DATA)
    assert str(caught.value) == (
        "tuning: a network has no place whose feature maps could be compared; name some in layers=, or leave "
        "hint_weight and attention_weight out."
    )


def test_a_tapped_network_is_the_network_with_values_beside(pair):
    own, _ = pair
    tapped = Tapped(own.eval(), [penultimate(own)])
    output, (features,) = tapped(X)
    assert torch.equal(output, own(X)) and features.shape == (8, 8)
    assert {id(each) for each in tapped.parameters()} == {id(each) for each in own.parameters()}
    torch.testing.assert_close(own.fc.weight @ features[0] + own.fc.bias, output[0])


def test_exits_learn_from_the_final_output_which_learns_nothing_from_them():
    outputs = tuple(torch.randn(4, 3, requires_grad=True) for _ in range(3))
    task = DATA.purpose
    loss = self_distillation(task, outputs, 2.0)
    expected = soft_loss(outputs[0], outputs[2], 2.0) + soft_loss(outputs[1], outputs[2], 2.0)
    assert loss.item() == pytest.approx(expected.item())
    loss.backward()
    assert outputs[0].grad is not None and outputs[2].grad is None
    assert float(self_distillation(task, outputs[2:], 2.0)) == 0


def test_groups_are_output_channels_of_all_but_the_last_layer():
    model = graph_of(nn.Sequential(nn.Linear(4, 2, bias=False), nn.ReLU(), nn.Linear(2, 3)), torch.zeros(2, 4))
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([[3.0, 4, 0, 0], [0, 0, 0, 0]]))
    assert float(GroupLasso(2.0).term(model)().detach()) == pytest.approx(2 * 5 / 2)


def test_sparsity_makes_channels_small_before_the_next_round():
    def norms(**options):
        trainer = Trainer(DATA, epochs=2)
        tuning = {"prune-channels": {"loss": "task", **options}}
        small = chainfx.compile(
            small_resnet((1, 1)),
            [PruneChannels(0.25, rounds=2, keep=True)],
            example_inputs=X,
            trainer=trainer,
            tuning=tuning,
            warn_drop=None,
            engine="float",
        )
        weights = [v for k, v in small.graph_module.named_parameters() if v.dim() == 4]
        return sum(float(weight.detach().norm()) for weight in weights)

    assert norms(sparsity=1.0, learning_rate=0.02) < norms(learning_rate=0.02)


def test_mixup_mixes_samples_and_their_losses(pair):
    generator = torch.Generator().manual_seed(0)
    images, targets, other, share = Mixing(1.0, 0, generator)(BATCH)
    order = [int((BATCH[1] == target).nonzero()[0]) for target in other]
    assert 0 < share < 1 and images[0].shape == BATCH[0][0].shape
    assert torch.equal(targets, BATCH[1]) and sorted(other.tolist()) == sorted(targets.tolist())
    assert len(order) == 8
    difference = (images[0] - share * BATCH[0][0]) / (1 - share)
    assert all(any(torch.allclose(row, each, atol=1e-4) for each in BATCH[0][0]) for row in difference)


def test_cutout_is_a_square_of_zeros_in_every_image():
    ones = torch.ones(64, 2, 8, 8)
    (cut,), _, other, share = Mixing(0.0, 4, torch.Generator().manual_seed(0))(((ones,), torch.zeros(64)))
    holes = (cut == 0).sum((1, 2, 3)) / 2
    assert holes.max() == 16 and holes.min() >= 4 and (other, share) == (None, 1.0)
    assert torch.equal(cut[:, 0], cut[:, 1])


@pytest.mark.parametrize("options", [{"mixup": 0.5}, {"cutout": 3}, {"ema": 0.9}, {"restarts": 1}, {"sparsity": 0.01}])
def test_options_of_the_request_change_the_result(options):
    def weights(**given):
        torch.manual_seed(0)
        model = graph_of(small_resnet((1, 1)), X)
        request = TuneRequest(loss="task", from_scratch=True, **given)
        Trainer(DATA, epochs=1, batch_size=64).tune(model, request, seed=0, on_epoch=silent)
        return model.get_parameter("fc.weight")

    assert not torch.equal(weights(), weights(**options))


def test_body_and_heads_train_together_where_asked(monkeypatch):
    class Watch(Trainer):
        def tune(self, graph_module, request, *, seed, on_epoch):
            before = copy.deepcopy(graph_module.state_dict())
            super().tune(graph_module, request, seed=seed, on_epoch=on_epoch)
            moved.update(k for k, v in graph_module.state_dict().items() if not torch.equal(v, before[k]))

    for body in ("frozen", "joint"):
        moved = set()
        one = EarlyExit(exits=1, threshold=0.9, keep=True, body=body)
        chainfx.compile(small_resnet((1, 1)), [one], example_inputs=X, trainer=Watch(DATA, epochs=1), warn_drop=None)
        assert ("conv1.weight" in moved) == (body == "joint")
        assert any(name.startswith("exit1") for name in moved)


def test_a_student_with_exits_learns_exit_by_exit():
    exits = EarlyExit(exits=1, threshold=0.9, keep=True)
    context = PassContext(graph_of(small_resnet((1, 1)), X), (X,), tunes=True)
    teacher = exits.apply(graph_of(small_resnet((1, 1)), X), context).graph_module
    student = exits.apply(graph_of(small_resnet(width=3), X), context).graph_module
    result = Distill(student=student).apply(teacher, context)
    assert result.tune.distil_exits and len(exits_of(result.graph_module)) == 1
    shorter = Distill(depth=0.5).apply(graph_of(small_resnet((2, 2)), X), context)
    assert not shorter.tune.distil_exits
    kept = Distill(width=0.5).apply(exits.apply(graph_of(small_resnet((1, 1)), X), context).graph_module, context)
    assert kept.tune.distil_exits


def test_the_answers_of_a_teacher_are_kept_where_the_images_stay_the_same():
    def runs(**options):
        teacher, seen = graph_of(small_resnet((1, 1)), X), []
        trainer = Trainer(DATA, epochs=3, batch_size=50, **options)
        model = graph_of(small_resnet(width=3), X)
        teacher.flatten.register_forward_hook(lambda module, args, out: seen.append(len(out)))
        request = TuneRequest(loss="kd", teacher=teacher, from_scratch=True)
        trainer.tune(model, request, seed=0, on_epoch=silent)
        return sum(seen), model.get_parameter("fc.weight")

    count, weight = runs()
    asked, other = runs(augment=Augment(padding=0, flip=False))
    assert count <= len(DATA.train) < 450 == asked  # three epochs of three batches
    torch.testing.assert_close(weight, other, rtol=1e-3, atol=1e-4)


def test_a_loop_of_one_s_own():
    seen = []

    def loop(graph_module, request):
        seen.append((request.loss, graph_module.training, graph_module.fc.weight.requires_grad))
        loss = loss_of(graph_module, request, DATA)
        optimizer = torch.optim.SGD(graph_module.parameters(), 0.01)
        loss(graph_module, BATCH).backward()
        optimizer.step()

    trainer = OwnTrainer(DATA, loop, "one step")
    small = chainfx.compile(small_resnet((1, 1)), [Quantize(8, 8)], example_inputs=X, trainer=trainer, warn_drop=None)
    assert seen == [("recover", True, True)] and small.report.records[-1].tuned
    assert trainer.fingerprint != OwnTrainer(DATA, loop, "two steps").fingerprint

    def breaks(graph_module, request):
        graph_module.fc.bias.data.fill_(math.inf)

    with pytest.raises(TuningError) as caught:
        chainfx.compile(
            small_resnet((1, 1)), [Quantize(8, 8)], example_inputs=X, trainer=OwnTrainer(DATA, breaks, "bad")
        )
    assert str(caught.value) == (
        "tuning: the training loop 'bad' left values in 'fc.bias' that are not finite; lower its learning rate."
    )


def test_no_warning_is_given_in_ordinary_training():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trainer(DATA, epochs=1).tune(graph_of(small_resnet((1, 1)), X), TuneRequest(ema=0.9), seed=0, on_epoch=silent)
