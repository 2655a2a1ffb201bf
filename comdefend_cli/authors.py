"""The authors' released checkpoints: an archive like `numpy.savez` makes, holding one object array of arrays."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import torch

from comdefend_cli.errors import WeightsError, reason
from comdefend_cli.model import Architecture, ComDefend
from comdefend_cli.unpickle import loads

#: The array's name in the archive, and more bytes than any checkpoint of nine small layers takes.
MEMBER = "w.npy"
MAX_BYTES = 256 * 2**20


def read_checkpoint(path: Path) -> list[np.ndarray]:
    """The arrays in one of the authors' files: nine times a kernel (height, width, in, out) and its bias (out,).

    Raises:
        WeightsError: it cannot be read, is not of that format, or its pickle names anything but arrays.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(MEMBER)
            if member.file_size > MAX_BYTES:
                raise ValueError(f"its array takes {member.file_size >> 20} MiB")
            with archive.open(member) as file:
                data = io.BytesIO(file.read(MAX_BYTES + 1))
        version = np.lib.format.read_magic(data)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = read_header(data)
        if not dtype.hasobject:
            raise ValueError("its array does not hold arrays")
        arrays = [np.asarray(item) for item in np.asarray(loads(data.read()), dtype=object).ravel()]
        if not all(np.issubdtype(array.dtype, np.floating) for array in arrays):
            raise ValueError("it holds something else than floating-point arrays")
        return arrays
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, RuntimeError) as error:
        raise WeightsError(f"{path}: not a checkpoint of ComDefend's authors: {reason(error)}; get their .npy file again") from error


def convert(encoder: list[np.ndarray], decoder: list[np.ndarray]) -> ComDefend:
    """The networks from the arrays of both files.

    Raises:
        WeightsError: the arrays are not a ComCNN and its RecCNN.
    """
    for which, arrays in (("first", encoder), ("second", decoder)):
        shapes = [array.shape for array in arrays]
        pairs = list(zip(shapes[0::2], shapes[1::2], strict=False))
        if len(shapes) != 18 or any(len(kernel) != 4 or kernel[:2] != (3, 3) or bias != kernel[3:] for kernel, bias in pairs):
            raise WeightsError(f"the {which} file does not hold nine 3x3 kernels, each with its bias")
    widths = [int(kernel.shape[3]) for kernel in encoder[0::2]]
    try:
        model = ComDefend(Architecture(int(encoder[0].shape[2]), widths[-1], tuple(widths[:-1])))
        state = {}
        for network, arrays in (("com", encoder), ("rec", decoder)):
            for layer in range(9):
                kernel, bias = (np.ascontiguousarray(array, np.float32) for array in arrays[2 * layer : 2 * layer + 2])
                state[f"{network}.{2 * layer}.weight"] = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
                state[f"{network}.{2 * layer}.bias"] = torch.from_numpy(bias)
        model.load_state_dict(state)
    except (ValueError, RuntimeError) as error:
        raise WeightsError(f"the two files are not a ComCNN and its RecCNN: {reason(error)}") from error
    return model.eval().requires_grad_(False)
