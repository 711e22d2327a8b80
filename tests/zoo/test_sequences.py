"""The networks that read sequences compute what torch's own layers compute, and every pass of the chain sees inside."""

import pytest
import torch
from torch import nn

import chainfx
from chainfx.passes import PostTrainingQuantize, PruneChannels
from chainfx.zoo import gru, vit

IMAGES = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def small_vit(patch=(2, 2)):
    return vit((8, 8), patch, width=16, depth=2, heads=2, in_channels=1)


def small_gru():
    return gru(steps=8, inputs=8, width=6, depth=2)


@torch.no_grad()
def test_gated_units_are_those_of_torch():
    net = small_gru().eval()
    same = nn.GRU(6, 6, num_layers=2, batch_first=True)
    for index, layer in enumerate(net.layers):
        cell, theirs = layer.cell, dict(same.named_parameters())
        theirs[f"weight_ih_l{index}"].copy_(torch.cat([each.weight for each in (cell.reset, cell.keep, cell.new)]))
        theirs[f"bias_ih_l{index}"].copy_(torch.cat([each.bias for each in (cell.reset, cell.keep, cell.new)]))
        state = (cell.reset_state, cell.keep_state, cell.new_state)
        theirs[f"weight_hh_l{index}"].copy_(torch.cat([each.weight for each in state]))
        theirs[f"bias_hh_l{index}"].zero_()
    states, _ = same(net.embed(IMAGES[:, 0]))
    assert torch.allclose(net(IMAGES), net.head(states[:, -1]), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("patch", [(2, 2), (1, 8)])
def test_blocks_of_attention_are_those_of_torch(patch):
    net = small_vit(patch).eval()
    x = net.embed(IMAGES).flatten(2).transpose(1, 2) + net.position
    assert x.shape[1] == 64 // (patch[0] * patch[1])
    for block in net.blocks:
        same = nn.TransformerEncoderLayer(16, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True).eval()
        parts = [block.attention.query, block.attention.key, block.attention.value]
        same.self_attn.in_proj_weight.copy_(torch.cat([each.weight for each in parts]))
        same.self_attn.in_proj_bias.copy_(torch.cat([each.bias for each in parts]))
        pairs = [(same.self_attn.out_proj, block.attention.out), (same.norm1, block.norm1), (same.norm2, block.norm2)]
        for theirs, mine in [*pairs, (same.linear1, block.mlp[0]), (same.linear2, block.mlp[2])]:
            theirs.load_state_dict(mine.state_dict())
        x = same(x)
    assert torch.allclose(net(IMAGES), net.head(net.norm(x).mean(1)), atol=1e-5)


@pytest.mark.parametrize("make", [small_vit, small_gru])
@pytest.mark.parametrize(
    "one", [PruneChannels(0.5, round_to=1, keep=True), PostTrainingQuantize(8, 8)], ids=["prune", "quantize"]
)
def test_passes_see_inside(make, one):
    small = chainfx.compile(make().eval(), [one], example_inputs=IMAGES, calibration=[IMAGES], engine="float")
    before, after = (record.after for record in small.report.records)
    assert small(IMAGES).shape == (3, 10) and after.bitops < before.bitops / 2
