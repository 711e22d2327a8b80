"""Run what ``small.export(folder, format="onnx")`` wrote with numpy and ONNX Runtime alone; without exits too.

Usage: python run_onnx.py FOLDER INPUT.npy [INPUT.npy ...]
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


class Network:
    """The segments of an exported network; a sample that is sure at an exit leaves, and the others go on."""

    def __init__(self, folder):
        folder, options = Path(folder), onnxruntime.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", "1")  # exact sums also without VNNI instructions
        self.segments = json.loads((folder / "manifest.json").read_text())["segments"]
        self.sessions = [onnxruntime.InferenceSession(folder / each["file"], options) for each in self.segments]

    def __call__(self, *inputs):
        """The outputs of the network; with exits the logits (N, classes), in the order of the samples."""
        rows, values, answers = np.arange(len(inputs[0])), list(inputs), None
        for segment, session in zip(self.segments, self.sessions, strict=True):
            outputs = session.run(None, dict(zip(segment["inputs"], values, strict=True)))
            if answers is None and segment["exit"] is None:
                return outputs
            answers = np.empty((len(rows), *outputs[0].shape[1:]), outputs[0].dtype) if answers is None else answers
            answers[rows] = outputs[0]
            stay = ~(outputs[1] >= segment["exit"]["threshold"]) if segment["exit"] else np.zeros(len(rows), bool)
            rows, values = rows[stay], [value[stay] for value in outputs[2:]]
            if not len(rows):
                break
        return [answers]


if __name__ == "__main__":
    print(*Network(sys.argv[1])(*map(np.load, sys.argv[2:])), sep="\n")
