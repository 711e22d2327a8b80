"""A training loop of one's own with Lightning.

Run it with ``python examples/own_loop_lightning.py``; it needs ``pip install 'chainfx[examples]'``.
"""

import lightning
import torch
from torch import nn
from torch.fx import GraphModule
from torch.utils.data import DataLoader, TensorDataset

import chainfx
from chainfx.passes import Quantize, TuneRequest
from chainfx.training import OwnTrainer, digits, loss_of

DATA = digits()


class Tuning(lightning.LightningModule):
    """The graph, trained on the loss that a pass asks for."""

    def __init__(self, graph_module: GraphModule, request: TuneRequest) -> None:
        super().__init__()
        self.graph_module = graph_module
        self.loss = loss_of(graph_module, request, DATA)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        """The loss of a batch."""
        images, labels = batch
        return self.loss(self.graph_module, ((images,), labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over what the request names."""
        return torch.optim.Adam([each for each in self.graph_module.parameters() if each.requires_grad], 1e-3)


def tune(graph_module: GraphModule, request: TuneRequest) -> None:
    """One epoch; everything that Lightning prints and saves is off."""
    inputs, targets = next(DATA.train.batches(len(DATA.train)))
    loader = DataLoader(TensorDataset(*inputs, targets), 64, shuffle=True)
    trainer = lightning.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
    )
    trainer.fit(Tuning(graph_module, request), loader)


def main() -> chainfx.CompressedModel:
    """Compress a network, tuned by the loop above."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    chainfx.training.Trainer(DATA, epochs=5).fit(network)
    trainer = OwnTrainer(DATA, tune, "Lightning, Adam 1e-3, one epoch")
    return chainfx.compile(network.eval(), [Quantize(2, 4)], example_inputs=DATA.example_inputs(2), trainer=trainer)


if __name__ == "__main__":
    print(main().report)
