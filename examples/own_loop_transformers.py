"""A training loop of one's own with the ``Trainer`` of transformers: prune a small BERT that classifies sequences.

Run it with ``python examples/own_loop_transformers.py``; the network has new weights and the data are made up, so that
nothing is downloaded.
"""

import tempfile

import torch
import transformers
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.data import TensorDataset

import chainfx
from chainfx.passes import PruneHeads, TuneRequest
from chainfx.training import OwnTrainer, classes, from_tensors, loss_of

TOKENS = torch.randint(1, 50, (64, 12), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(TOKENS)
DATA = from_tensors((TOKENS, MASK), (TOKENS[:, 0] > 25).long(), task=classes(2))


class Logits(nn.Module):
    """A network of transformers that returns its logits alone, as the task needs them."""

    def __init__(self) -> None:
        super().__init__()
        config = transformers.BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            num_labels=2,
        )
        self.inner = transformers.BertForSequenceClassification(config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (N, 2)."""
        logits: Tensor = self.inner(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


class Tuning(transformers.Trainer):
    """The trainer of transformers with the loss that a pass asks for."""

    def __init__(self, graph_module: GraphModule, request: TuneRequest, folder: str) -> None:
        self.asked = loss_of(graph_module, request, DATA)
        arguments = transformers.TrainingArguments(
            folder,
            max_steps=4,
            per_device_train_batch_size=16,
            report_to=[],
            save_strategy="no",
            use_cpu=not torch.cuda.is_available(),
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        inputs, targets = next(DATA.train.batches(len(DATA.train)))
        super().__init__(graph_module, arguments, train_dataset=TensorDataset(*inputs, targets), data_collator=_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        """The loss of a batch."""
        return self.asked(model, ((inputs["input_ids"], inputs["attention_mask"]), inputs["labels"]))


def _batch(samples: list[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    tensors = (torch.stack(each) for each in zip(*samples, strict=True))
    return dict(zip(("input_ids", "attention_mask", "labels"), tensors, strict=True))


def tune(graph_module: GraphModule, request: TuneRequest) -> None:
    """A few steps of the trainer of transformers."""
    with tempfile.TemporaryDirectory() as folder:
        Tuning(graph_module, request, folder).train()


def main() -> chainfx.CompressedModel:
    """Compress the network, tuned by the trainer above."""
    torch.manual_seed(0)
    network = Logits().eval()
    trainer = OwnTrainer(DATA, tune, "transformers, four steps")
    return chainfx.compile(network, [PruneHeads(0.5)], example_inputs=DATA.example_inputs(2), trainer=trainer)


if __name__ == "__main__":
    print(main().report)
