"""Graphs as text that a reader compares: one line a node, what it calls, what it reads, and the shape it gives."""

from pathlib import Path

import torch
from torch.fx import Node

FOLDER = Path(__file__).parent / "golden"


def graph_text(graph_module):
    """The graph without the lines of stored tensors, which stand where they are read: ``conv.weight[4x1x3x3]``.

    A mask also says how many weights it lets stay.
    """
    lines = []
    for node in graph_module.graph.nodes:
        if node.op == "placeholder":
            lines.append(f"{node.name}  # {_shape(node.meta['val'])}")
        elif node.op == "output":
            lines.append(f"return {_shown(graph_module, node.args[0])}")
        elif node.op != "get_attr":
            given = [_shown(graph_module, value) for value in node.args]
            given += [f"{key}={_shown(graph_module, value)}" for key, value in node.kwargs.items()]
            shape = f"  # {_shape(value)}" if isinstance(value := node.meta.get("val"), torch.Tensor) else ""
            lines.append(f"{node.name} = {_called(graph_module, node)}({', '.join(given)}){shape}")
    return "\n".join(f"    {line}" for line in lines)


def result_text(before, result):
    """What a pass made of a graph: the text of the graph before, that after, and what the pass says of it."""
    changed = before != graph_text(result.graph_module)
    after = graph_text(result.graph_module) if changed else "    the same"
    skipped = [f"    {item.node}: {item.reason}" for item in result.skipped] or ["    nothing"]
    asks = "nothing" if result.tune is None else result.tune.loss
    parts = [("before", before), ("after", after), ("skipped", "\n".join(skipped))]
    body = "\n".join(f"{title}:\n{text}" for title, text in parts)
    return f"{body}\nmodified: {result.modified}\nasks to tune: {asks}\n"


def compare(name, text, *, accept, folder=FOLDER):
    """Assert that ``text`` is what the file of that name holds; ``accept``: write it there instead."""
    path = folder / f"{name}.txt"
    if accept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return
    assert path.exists(), f"{path} does not exist; run pytest --accept once and read what it wrote"
    assert text == path.read_text(), f"{path} holds another text; if the new one is right, run pytest --accept"


def _called(graph_module, node):
    if node.op == "call_module":
        return f"{node.target}<{type(graph_module.get_submodule(node.target)).__name__}>"
    return f".{node.target}" if node.op == "call_method" else node.target.__name__


def _shown(graph_module, value):
    if isinstance(value, Node):
        if value.op != "get_attr":
            return value.name
        path, _, name = value.target.rpartition(".")
        tensor = getattr(graph_module.get_submodule(path), name)
        kept = f", {int(tensor.sum())} stay" if tensor.dtype is torch.bool else ""
        return f"{value.target}[{_shape(tensor)}{kept}]"
    if isinstance(value, tuple | list):
        inside = ", ".join(_shown(graph_module, item) for item in value)
        return f"({inside}{',' if len(value) == 1 else ''})"
    return repr(value)


def _shape(tensor):
    return "x".join(map(str, tensor.shape)) or "scalar"
