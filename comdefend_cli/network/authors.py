"""The authors' released checkpoints: an archive like `numpy.savez` makes, holding one object array of arrays."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from comdefend_cli.errors import UsageError, WeightsError, explain
from comdefend_cli.network.architecture import HIDDEN, PaperArchitecture
from comdefend_cli.network.model import ComDefend
from comdefend_cli.runtime.unpickle import read_pickle

#: The array's name in the archive, and more bytes than any checkpoint of nine small layers takes.
MEMBER = "w.npy"
MAX_BYTES = 256 * 2**20
LAYERS = len(HIDDEN) + 1


def read_checkpoint(path: Path) -> list[np.ndarray]:
    """The arrays in one of the authors' files, in order: nine times a kernel and its bias.

    Returns:
        18 arrays of finite float32: kernels (3, 3, in, out), biases (out,), each layer's `in` the `out` before it.

    Raises:
        UsageError: no such file.
        WeightsError: it cannot be read, is not of that format, or its pickle names anything but arrays.
    """
    try:
        array = read_pickle(_strip_npy_header(_read_member(path)))
        if not isinstance(array, np.ndarray) or not array.dtype.hasobject:
            raise ValueError("its array does not hold arrays")
        arrays = list(array.ravel())
        _refuse_misfits(arrays)
        return [_to_float32(item) for item in arrays]
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file; give the authors' checkpoints, first ComCNN's, then RecCNN's") from error
    except (OSError, EOFError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error) as error:
        raise WeightsError(f"{path}: not a checkpoint of ComDefend's authors: {explain(error)}; get their .npy file again") from error


def _read_member(path: Path) -> bytes:
    """The archive's array file, unpacked in memory; no more than `MAX_BYTES` of it, whatever its header says."""
    with zipfile.ZipFile(path) as archive, archive.open(MEMBER) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"its array takes more than {MAX_BYTES >> 20} MiB")
    return data


def _strip_npy_header(data: bytes) -> bytes:
    """What follows the header of a .npy file, after seeing that it is a pickled object array.

    NumPy's own reader evaluates the header, and warns about those that Python 2 wrote; the pickle repeats the shape.
    """
    if data[:6] != b"\x93NUMPY":
        raise ValueError(f"its {MEMBER} is not a NumPy file")
    start = 10 if data[6] == 1 else 12
    (length,) = struct.unpack_from("<H" if start == 10 else "<I", data, 8)
    if b"'|O'" not in data[start : start + length]:
        raise ValueError("its array does not hold arrays")
    return data[start + length :]


def _refuse_misfits(arrays: list[np.ndarray]) -> None:
    """Raise ValueError unless these are nine 3x3 kernels that follow each other, each with its bias."""
    if any(array.dtype.kind != "f" for array in arrays):
        raise ValueError("it holds something else than floating-point arrays")
    shapes = [array.shape for array in arrays]
    pairs = list(zip(shapes[0::2], shapes[1::2], strict=False))
    if len(shapes) != 2 * LAYERS or any(len(kernel) != 4 or kernel[:2] != (3, 3) or bias != kernel[3:] for kernel, bias in pairs):
        raise ValueError(f"it does not hold {LAYERS} kernels of 3x3, each with its bias")
    if any(before[3] != after[2] for before, after in zip(shapes[0:-2:2], shapes[2::2], strict=True)):
        raise ValueError("its layers do not fit each other")


def _to_float32(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    return values


def convert_checkpoints(encoder: Path, decoder: Path) -> ComDefend:
    """The networks from both files, in evaluation mode on the CPU, float32, gradients off.

    Args:
        encoder: the checkpoint of ComCNN: of the colour network (3 channels, 12 bits), the grey one (1 and 4), or one shaped like them.
        decoder: the checkpoint of its RecCNN.

    Raises:
        UsageError: no such file.
        WeightsError: a file is not such a checkpoint, or the two do not belong together.
    """
    com, rec = read_checkpoint(encoder), read_checkpoint(decoder)
    widths = [com[0].shape[2], *(kernel.shape[3] for kernel in com[0::2])]
    if [rec[0].shape[2], *(kernel.shape[3] for kernel in rec[0::2])] != widths[::-1]:
        raise WeightsError(f"{decoder}: its layers do not mirror those of {encoder}; give a ComCNN first, then its RecCNN")
    try:
        architecture = PaperArchitecture(widths[0], widths[-1], tuple(widths[1:-1]))
    except ValueError as error:
        raise WeightsError(f"{encoder}: not a ComCNN: {explain(error)}; give ComCNN's file first, then RecCNN's") from error
    model = ComDefend(architecture)
    model.load_state_dict(_name_tensors("com", com) | _name_tensors("rec", rec))
    return model.eval().requires_grad_(False)


def _name_tensors(network: str, arrays: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """One network's arrays under the names they have in `ComDefend`, kernels (out, in, 3, 3)."""
    state = {}
    for layer in range(LAYERS):
        kernel, bias = arrays[2 * layer : 2 * layer + 2]
        state[f"{network}.{2 * layer}.weight"] = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
        state[f"{network}.{2 * layer}.bias"] = torch.from_numpy(bias)
    return state
