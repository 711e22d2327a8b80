"""A training loop of one's own with accelerate, which places what is trained and averages over processes.

Run it with ``python examples/own_loop_accelerate.py``, or with ``accelerate launch``.
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.fx import GraphModule
from torch.utils.data import DataLoader, TensorDataset

import chainfx
from chainfx.passes import Quantize, TuneRequest
from chainfx.training import OwnTrainer, digits, loss_of

DATA = digits()


def tune(graph_module: GraphModule, request: TuneRequest) -> None:
    """One epoch on the loss that the pass asks for."""
    accelerator = Accelerator()
    loss = loss_of(graph_module, request, DATA)
    inputs, targets = next(DATA.train.batches(len(DATA.train)))
    loader = DataLoader(TensorDataset(*inputs, targets), 64, shuffle=True)
    optimizer = torch.optim.Adam([each for each in graph_module.parameters() if each.requires_grad], 1e-3)
    network, optimizer, loader = accelerator.prepare(graph_module, optimizer, loader)
    for images, labels in loader:
        optimizer.zero_grad()
        accelerator.backward(loss(network, ((images,), labels)))
        optimizer.step()


def main() -> chainfx.CompressedModel:
    """Compress a network, tuned by the loop above."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    chainfx.training.Trainer(DATA, epochs=5).fit(network)
    trainer = OwnTrainer(DATA, tune, "accelerate, Adam 1e-3, one epoch")
    return chainfx.compile(network.eval(), [Quantize(2, 4)], example_inputs=DATA.example_inputs(2), trainer=trainer)


if __name__ == "__main__":
    print(main().report)
