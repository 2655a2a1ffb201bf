"""What computes the networks: PyTorch; on a CPU OpenVINO (extra [openvino]), also in 8-bit integers; on an NVIDIA GPU our Triton kernel.

The last two fuse the layers, and have neither gradients nor noise on the code.
"""

from __future__ import annotations

import copy
import threading
import warnings
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor

from comdefend_cli.backends.graphs import openvino_model
from comdefend_cli.errors import UsageError, WeightsError, reason
from comdefend_cli.network.model import ComDefend
from comdefend_cli.network.weight_file import Quantized
from comdefend_cli.runtime.device import cpu_has_bfloat16, dtype_name, resolve_precision
from comdefend_cli.runtime.extras import require

BACKENDS = ("auto", "torch", "openvino", "triton")
#: OpenVINO's names of precisions; in the networks of 8-bit integers some steps are left to bfloat16 where there is some.
_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}
#: Precisions of our Triton kernel, and the compute capability from which on a GPU's tensor cores multiply them.
_TRITON = {"auto": (7, 0), "float16": (7, 0), "bfloat16": (8, 0), "float8": (8, 9)}
#: Sides of tiles: all activations of two layers are in memory at once, of 1024 pixels a side in bfloat16 0.8 GB.
_TILES = {"float32": 512, "bfloat16": 1024, "int8": 1024}
#: Pixels of an image above which tiles are `_LARGE_TILE` a side at most: it takes so much memory itself that activations should take less.
_LARGE, _LARGE_TILE = 2**25, 512
#: All that `comdefend quantize` writes. A weight file comes from outside: a graph with anything else, such as a loop, is refused.
_OPERATIONS = {"Parameter", "Constant", "Convert", "Subtract", "Multiply", "Add", "Convolution", "Elu", "Greater", "Sigmoid", "Result"}
_OPERATIONS |= {"FakeQuantize"}


def resolve_backend(name: str, device: torch.device, precision: str, *, noisy: bool, quantized: bool) -> str:
    """ "torch", "openvino" or "triton" for a backend's name.

    "auto" takes what is installed and was measured to be faster (docs/performance.md): on a CPU OpenVINO, with networks of 8-bit integers,
    or else in bfloat16 where the CPU multiplies it; on an NVIDIA GPU Triton, in bfloat16 and float16. float32 stays with PyTorch, where
    tiles equal the whole image bit by bit.

    Args:
        name: one of `BACKENDS`.
        device: of PyTorch's networks.
        precision: as asked for, "auto" included.
        noisy: whether noise is added to the logits, which only PyTorch's networks do.
        quantized: whether the weights hold networks of 8-bit integers.

    Raises:
        UsageError: unknown, not installed, or it cannot do what is asked.
    """
    if name not in BACKENDS:
        raise UsageError(f"unknown backend {name!r}: use auto, torch, openvino or triton")
    if name == "triton":
        _refuse_triton(device, precision, noisy=noisy)
        return name
    if name == "openvino":
        require("openvino", extra="openvino")
        if device.type != "cpu":
            raise UsageError(f"the openvino backend is for the CPU, not {device.type}: use --device cpu or --backend torch")
        if noisy:
            raise UsageError("the openvino backend adds no noise: use --backend torch")
        return name
    able = device.type == "cpu" and not noisy and openvino_is_installed()
    fast = precision == "int8" or (precision == "auto" and quantized) or (precision in ("auto", "bfloat16") and cpu_has_bfloat16())
    if name == "auto" and able and fast:
        return "openvino"
    able = device.type == "cuda" and not noisy and precision in _TRITON and _has_tensor_cores(device, precision)
    if name == "auto" and able and triton_problem(device) is None:
        return "triton"
    if precision == "float8":
        raise UsageError("float8 needs the triton backend: --backend triton, --device cuda and no noise")
    if precision == "int8":
        raise UsageError("int8 needs the openvino backend: pip install 'comdefend-cli[openvino]', and --device cpu without noise")
    return "torch"


def _refuse_triton(device: torch.device, precision: str, *, noisy: bool) -> None:
    if device.type != "cuda":
        raise UsageError(f"the triton backend is for NVIDIA GPUs, not {device.type}: use --device cuda or --backend torch")
    if precision not in _TRITON:
        raise UsageError("the triton backend computes in bfloat16, float16 and float8: use --precision auto or --backend torch")
    if noisy:
        raise UsageError("the triton backend adds no noise: use --backend torch")
    if torch.cuda.is_available() and not _has_tensor_cores(device, precision):
        raise UsageError(f"this GPU's tensor cores do not compute in {precision}: use --precision auto or --backend torch")
    if problem := triton_problem(device):
        raise UsageError(f"{problem}: use --backend torch")


def _has_tensor_cores(device: torch.device, precision: str) -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= _TRITON[precision]


@cache
def triton_problem(device: torch.device) -> str | None:
    """Why Triton's kernel does not run there, after a trial; None where it does. Where it is installed and fails, also a warning."""
    if not torch.cuda.is_available() or torch.version.hip is not None or find_spec("triton") is None:
        return "Triton is not installed, which comes with PyTorch's CUDA builds for Linux"
    try:
        from comdefend_cli.backends import fused

        # The networks that ship, which compiles what they will need.
        x = torch.zeros(1, 3, 8, 8, device=device)
        fused.FusedNetworks(ComDefend().to(device, resolve_precision("auto", device)))(x)
        torch.cuda.synchronize(device)
    except Exception as error:  # It compiles for this machine, with a C compiler of this machine: anything may be amiss.
        problem = f"Triton cannot run its kernel here ({reason(error)})"
        warnings.warn(problem, RuntimeWarning, stacklevel=2)
        return problem
    return None


def described(precision: str, backend: str) -> str:
    """ "bfloat16", or "int8 with openvino": for people, and for telling results apart."""
    return precision if backend == "torch" else f"{precision} with {backend}"


def openvino_is_installed() -> bool:
    """Whether OpenVINO is; a folder of that name, which Python would import as well, is not it."""
    spec = find_spec("openvino")
    return spec is not None and spec.origin is not None


class Engine(Protocol):
    """Both networks, computed by something else than PyTorch.

    Attributes:
        name: of the backend.
        precision: "float32", "bfloat16", "float16", "float8" or "int8".
    """

    name: str
    precision: str

    def tile(self, pixels: int) -> int:
        """Side of a tile that suits an image of so many pixels."""

    def __call__(self, x: Tensor) -> Tensor:
        """The image (N, C, H, W), float32 in [0, 1], of one likewise."""


class TritonNetworks:
    """Both networks, computed by :mod:`comdefend_cli.backends.fused`.

    Args:
        model: on an NVIDIA GPU, in bfloat16 or float16; it is read now, so that what happens to it later does not matter.
        float8: whether its large layers are computed in 8 bits.
    """

    name = "triton"

    def __init__(self, model: ComDefend, *, float8: bool = False) -> None:
        from comdefend_cli.backends.fused import FusedNetworks

        self._networks = FusedNetworks(model, float8=float8)
        self.precision = "float8" if float8 else dtype_name(next(model.parameters()).dtype)

    def tile(self, pixels: int) -> int:
        """Side of a tile, whatever the image's size."""
        return 2048

    def __call__(self, x: Tensor) -> Tensor:
        """The image (N, C, H, W), float32 in [0, 1], of one likewise."""
        return self._networks(x)


class OpenVINONetworks:
    """Both networks, compiled by OpenVINO for this CPU when they are first called; safe to call from several threads.

    Args:
        model: the networks; they are read now, so that what happens to them later does not matter.
        precision: "auto" (int8 where there is some, else bfloat16 where the CPU multiplies it), "float32", "bfloat16" or "int8".
        quantized: the networks in 8-bit integers, or None.

    Attributes:
        precision: never "auto".

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
        self.precision = precision
        require("openvino", extra="openvino")
        self._networks = quantized if quantized and precision == "int8" else copy.deepcopy(model)
        self._channels = model.architecture.channels
        self._lock = threading.Lock()
        self._compiled: Any = None

    def tile(self, pixels: int) -> int:
        """Side of a tile, smaller for an image of very many pixels."""
        return min(_TILES[self.precision], _LARGE_TILE) if pixels > _LARGE else _TILES[self.precision]

    def __call__(self, x: Tensor) -> Tensor:
        """The image (N, C, H, W), float32 in [0, 1], of one likewise.

        Raises:
            WeightsError: the networks in 8-bit integers are damaged, or are not what `comdefend quantize` writes.
        """
        with self._lock:
            if self._compiled is None:
                self._compiled = _compiled(self._networks, self._channels, self.precision)
            result = torch.from_numpy(self._compiled([x.detach().float().cpu().contiguous().numpy()])[0])
        if result.shape != x.shape:
            raise _damaged("their output is not of the image's size")
        return result

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_compiled": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def read_int8(networks: Quantized, channels: int) -> Any:
    """The `openvino.Model` of networks in 8-bit integers for images of so many channels.

    Raises:
        UsageError: OpenVINO is not installed.
        WeightsError: they cannot be read, or are not what `comdefend quantize` writes.
    """
    core = require("openvino", extra="openvino").Core()
    # What is not its own XML, OpenVINO reads as a graph of another library, and these may name other files.
    if not networks.graph.startswith(b"<?xml"):
        raise _damaged("they are not OpenVINO's")
    try:
        model = core.read_model(networks.graph, networks.constants)
        strange = {operation.get_type_name() for operation in model.get_ops()} - _OPERATIONS
        ends = [_channels_and_dtype(end) for end in (*model.inputs, *model.outputs)]
    except RuntimeError as error:
        raise _damaged(reason(error)) from error
    if strange:
        raise _damaged(f"they hold {', '.join(sorted(strange))}")
    if len(model.inputs) != 1 or ends != [(str(channels), "f32")] * 2:
        raise _damaged("their input and output are not images of these weights")
    return model


def _channels_and_dtype(end: Any) -> tuple[str, str]:
    shape = end.get_partial_shape()
    ranked = shape.rank.is_static and len(shape) == 4
    return str(shape[1]) if ranked else "", end.get_element_type().to_string()


def _damaged(problem: str) -> WeightsError:
    return WeightsError(f"the weights' int8 networks cannot be used: {problem}; make them again with comdefend quantize")


def _compiled(networks: ComDefend | Quantized, channels: int, precision: str) -> Any:
    """OpenVINO's compiled model, for as many threads as PyTorch would use."""
    model = read_int8(networks, channels) if isinstance(networks, Quantized) else openvino_model(networks)
    hints = {"INFERENCE_PRECISION_HINT": _HINTS[precision], "INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    return require("openvino", extra="openvino").Core().compile_model(model, "CPU", hints)
