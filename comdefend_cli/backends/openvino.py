"""Both networks on a CPU by OpenVINO (extra [openvino]), which fuses the layers: in float32, bfloat16 and 8-bit integers."""

from __future__ import annotations

import copy
import os
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from comdefend_cli.errors import ComdefendError, UsageError, WeightsError, explain
from comdefend_cli.network.layers import ELU, SLOPE, Conv3x3, LeakyReLU, Residual
from comdefend_cli.network.model import ComDefend, Network
from comdefend_cli.network.weight_file import Quantized
from comdefend_cli.runtime.device import cpu_has_bfloat16
from comdefend_cli.runtime.extras import is_installed, require

#: Names of an exported graph's ends, also in ONNX.
INPUT, OUTPUT = "picture", "purified"
#: OpenVINO's names of precisions; in the networks of 8-bit integers some steps are left to bfloat16 where there is some.
_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}
#: Sides of tiles: all activations of two layers are in memory at once, of 1024 pixels a side in bfloat16 0.8 GB.
_TILES = {"float32": 512, "bfloat16": 1024, "int8": 1024}
#: Pixels of an image above which tiles are `_LARGE_TILE` a side at most: it takes so much memory itself that activations should take less.
_LARGE, _LARGE_TILE = 2**25, 512
#: Kernels that are kept for shapes seen before, a dozen a shape; of OpenVINO's own 5000, a folder of many shapes makes a gigabyte.
_KERNELS = "256"
#: All that `comdefend quantize` writes. A weight file comes from outside: a graph with anything else, such as a loop, is refused.
_OPERATIONS = {"Parameter", "Constant", "Convert", "Subtract", "Multiply", "Add", "Convolution", "Elu", "Greater", "Sigmoid", "Result"}
_OPERATIONS |= {"FakeQuantize", "PRelu", "SpaceToDepth", "DepthToSpace", "ShapeOf", "Gather", "FloorMod", "Pad", "Slice"}


def find_openvino_problem() -> str | None:
    """Why OpenVINO cannot be used here; None where it can."""
    if not openvino_is_installed():
        return "not installed: pip install 'comdefend-cli[openvino]'"
    try:
        get_core()
    except (UsageError, RuntimeError) as error:
        return explain(error)
    return None


def openvino_is_installed() -> bool:
    """Whether OpenVINO is."""
    return is_installed("openvino")


class OpenVINONetworks:
    """Both networks, compiled by OpenVINO for this CPU when they are first called; safe to call from several threads.

    Args:
        model: the networks; they are read now, so that what happens to them later does not matter.
        precision: "auto" (int8 where there is some, else bfloat16 where the CPU multiplies it), "float32", "bfloat16" or "int8".
        quantized: the networks in 8-bit integers, or None.

    Attributes:
        precision: what is computed in, never "auto"; "float32" also where "bfloat16" was asked for on a CPU that has none.

    Raises:
        UsageError: OpenVINO is not installed, or a precision that is not there.
    """

    name = "openvino"

    def __init__(self, model: ComDefend, precision: str = "auto", quantized: Quantized | None = None) -> None:
        if precision == "auto":
            precision = "int8" if quantized else "bfloat16" if cpu_has_bfloat16() else "float32"
        if precision not in _HINTS:
            raise UsageError(f"the openvino backend computes in {', '.join(_HINTS)}, not {precision}")
        if precision == "int8" and quantized is None:
            raise UsageError("these weights hold no int8 networks: make some with comdefend quantize")
        # A CPU without bfloat16 computes in float32 whatever it is told.
        self.precision = "float32" if precision == "bfloat16" and not cpu_has_bfloat16() else precision
        require("openvino", extra="openvino")
        self._networks = quantized if quantized and precision == "int8" else copy.deepcopy(model)
        self._channels = model.architecture.channels
        self._lock = threading.Lock()
        self._compiled: Any = None

    def choose_tile(self, pixels: int) -> int:
        """Side of a tile, smaller for an image of very many pixels."""
        return min(_TILES[self.precision], _LARGE_TILE) if pixels > _LARGE else _TILES[self.precision]

    def __call__(self, x: Tensor) -> Tensor:
        """The image (N, C, H, W), float32 in [0, 1], of one likewise.

        Raises:
            WeightsError: the networks in 8-bit integers are damaged, or are not what `comdefend quantize` writes.
        """
        with self._lock:
            if self._compiled is None:
                self._compiled = _compile(self._networks, self._channels, self.precision)
            result = torch.from_numpy(self._compiled([x.detach().float().cpu().contiguous().numpy()])[0])
        if result.shape != x.shape:
            raise _make_error("their output is not of the image's size")
        return result

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_compiled": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def get_core() -> Any:
    """The `openvino.Core` of this process, one for all networks, which lives as long as the process does.

    A core puts a stack for signals in the place of its thread's own, and puts the other back when it ends. Of two that are alive at once,
    the one that ends last puts back the stack of the one that ended first, which is gone: the next signal that Python handles, Ctrl-C or
    the end of a DataLoader's worker, would end the process with a segmentation fault (seen in OpenVINO 2026.4).

    Raises:
        UsageError: OpenVINO is not installed.
    """
    return _make_core(os.getpid())


@cache
def _make_core(process: int) -> Any:
    return require("openvino", extra="openvino").Core()


def build_graph(model: ComDefend) -> Any:
    """The networks as an `openvino.Model`: an image, float32 (N, C, H, W) in [0, 1] of any N, H and W, to the purified one likewise.

    Built layer by layer, where `openvino.convert_model` would take a trace of the model: that costs 2 s (of `torch.export` 5 s) at each
    start of a command, where this takes 0.02 s.

    Raises:
        UsageError: OpenVINO is not installed.
    """
    ov, op = require("openvino", extra="openvino"), require("openvino.opset13", extra="openvino")

    x = op.parameter([-1, model.architecture.channels, -1, -1], np.float32, name=INPUT)
    scale = model.architecture.scale
    squares = x if scale == 1 else op.space_to_depth(_continue(op, x, scale), "depth_first", scale)
    logits = _add_layers(op, model.com, op.subtract(squares, op.constant(np.float32(0.5))))
    code = op.convert(op.greater(logits, op.constant(np.float32(0))), "f32")
    if scale > 1:
        code = op.space_to_depth(_continue(op, _cut(op, op.depth_to_space(code, "depth_first", scale), x), scale), "depth_first", scale)
    result = op.sigmoid(_add_layers(op, model.rec, code))
    if scale > 1:
        result = _cut(op, op.depth_to_space(result, "depth_first", scale), x)
    result.output(0).set_names({OUTPUT})
    x.output(0).set_names({INPUT})
    return ov.Model([op.result(result)], [x], "comdefend")


def _add_layers(op: Any, network: Network, x: Any) -> Any:
    """The layers of a network after x."""

    def array(value: Tensor | None) -> np.ndarray:
        assert value is not None
        return value.detach().float().cpu().contiguous().numpy()

    def convolve(layer: Conv3x3, x: Any) -> Any:
        x = op.convolution(x, op.constant(array(layer.weight)), [1, 1], [1, 1], [1, 1], [1, 1])
        return op.add(x, op.constant(array(layer.bias).reshape(1, -1, 1, 1)))

    for layer in network:
        match layer:
            case Conv3x3():
                x = convolve(layer, x)
            case ELU():
                x = op.elu(x, 1.0)
            case LeakyReLU():
                x = op.prelu(x, op.constant(np.float32(SLOPE)))
            case Residual():
                slope = op.constant(np.float32(SLOPE))
                x = op.add(x, convolve(layer.second, op.prelu(convolve(layer.first, op.prelu(x, slope)), slope)))
            case _:
                raise TypeError(f"OpenVINO's graph does not know {layer}")
    return x


def _continue(op: Any, x: Any, scale: int) -> Any:
    """X (N, C, H, W) with its last row and column repeated until the sides are multiples of `scale`."""
    missing = op.floor_mod(op.subtract(op.constant(np.int64(0)), op.shape_of(x, "i64")), op.constant(np.array([1, 1, scale, scale])))
    return op.pad(x, op.constant(np.zeros(4, np.int64)), missing, "edge")


def _cut(op: Any, x: Any, like: Any) -> Any:
    """The first rows and columns of x, as many as another one has."""
    stop = op.gather(op.shape_of(like, "i64"), op.constant(np.array([2, 3])), op.constant(np.int64(0)))
    return op.slice(x, op.constant(np.zeros(2, np.int64)), stop, op.constant(np.ones(2, np.int64)), op.constant(np.array([2, 3])))


def serialize(graph: Any) -> Quantized:
    """An `openvino.Model` as the content of its two files.

    Raises:
        ComdefendError: the folder for temporary files takes none.
    """
    ov = require("openvino", extra="openvino")
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.xml"
            ov.save_model(graph, path, compress_to_fp16=False)
            return Quantized(path.read_bytes(), path.with_suffix(".bin").read_bytes())
    except (OSError, RuntimeError) as error:
        raise ComdefendError(f"cannot write temporary files: {explain(error)}; free some space, or set TMPDIR to another folder") from error


def read_int8(networks: Quantized, channels: int) -> Any:
    """The `openvino.Model` of networks in 8-bit integers for images of so many channels.

    Raises:
        UsageError: OpenVINO is not installed.
        WeightsError: they cannot be read, or are not what `comdefend quantize` writes.
    """
    core = get_core()
    # What is not its own XML, OpenVINO reads as a graph of another library, and these may name other files.
    if not networks.graph.startswith(b"<?xml"):
        raise _make_error("they are not OpenVINO's")
    try:
        model = core.read_model(networks.graph, networks.constants)
        strange = {operation.get_type_name() for operation in model.get_ops()} - _OPERATIONS
        ends = [_read_end(end) for end in (*model.inputs, *model.outputs)]
    except RuntimeError as error:
        raise _make_error(explain(error)) from error
    if strange:
        raise _make_error(f"they hold {', '.join(sorted(strange))}")
    if len(model.inputs) != 1 or ends != [(str(channels), "f32")] * 2:
        raise _make_error("their input and output are not images of these weights")
    return model


def _read_end(end: Any) -> tuple[str, str]:
    shape = end.get_partial_shape()
    ranked = shape.rank.is_static and len(shape) == 4
    return str(shape[1]) if ranked else "", end.get_element_type().to_string()


def _make_error(problem: str) -> WeightsError:
    return WeightsError(f"the weights' int8 networks cannot be used: {problem}; make them again with comdefend quantize")


def _compile(networks: ComDefend | Quantized, channels: int, precision: str) -> Any:
    """OpenVINO's compiled model, for as many threads as PyTorch would use."""
    model = read_int8(networks, channels) if isinstance(networks, Quantized) else build_graph(networks)
    hint = _HINTS[precision] if cpu_has_bfloat16() else "f32"
    hints = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    hints["CPU_RUNTIME_CACHE_CAPACITY"] = _KERNELS
    return get_core().compile_model(model, "CPU", hints)
