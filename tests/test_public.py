"""The public names and the cost of importing them, so that a change of either is seen."""

import subprocess
import sys

import chainfx

PUBLIC = {
    "chainfx": "CompressedModel CostReport Plan capture compile count errors load passes plan",
    "chainfx.passes": "Distill EarlyExit Epoch Fuse Granularity Kind LowRank NEEDS Pass PassContext PassInfo "
    "PassResult PruneChannels PruneHeads PruneWeights Quantize Skipped Trainer TuneRequest get_pass "
    "pass_from_spec pass_names",
    "chainfx.errors": "ArtifactError CaptureError ChainfxError CostError DataError GraphError InputError PassError "
    "RecipeError ScheduleError StageWarning TuningError",
    "chainfx.training": "Augment Data Trainer digits from_arrays from_dataset from_folder from_loaders from_npz "
    "from_torchvision",
}


def test_the_public_names_are_these():
    import importlib

    for module, names in PUBLIC.items():
        found = importlib.import_module(module)
        assert sorted(found.__all__) == sorted(names.split()), module
        assert all(getattr(found, name).__doc__ for name in found.__all__), module


def test_the_attributes_users_rely_on():
    report = {"macs", "bitops", "expected_bitops", "storage_bits", "rows", "uncounted", "convention"}
    fields = set(chainfx.CostReport.__dataclass_fields__) | set(dir(chainfx.CostReport))
    assert report <= fields
    assert {"order", "edges"} <= set(chainfx.Plan.__dataclass_fields__) | set(dir(chainfx.Plan))


def test_importing_chainfx_loads_no_heavy_library():
    code = (
        "import sys, chainfx; heavy = ('torchvision', 'torchao', 'accelerate', 'sklearn', 'scipy', 'timm', 'pandas');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
