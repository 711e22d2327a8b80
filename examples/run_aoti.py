"""Run what ``small.export(folder, format="aoti")`` wrote with torch alone; without exits too.

Usage: python run_aoti.py FOLDER INPUT.pt [INPUT.pt ...]
"""

import json
import sys
from pathlib import Path

import torch


class Network:
    """The packages of an exported network; a sample that is sure at an exit leaves, and the others go on."""

    def __init__(self, folder):
        folder = Path(folder)
        self.segments = json.loads((folder / "manifest.json").read_text())["segments"]
        self.packages = [torch._inductor.aoti_load_package(str(folder / each["file"])) for each in self.segments]

    @torch.no_grad()
    def __call__(self, *inputs):
        """The answer of the network; with exits the logits (N, classes), in the order of the samples."""
        rows, values, answers = torch.arange(len(inputs[0])), inputs, None
        for segment, package in zip(self.segments, self.packages, strict=True):
            outputs = package(*values)
            if segment["exit"] is None:
                if answers is None or len(rows) == len(answers):
                    return outputs
                answers[rows] = outputs
                break
            logits, sure, *values = outputs
            stay = ~(sure >= segment["exit"]["threshold"])
            if answers is None:
                if not stay.any():
                    return logits
                answers = torch.empty_like(logits)
            answers[rows] = logits
            rows, values = rows[stay], [value[stay] for value in values]
            if not len(rows):
                break
        return answers


if __name__ == "__main__":
    print(Network(sys.argv[1])(*map(torch.load, sys.argv[2:])))
