"""A training loop of one's own, in plain torch: quantize a small network for handwritten digits.

Run it with ``python examples/own_loop.py``.
"""

import torch
from torch import nn
from torch.fx import GraphModule

import chainfx
from chainfx.passes import Quantize, TuneRequest
from chainfx.training import OwnTrainer, digits, loss_of

DATA = digits()


def tune(graph_module: GraphModule, request: TuneRequest) -> None:
    """One epoch of Adam on the loss that the pass asks for: distillation from the original network."""
    loss = loss_of(graph_module, request, DATA)
    parameters = [each for each in graph_module.parameters() if each.requires_grad]
    optimizer = torch.optim.Adam([*parameters, *loss.modules.parameters()], 1e-3)
    for batch in DATA.train.batches(64, torch.Generator().manual_seed(0)):
        optimizer.zero_grad()
        loss(loss.network, batch).backward()
        optimizer.step()


def main() -> chainfx.CompressedModel:
    """Compress a network, tuned by the loop above."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    chainfx.training.Trainer(DATA, epochs=5).fit(network)
    trainer = OwnTrainer(DATA, tune, "Adam 1e-3, one epoch")
    return chainfx.compile(network.eval(), [Quantize(2, 4)], example_inputs=DATA.example_inputs(2), trainer=trainer)


if __name__ == "__main__":
    print(main().report)
