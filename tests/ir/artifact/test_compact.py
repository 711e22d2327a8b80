"""The compact manifest: whatever the nodes are called and read, it unfolds into what it was."""

import json

from hypothesis import given
from hypothesis import strategies as st

from chainfx.ir.artifact.compact import compact, unfolded

TARGETS = ("a.weight", "b.mask", "torch:relu", "chainfx:look_up", "a")
OPS = ("placeholder", "get_attr", "call_function", "call_method", "call_module", "output")


@st.composite
def bodies(draw):
    """Nodes of usual and other names that read earlier ones, in any depth, and tensors that they read or not."""
    nodes, names = [], []
    for place in range(draw(st.integers(0, 8))):
        target = draw(st.sampled_from(TARGETS))
        base = target.rpartition(":")[2].replace(".", "_")
        name = draw(st.sampled_from([base, f"{base}_1", f"{base}_{place}", f"node_{place}", "relu_x"]))
        if name in names:
            name = f"other_{place}"
        read = [{"node": each} for each in draw(st.lists(st.sampled_from(names), max_size=3))] if names else []
        args = draw(st.sampled_from([[], read, [{"tuple": read}, 1, "node"], [[read, {"slice": [None, 1, None]}]]]))
        kwargs = draw(st.sampled_from([{"dict": []}, {"dict": [["inplace", False], ["of", args]]}]))
        nodes.append([name, draw(st.sampled_from(OPS)), target, args, kwargs])
        names.append(name)
    entries = st.sampled_from(["a.weight", "b.mask", "c"]).flatmap(
        lambda name: st.sampled_from(
            [
                [name, "parameter", True, "float32", [2]],
                [name, "buffer", False, "bool", [2, 3]],
                [name, "buffer", False, "uint8", [2, 3], "b.mask"],
                [name, "parameter", True, "a.weight"],
            ]
        )
    )
    return {"class_name": "Net", "nodes": nodes, "tensors": draw(st.lists(entries, max_size=5)), "extra": {"node": 1}}


@given(bodies())
def test_it_unfolds_into_what_it_was(body):
    assert unfolded(json.loads(json.dumps(compact(body)))) == body


def test_usual_names_are_left_out_and_others_are_not():
    none = {"dict": []}
    calls = ("look_up", "look_up_1", "look_up_7", "look_up_8", "book")
    nodes = [[name, "call_function", "chainfx:look_up", [], none] for name in calls]
    rows = compact({"nodes": nodes, "tensors": []})["nodes"]
    usual = [2, "chainfx:look_up"]
    assert rows == [usual, usual, [*usual, [], none, "look_up_7"], usual, [*usual, [], none, "book"]]
