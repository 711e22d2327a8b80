"""Capture: from a ``torch.nn.Module`` to a ``torch.fx`` graph in train form.

:func:`capture` is what everybody calls. It traces the model symbolically where that works, with the sizes of the
example inputs where it does not, and asks ``torch.export`` last. Captures of several threads wait for each other, and
other threads notice nothing of a trace. The model that is captured is put into train and eval mode for moments, so it
is not to be run elsewhere meanwhile.
"""

from chainfx.ir.capture.batch_dims import batch_first, check_batch_first, with_forward
from chainfx.ir.capture.dynamo import DynamoGraph
from chainfx.ir.capture.export import export_to_read
from chainfx.ir.capture.folding import FoldedWeight
from chainfx.ir.capture.parameters import Input, Omitted
from chainfx.ir.capture.signature import Signature, signature_of
from chainfx.ir.capture.ways import CaptureReport, OpaqueLeaf, capture, capture_to_read, capture_with_report
from chainfx.ir.capture.wrappers import unwrapped

__all__ = [
    "CaptureReport",
    "DynamoGraph",
    "FoldedWeight",
    "Input",
    "Omitted",
    "OpaqueLeaf",
    "Signature",
    "batch_first",
    "capture",
    "capture_to_read",
    "capture_with_report",
    "check_batch_first",
    "export_to_read",
    "signature_of",
    "unwrapped",
    "with_forward",
]
