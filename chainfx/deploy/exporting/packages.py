"""Packages of AOTInductor: a segment as machine code for this kind of processor, checked before it is handed over."""

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule

from chainfx.deploy.exporting.agreement import disagreement, random_inputs
from chainfx.deploy.exporting.inductor import inductor_options
from chainfx.deploy.integers import Lowered
from chainfx.errors import ArtifactError

__all__ = ["integer_calls", "write_packages"]

_CALL = re.compile(r"aoti_torch_cpu__q(?:conv|linear)\w*\(")


def write_packages(
    segments: Sequence[GraphModule],
    programs: Sequence[ExportedProgram],
    files: Sequence[Path],
    inputs: Sequence[Tensor],
    rows: Sequence[Lowered],
) -> None:
    """Compile each exported segment into a package, and compare what it answers with the segment itself.

    ``rows``: one for each layer, whose engine is ``"float"`` unless it must be in integers. Raises
    :class:`~chainfx.errors.ArtifactError` if the packages have another number of integer calls, or answer otherwise.
    """
    options = inductor_options("format='aoti'")
    for program, file in zip(programs, files, strict=True):
        with torch.no_grad():
            torch._inductor.aoti_compile_and_package(program, package_path=str(file), inductor_configs=options)
    expected, found = sum(row.engine != "float" for row in rows), sum(map(integer_calls, files))
    if found != expected:
        raise ArtifactError(
            f"the package has {found} integer calls, but {expected} layers run in integers on the int8 engine; this "
            f"version of torch and torchao does not find all of them, so export to 'onnx', or use the int8 engine."
        )
    values = random_inputs(inputs)
    for segment, file in zip(segments, files, strict=True):
        with torch.no_grad():
            expected = segment(*values)
            difference = disagreement(expected, torch._inductor.aoti_load_package(str(file)), values)
        if difference:
            raise ArtifactError(
                f"{file.name} answers otherwise than the network: {difference}; this version of torch compiles it "
                f"wrongly, so export to 'onnx' or 'pt2'."
            )
        values = tuple(expected[2:]) if isinstance(expected, tuple) else ()


def integer_calls(file: Path) -> int:
    """How many calls of integer kernels are in the code of a package."""
    with zipfile.ZipFile(file) as package:
        sources = [package.read(name).decode() for name in package.namelist() if name.endswith(".wrapper.cpp")]
    return sum(len(_CALL.findall(source)) for source in sources)
