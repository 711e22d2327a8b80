"""The train form: dialect ops, the normal form of layers, exits, shapes, and the rules a graph keeps."""

from chainfx.ir.graph import edit, ops
from chainfx.ir.graph.affine import BATCH_NORMS, affine_of
from chainfx.ir.graph.casts import cast_layer, casts_follow_weights
from chainfx.ir.graph.checks import check_answers, check_rules, verify
from chainfx.ir.graph.content import content_hash
from chainfx.ir.graph.depthwise import DEPTHWISE
from chainfx.ir.graph.edit import (
    LAYERS,
    TRANSPOSED,
    device_of,
    evaluating,
    fresh_path,
    function_of,
    get_tensor,
    groups_of,
    input_of,
    is_dialect,
    modules_by_path,
    origin,
    tensors_of,
)
from chainfx.ir.graph.exits import (
    Answer,
    Exit,
    answer_of,
    choose,
    exit_rates,
    exits_of,
    first_sure,
    leaving,
    output_node,
    segments,
    shares_of,
)
from chainfx.ir.graph.facts import (
    FACTS,
    BitWidths,
    Codebook,
    Coding,
    ExitRule,
    FactChange,
    FactName,
    Facts,
    Mask,
    facts_of,
)
from chainfx.ir.graph.formats import FLOAT32, Format
from chainfx.ir.graph.layer import (
    Layer,
    Skipped,
    Weighted,
    ends_of,
    layer_at,
    layer_path,
    layers_of,
    left_alone,
    select,
    value_of,
)
from chainfx.ir.graph.leaves import ByMode, Scalar, assign_
from chainfx.ir.graph.matrices import Matrix, matrices_of
from chainfx.ir.graph.meta_values import MetaEvaluator, evaluate_graph, needs_data, without_data
from chainfx.ir.graph.mutation import AUGMENTED, changes_in_place, changes_what_is_used, cuts_tensor
from chainfx.ir.graph.operators import Operator, Trait, call_operator, name_of, names_with, operator_of
from chainfx.ir.graph.ops import DIALECT
from chainfx.ir.graph.persistence import mend_copies
from chainfx.ir.graph.randomness import derived_generator, seeded
from chainfx.ir.graph.running import called, has_inference_tensors, lacks_memory, ordinary, recording
from chainfx.ir.graph.shapes import GraphToRead, propagate_shapes, shape_of
from chainfx.ir.graph.sums import summands_of
from chainfx.ir.graph.tables import Table, open_embedding, tables_of
from chainfx.ir.graph.torchao_tensors import (
    read_torchao,
    torchao_parts,
    torchao_text,
    torchao_weight,
    torchao_weight_of,
)

__all__ = [
    "AUGMENTED",
    "BATCH_NORMS",
    "DEPTHWISE",
    "DIALECT",
    "FACTS",
    "FLOAT32",
    "LAYERS",
    "TRANSPOSED",
    "Answer",
    "BitWidths",
    "ByMode",
    "Codebook",
    "Coding",
    "Exit",
    "ExitRule",
    "FactChange",
    "FactName",
    "Facts",
    "Format",
    "GraphToRead",
    "Layer",
    "Mask",
    "Matrix",
    "MetaEvaluator",
    "Operator",
    "Scalar",
    "Skipped",
    "Table",
    "Trait",
    "Weighted",
    "affine_of",
    "answer_of",
    "assign_",
    "call_operator",
    "called",
    "cast_layer",
    "casts_follow_weights",
    "changes_in_place",
    "changes_what_is_used",
    "check_answers",
    "check_rules",
    "choose",
    "content_hash",
    "cuts_tensor",
    "derived_generator",
    "device_of",
    "edit",
    "ends_of",
    "evaluate_graph",
    "evaluating",
    "exit_rates",
    "exits_of",
    "facts_of",
    "first_sure",
    "fresh_path",
    "function_of",
    "get_tensor",
    "groups_of",
    "has_inference_tensors",
    "input_of",
    "is_dialect",
    "lacks_memory",
    "layer_at",
    "layer_path",
    "layers_of",
    "leaving",
    "left_alone",
    "matrices_of",
    "modules_by_path",
    "name_of",
    "names_with",
    "needs_data",
    "open_embedding",
    "operator_of",
    "ops",
    "ordinary",
    "origin",
    "output_node",
    "propagate_shapes",
    "read_torchao",
    "recording",
    "seeded",
    "segments",
    "select",
    "shape_of",
    "shares_of",
    "summands_of",
    "tables_of",
    "tensors_of",
    "torchao_parts",
    "torchao_text",
    "torchao_weight",
    "torchao_weight_of",
    "value_of",
    "verify",
    "without_data",
]

mend_copies()
