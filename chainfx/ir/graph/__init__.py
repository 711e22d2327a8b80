"""The train form: dialect ops, the normal form of layers, exits, shapes, and the rules a graph keeps."""

from chainfx.ir.graph import edit, ops
from chainfx.ir.graph.checks import verify
from chainfx.ir.graph.depthwise import DEPTHWISE
from chainfx.ir.graph.edit import (
    LAYERS,
    TRANSPOSED,
    evaluating,
    fresh_path,
    get_tensor,
    groups_of,
    is_dialect,
    modules_by_path,
    origin,
    tensors_of,
)
from chainfx.ir.graph.exits import Answer, Exit, choose, exit_rates, exits_of, output_node, segments
from chainfx.ir.graph.formats import FLOAT32, Format
from chainfx.ir.graph.layer import Skipped, beneath_mask, layer_path, mask_of, select_layers
from chainfx.ir.graph.leaves import ByMode, Scalar, assign_
from chainfx.ir.graph.meta_values import MetaEvaluator, evaluate_graph, needs_data, without_data
from chainfx.ir.graph.operators import CONSTRUCTORS, ELEMENTWISE, MOVEMENT, TRANSPARENT, key_of, operator_key
from chainfx.ir.graph.ops import DIALECT
from chainfx.ir.graph.shapes import GraphToRead, propagate_shapes, shape_of

__all__ = [
    "CONSTRUCTORS",
    "DEPTHWISE",
    "DIALECT",
    "ELEMENTWISE",
    "FLOAT32",
    "LAYERS",
    "MOVEMENT",
    "TRANSPARENT",
    "TRANSPOSED",
    "Answer",
    "ByMode",
    "Exit",
    "Format",
    "GraphToRead",
    "MetaEvaluator",
    "Scalar",
    "Skipped",
    "assign_",
    "beneath_mask",
    "choose",
    "edit",
    "evaluate_graph",
    "evaluating",
    "exit_rates",
    "exits_of",
    "fresh_path",
    "get_tensor",
    "groups_of",
    "is_dialect",
    "key_of",
    "layer_path",
    "mask_of",
    "modules_by_path",
    "needs_data",
    "operator_key",
    "ops",
    "origin",
    "output_node",
    "propagate_shapes",
    "segments",
    "select_layers",
    "shape_of",
    "tensors_of",
    "verify",
    "without_data",
]
