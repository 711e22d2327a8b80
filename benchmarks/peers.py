"""The engines that people would use instead of chainfx's, each as a function from a batch to a call that is ready.

A network is given as a module in eval mode with one input, batch first. ``eager``; ``compiled`` and ``compiled bf16``
by ``torch.compile`` with frozen weights; ``torchao int8`` by torchao's PT2E quantization for x86 and
``torch.compile``; ``ort`` and ``openvino`` run the float file that chainfx exports, with BatchNorm folded;
``ort int8`` runs what ONNX Runtime's own ``quantize_static`` makes of that file, ``openvino int8`` what NNCF makes of
it, and the two with ``(qdq)`` the QDQ file that chainfx exports. All of int8 have 7 bits for weights, as processors
without VNNI need, and one scale for each channel. They are installed by ``pip install openvino nncf onnxruntime
torchao``.
"""

import copy
import runpy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import chainfx
from chainfx.deploy import CompressedModel
from chainfx.passes import Fuse

EXAMPLE = Path(__file__).parents[1] / "examples" / "run_aoti.py"
Call = Callable[[], object]
Peer = Callable[[Tensor], Call]

ALL = (
    "eager",
    "openvino",
    "openvino int8",
    "openvino int8 (qdq)",
    "ort",
    "ort int8",
    "ort int8 (qdq)",
    "torchao int8",
    "compiled bf16",
    "compiled",
)
INT8 = ("openvino int8", "openvino int8 (qdq)", "ort int8", "ort int8 (qdq)", "torchao int8")


def usual() -> list[str]:
    """All, but for bfloat16 where the processor has none: torch takes 40 times as long then."""
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return [name for name in ALL if native or name != "compiled bf16"]


def eager(network: Callable[[Tensor], Tensor]) -> Peer:
    """The network as it is."""
    return lambda x: partial(network, x)


def packaged(small: CompressedModel, folder: Path) -> Callable[[Tensor], Tensor] | None:
    """A network as ``small.export(format="aoti")`` writes it; ``None`` without torchao, which it needs.

    It calls the same kernels as the int8 engine, from machine code. Samples leave at exits as ``examples/run_aoti.py``
    has it.
    """
    if find_spec("torchao") is None:
        return None
    small.export(folder, format="aoti")
    network: Callable[[Tensor], Tensor] = runpy.run_path(str(EXAMPLE))["Network"](folder)
    return network


def peers_of(
    network: nn.Module, quantized: CompressedModel, calibration: Tensor, folder: Path, names: Sequence[str] = ALL
) -> dict[str, Peer]:
    """The engines of these names, in the order of ``names``.

    ``quantized``: what chainfx quantized the network to, which the QDQ file is exported of. ``calibration``: some
    inputs, for ranges of activations. ``folder``: where files may lie as long as the peers are used.
    """
    with torch.no_grad():
        exported = Exported(network, quantized, calibration, folder)
        makers: Mapping[str, Callable[[], Peer]] = {
            "eager": lambda: eager(network),
            "openvino": lambda: in_openvino(exported.float),
            "openvino int8": lambda: in_openvino(exported.by_nncf),
            "openvino int8 (qdq)": lambda: in_openvino(exported.qdq),
            "ort": lambda: in_onnxruntime(exported.float),
            "ort int8": lambda: in_onnxruntime(exported.by_onnxruntime),
            "ort int8 (qdq)": lambda: in_onnxruntime(exported.qdq),
            "torchao int8": lambda: compiled(by_torchao(network, calibration)),
            "compiled bf16": lambda: in_bfloat16(network),
            "compiled": lambda: compiled(network),
        }
        return {name: makers[name]() for name in names}


def compiled(network: nn.Module) -> Peer:
    """By ``torch.compile``, for each shape by itself, with weights taken as constants."""
    import torch._dynamo.config
    from torch._inductor import config

    compiling: Any = torch.compile  # typed for functions, it gives a module for a module
    form = compiling(network, dynamic=False)

    def ready(x: Tensor) -> Call:
        # several networks of one class and several shapes are compiled here, more than torch takes of one function
        with config.patch(freezing=True), torch._dynamo.config.patch(recompile_limit=64):
            form(x)
        return partial(form, x)

    return ready


def in_bfloat16(network: nn.Module) -> Peer:
    """All tensors in bfloat16, compiled."""
    ready = compiled(copy.deepcopy(network).to(torch.bfloat16))
    return lambda x: ready(x.to(torch.bfloat16))


def by_torchao(network: nn.Module, calibration: Tensor) -> nn.Module:
    """Quantized by torchao for x86, as its documentation has it; 7 bits for weights, as the processor may need."""
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    batch = torch.export.Dim("batch")
    graph = torch.export.export(network, (calibration,), dynamic_shapes=({0: batch},), strict=True).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(reduce_range=True))
    prepared = prepare_pt2e(graph, quantizer)
    prepared(calibration)
    return convert_pt2e(prepared)


class Exported:
    """The network in ONNX files, each written when it is first asked for."""

    def __init__(self, network: nn.Module, quantized: CompressedModel, calibration: Tensor, folder: Path) -> None:
        self._network, self._quantized, self._calibration, self._folder = network, quantized, calibration, folder

    @property
    def float(self) -> Path:
        """In float, BatchNorm folded."""
        path = self._folder / "float"
        if not path.exists():
            chainfx.compile(self._network, [Fuse()], example_inputs=self._calibration[:2]).export(path)
        return path / "segment0.onnx"

    @property
    def qdq(self) -> Path:
        """Quantized by chainfx, what is added in skip connections too."""
        path = self._folder / "qdq"
        if not path.exists():
            self._quantized.export(path, calibration=[self._calibration])
        return path / "segment0.onnx"

    @property
    def by_onnxruntime(self) -> Path:
        """Quantized by ONNX Runtime, for each channel, 7 bits for weights."""
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        prepared, path = self._folder / "prepared.onnx", self._folder / "onnxruntime.onnx"
        quant_pre_process(self.float, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            path,
            _Reader(prepared, self._calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return path

    @property
    def by_nncf(self) -> Path:
        """Quantized by NNCF, 7 bits for weights."""
        import nncf
        import openvino

        path = self._folder / "nncf.xml"
        inputs = nncf.Dataset([x.numpy() for x in self._calibration.split(1)])
        bits = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
        found = nncf.quantize(openvino.Core().read_model(self.float), inputs, advanced_parameters=bits)
        openvino.save_model(found, path)
        return path


class _Reader:
    """Inputs one by one, as ONNX Runtime's calibration takes them."""

    def __init__(self, path: Path, inputs: Tensor) -> None:
        name = _session(path).get_inputs()[0].name
        self._inputs: Iterator[dict[str, np.ndarray]] = iter([{name: x.numpy()} for x in inputs.split(1)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next input, or nothing after the last."""
        return next(self._inputs, None)


def in_onnxruntime(path: Path) -> Peer:
    """A file in ONNX Runtime."""
    session = _session(path)
    name = session.get_inputs()[0].name
    return lambda x: partial(session.run, None, {name: x.numpy()})


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options)


def in_openvino(path: Path) -> Peer:
    """A file in OpenVINO, compiled for each shape by itself."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    forms: dict[tuple[int, ...], Any] = {}

    def ready(x: Tensor) -> Call:
        shape = tuple(x.shape)
        if shape not in forms:
            core = openvino.Core()
            model = core.read_model(path)
            model.reshape(list(shape))
            forms[shape] = core.compile_model(model, "CPU", options)
        return partial(forms[shape], [x.numpy()])

    return ready
