"""Which backend computes the networks: PyTorch; on a CPU OpenVINO (extra [openvino]); on an NVIDIA GPU our Triton kernel.

The last two fuse the layers, and have neither gradients nor noise on the code.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from comdefend_cli.backends.openvino import OpenVINONetworks, openvino_is_installed
from comdefend_cli.errors import UsageError, explain
from comdefend_cli.network.model import ComDefend
from comdefend_cli.network.weight_file import Weights
from comdefend_cli.runtime.device import cpu_has_bfloat16, resolve_precision
from comdefend_cli.runtime.extras import require

BACKENDS = ("auto", "torch", "openvino", "triton")
#: Precisions of our Triton kernel, and the compute capability from which on a GPU's tensor cores multiply them.
_TRITON = {"auto": (7, 0), "float16": (7, 0), "bfloat16": (8, 0), "float8": (8, 9)}


def resolve_backend(name: str, device: torch.device, precision: str, *, noisy: bool, quantized: bool, paper: bool = True) -> str:
    """ "torch", "openvino" or "triton" for a backend's name.

    "auto" takes what is installed and was measured to be faster (docs/performance.md). On a CPU that is OpenVINO: with networks of 8-bit
    integers; in bfloat16 where the CPU multiplies it; and where it does not, in float32, with the paper's networks, of which it computes
    15 % more a second. Of the others that is hardly more, and it takes longer to start. On an NVIDIA GPU it is Triton for the paper's
    networks, in bfloat16 and float16. float32 that was asked for stays with PyTorch, where tiles equal the whole image bit by bit.

    Args:
        name: one of `BACKENDS`.
        device: of PyTorch's networks.
        precision: as asked for, "auto" included.
        noisy: whether noise is added to the logits, which only PyTorch's networks do.
        quantized: whether the weights hold networks of 8-bit integers.
        paper: whether all of them are of the paper's family.

    Raises:
        UsageError: unknown, not installed, or it cannot do what is asked.
    """
    if name not in BACKENDS:
        raise UsageError(f"unknown backend {name!r}: use auto, torch, openvino or triton")
    if name == "triton":
        _refuse_triton(device, precision, noisy=noisy)
        return name
    if name == "openvino":
        _refuse_openvino(device, noisy=noisy)
        return name
    if name == "auto" and not noisy and (faster := _find_faster(device, precision, quantized=quantized, paper=paper)):
        return faster
    if precision == "float8":
        raise UsageError("float8 needs the triton backend, device cuda and no noise")
    if precision == "int8":
        raise UsageError("int8 needs the openvino backend: pip install 'comdefend-cli[openvino]', and device cpu without noise")
    return "torch"


def _find_faster(device: torch.device, precision: str, *, quantized: bool, paper: bool) -> str | None:
    """The backend that is faster there than PyTorch, without noise on the logits; None where none is, or none is installed."""
    if device.type == "cpu":
        fast = (
            precision == "int8"
            or (precision == "auto" and (quantized or paper))
            or (precision in ("auto", "bfloat16") and cpu_has_bfloat16())
        )
        return "openvino" if fast and openvino_is_installed() else None
    able = device.type == "cuda" and paper and precision in _TRITON and _has_tensor_cores(device, precision)
    return "triton" if able and find_triton_problem(device) is None else None


def _refuse_openvino(device: torch.device, *, noisy: bool) -> None:
    require("openvino", extra="openvino")
    if device.type != "cpu":
        raise UsageError(f"the openvino backend is for the CPU, not {device.type}: use device cpu or backend torch")
    if noisy:
        raise UsageError("the openvino backend adds no noise: use backend torch")


def _refuse_triton(device: torch.device, precision: str, *, noisy: bool) -> None:
    if device.type != "cuda":
        raise UsageError(f"the triton backend is for NVIDIA GPUs, not {device.type}: use device cuda or backend torch")
    if precision not in _TRITON:
        raise UsageError("the triton backend computes in bfloat16, float16 and float8: use precision auto or backend torch")
    if noisy:
        raise UsageError("the triton backend adds no noise: use backend torch")
    if torch.cuda.is_available() and not _has_tensor_cores(device, precision):
        raise UsageError(f"this GPU's tensor cores do not compute in {precision}: use precision auto or backend torch")
    if problem := find_triton_problem(device):
        raise UsageError(f"{problem}: use backend torch")


def _has_tensor_cores(device: torch.device, precision: str) -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= _TRITON[precision]


@cache
def find_triton_problem(device: torch.device) -> str | None:
    """Why Triton's kernel does not run there, after a trial; None where it does. Where it is installed and fails, also a warning."""
    if not torch.cuda.is_available() or torch.version.hip is not None or find_spec("triton") is None:
        return "Triton is not installed, which comes with PyTorch's CUDA builds for Linux"
    try:
        from comdefend_cli.backends.triton import TritonNetworks

        # The networks that ship, which compiles what they will need.
        x = torch.zeros(1, 3, 8, 8, device=device)
        TritonNetworks(ComDefend().to(device, resolve_precision("auto", device)))(x)
        torch.cuda.synchronize(device)
    except Exception as error:  # It compiles for this machine, with a C compiler of this machine: anything may be amiss.
        problem = f"Triton cannot run its kernel here ({explain(error)})"
        warnings.warn(problem, RuntimeWarning, stacklevel=2)
        return problem
    return None


def describe(precision: str, backend: str) -> str:
    """ "bfloat16", or "int8 with openvino": for people, and for telling results apart."""
    return precision if backend == "torch" else f"{precision} with {backend}"


class Engine(Protocol):
    """Both networks, computed by something else than PyTorch.

    Attributes:
        name: of the backend.
        precision: "float32", "bfloat16", "float16", "float8" or "int8".
    """

    name: str
    precision: str

    def choose_tile(self, pixels: int) -> int:
        """Side of a tile that suits an image of so many pixels."""

    def __call__(self, x: Tensor) -> Tensor:
        """The image (N, C, H, W), float32 in [0, 1], of one likewise."""


def make_engine(backend: str, weights: Weights, model: ComDefend, precision: str) -> Engine | None:
    """What computes the networks in place of PyTorch; None where that is PyTorch itself.

    Args:
        backend: what :func:`resolve_backend` returned.
        weights: as they were loaded.
        model: their networks where and in what PyTorch's are.
        precision: as asked for, "auto" included.

    Raises:
        UsageError: the backend does not compute in this precision, or the weights have no networks in it.
    """
    if backend == "openvino":
        return OpenVINONetworks(weights.model, precision, weights.quantized)
    if backend == "triton":
        from comdefend_cli.backends.triton import TritonNetworks

        return TritonNetworks(model, float8=precision == "float8")
    return None
