"""CIFAR-10 (https://www.cs.toronto.edu/~kriz/cifar.html) from its official files."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from comdefend_cli.data.download import ARCHIVES, MAX_FILE, DownloadProgress, obtain_archive
from comdefend_cli.data.sources import Dataset, ImageArray
from comdefend_cli.errors import DatasetError, reason
from comdefend_cli.runtime.unpickle import read_pickle

_CIFAR_FOLDER = "cifar-10-batches-py"
_CIFAR_BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
#: Guards against a gzip bomb: the batches take 186 MB unpacked.
MAX_UNPACKED = 2**29


def read_cifar10(folder: Path, download: bool, progress: DownloadProgress | None) -> Dataset:
    """CIFAR-10 from `folder`, or from a folder or archive in it; errors as of :func:`load_dataset`."""
    (archive,) = ARCHIVES["cifar10"]
    batches = folder if (folder / _CIFAR_BATCHES[0]).is_file() else folder / _CIFAR_FOLDER
    if batches.is_dir():
        files = ((str(batches / name), _read(batches / name)) for name in _CIFAR_BATCHES)
    else:
        what = f"{_CIFAR_FOLDER}/ or {archive.name}"
        path = obtain_archive("cifar10", archive, [folder / archive.name], folder, what, download, progress)
        files = ((f"{path}: {name}", data) for name, data in _untar(path).items())
    pixels, labels = zip(*(_read_batch(data, where) for where, data in files), strict=True)
    train = ImageArray(torch.cat(pixels[:-1]), torch.cat(labels[:-1]))
    return Dataset("cifar10", train, ImageArray(pixels[-1], labels[-1]))


class _Bounded(io.RawIOBase):
    """A stream that ends in an error after `MAX_UNPACKED` bytes, so that a gzip bomb stays small."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.left = MAX_UNPACKED

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        data = self.stream.read(min(size, self.left + 1) if size >= 0 else self.left + 1)
        self.left -= len(data)
        if self.left < 0:
            raise ValueError(f"it unpacks to more than {MAX_UNPACKED >> 20} MiB")
        return data


def _untar(path: Path) -> dict[str, bytes]:
    """The batches in the CIFAR-10 archive, in `_CIFAR_BATCHES`' order; in memory: nothing is unpacked onto the disk."""
    found: dict[str, bytes] = {}
    try:
        with gzip.open(path) as packed, tarfile.open(fileobj=(stream := _Bounded(cast(BinaryIO, packed))), mode="r|") as archive:
            for member in archive:
                parent, _, name = member.name.removeprefix("./").rpartition("/")
                if parent not in ("", _CIFAR_FOLDER) or name not in _CIFAR_BATCHES or not member.isfile():
                    continue
                if member.size > MAX_FILE:
                    raise ValueError(f"its {name} is too large for CIFAR-10")
                file = archive.extractfile(member)
                found[name] = file.read() if file else b""
            while stream.read(1 << 20):  # The checksum of all stands at the end.
                pass
    except Exception as error:  # tarfile raises whatever its parsing meets.
        raise DatasetError(f"{path}: damaged archive: {reason(error)}; get the official one, or delete it to download it") from error
    if missing := [name for name in _CIFAR_BATCHES if name not in found]:
        raise DatasetError(f"{path}: has no {_CIFAR_FOLDER}/{missing[0]}; get the official archive, or delete it to download it")
    return {name: found[name] for name in _CIFAR_BATCHES}


def _read_batch(data: bytes, where: str) -> tuple[Tensor, Tensor]:
    """Pixels uint8 (N, 3, 32, 32) and labels int64 (N,) of one batch file."""
    try:
        batch = read_pickle(data)
        pixels, labels = batch[b"data"], batch[b"labels"]
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072:
            raise ValueError("its data is not rows of 3072 bytes")
        # Each is looked at: NumPy takes forever to convert a list that holds itself.
        if len(labels) != len(pixels) or not len(pixels) or not all(type(label) is int and 0 <= label <= 255 for label in labels):
            raise ValueError("its labels are not one small number an image")
    except KeyError as error:
        raise DatasetError(f"{where}: not a CIFAR-10 batch: it has no {error}; get the official files") from error
    except (ValueError, TypeError) as error:
        raise DatasetError(f"{where}: not a CIFAR-10 batch: {reason(error)}; get the official files") from error
    return torch.from_numpy(pixels.reshape(-1, 3, 32, 32)), torch.tensor(labels, dtype=torch.int64)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise DatasetError(f"{path}: cannot read: {reason(error)}; get the official files") from error
    if len(data) > MAX_FILE:
        raise DatasetError(f"{path}: too large for CIFAR-10; get the official files")
    return data
