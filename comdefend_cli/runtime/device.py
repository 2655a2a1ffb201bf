"""From "auto", "cpu", "cuda:1", "mps" and a precision's name to a torch device and dtype; how devices round; when their memory is full."""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from comdefend_cli.errors import UsageError

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
#: Those of OpenVINO and of Triton alone.
FUSED_PRECISIONS = ("int8", "float8")


def resolve_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        UsageError: the name is unknown, or the device is not there. Never a silent fall-back.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"(cpu|mps)(:0)?|cuda(:\d+)?", name):
        raise UsageError(f"unknown device {name!r}: use auto, cpu, cuda, cuda:N or mps")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UsageError(f"device {name!r} is not there ({count} CUDA devices found): use device auto or cpu")
        return torch.device("cuda", device.index or 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device 'mps' is not there: use device auto or cpu")
    return torch.device(device.type)


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of that name on that device; "auto" takes the fastest it computes natively.

    Raises:
        UsageError: the name is unknown, or the device does not compute in it.
    """
    if name in FUSED_PRECISIONS:
        raise UsageError(f"{name} is for purifying by the openvino or triton backend: use one of {', '.join(PRECISIONS)} here")
    if name not in PRECISIONS:
        raise UsageError(f"unknown precision {name!r}: use one of {', '.join((*PRECISIONS, *FUSED_PRECISIONS))}")
    if name == "auto":
        return _choose_fastest(device)
    if name == "float16" and device.type == "cpu":
        raise UsageError("float16 is for GPUs: use precision bfloat16, float32 or auto on the CPU")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def _choose_fastest(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        # Tensor cores know bfloat16 from compute capability 8.0 on, float16 from 7.0.
        major = torch.cuda.get_device_capability(device)[0]
        return torch.bfloat16 if major >= 8 else torch.float16 if major == 7 else torch.float32
    if device.type == "cpu" and cpu_has_bfloat16():
        return torch.bfloat16
    return torch.float32


def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AVX-512 BF16 or AMX); without, it is many times slower.

    Only Linux says so in a file; elsewhere the answer is no, and float32 is taken. So it is where oneDNN, which multiplies it, was told
    by its own `ONEDNN_MAX_CPU_ISA` to act as on an older CPU: it would compute bfloat16 by float32, slower than float32.
    """
    if re.fullmatch(r"SSE41|AVX|AVX2(_VNNI)?|AVX512_CORE(_VNNI)?", os.environ.get("ONEDNN_MAX_CPU_ISA", ""), re.IGNORECASE):
        return False
    try:
        flags = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
    except OSError:
        return False
    return flags is not None and bool({"avx512_bf16", "amx_bf16"} & set(flags[1].split()))


def warn_of_emulation(precision: str, device: torch.device) -> None:
    """Give a :class:`RuntimeWarning` where a precision was asked for that the CPU does not multiply in hardware."""
    if precision == "bfloat16" and device.type == "cpu" and not cpu_has_bfloat16():
        text = "this CPU emulates bfloat16, which is several times slower than float32: leave the precision out, or take float32"
        warnings.warn(text, RuntimeWarning, stacklevel=3)


@contextmanager
def flush_subnormals() -> Iterator[None]:
    """Within, this thread takes numbers below float32's normal range as zero; afterwards it does what it did before.

    Saturated activations make such numbers in training, and CPUs compute them many times slower. Also a decorator.
    """
    before = not torch.tensor(1e-39).mul(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


_switch = threading.Lock()
#: How many are within :func:`keep_float32` now, and what the switch was before the first of them.
_within, _before = 0, True


@contextmanager
def keep_float32(device: torch.device) -> Iterator[None]:
    """Within, CUDA's convolutions do not round float32 to TF32, which would make float32 results depend on the tiling.

    The switch is the whole process's: the first of several threads sets it, the last one sets it back.
    """
    global _within, _before
    if device.type != "cuda":
        yield
        return
    with _switch:
        if _within == 0:
            _before = torch.backends.cudnn.allow_tf32
            torch.backends.cudnn.allow_tf32 = False
        _within += 1
    try:
        yield
    finally:
        with _switch:
            _within -= 1
            if _within == 0:
                torch.backends.cudnn.allow_tf32 = _before


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the device or beside it; of PyTorch's errors, only CUDA's says so by its type."""
    known = ("out of memory", "can't allocate memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in known)


def describe_device(device: torch.device) -> str:
    """ "cpu", "mps", or "cuda:0 (NVIDIA H100)"."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def dtype_name(dtype: torch.dtype) -> str:
    """ "float32" for torch.float32."""
    return str(dtype).removeprefix("torch.")
