"""CIFAR-10 (https://www.cs.toronto.edu/~kriz/cifar.html) from its official files."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from comdefend_cli.data.download import ARCHIVES, MAX_FILE, DownloadProgress, obtain_archive
from comdefend_cli.data.sources import Dataset, ImageArray
from comdefend_cli.errors import DatasetError, explain
from comdefend_cli.runtime.unpickle import read_pickle

_BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
_PIXELS = 3 * 32 * 32
#: Guards against a gzip bomb: the batches take 186 MB unpacked.
MAX_UNPACKED = 2**29


@dataclass(frozen=True)
class _Release:
    """One of the forms in which the same images are published, in the same order.

    Attributes:
        archive: its file's name.
        folder: what it unpacks to.
        names: of the batches in that, those of the test images last.
        parse: makes pixels, uint8 (N, 3072), and labels, N integers, of a batch.
    """

    archive: str
    folder: str
    names: tuple[str, ...]
    parse: Callable[[bytes], tuple[np.ndarray, np.ndarray]]


def read_cifar10(folder: Path, download: bool, progress: DownloadProgress | None) -> Dataset:
    """CIFAR-10 from `folder`, or from a folder or archive in it; errors as of :func:`load_dataset`."""
    release, where = _find(folder) or (_RELEASES[0], _obtain(folder, download, progress))
    parts = [_parse(release, data, name) for name, data in _read_files(release, where)]
    pixels, labels = zip(*parts, strict=True)
    return Dataset("cifar10", ImageArray(torch.cat(pixels[:-1]), torch.cat(labels[:-1])), ImageArray(pixels[-1], labels[-1]))


def _find(folder: Path) -> tuple[_Release, Path] | None:
    """The release that is there, and its folder or archive."""
    for release in _RELEASES:
        if (folder / release.names[0]).is_file():
            return release, folder
        for path in (folder / release.folder, folder / release.archive):
            if path.exists():
                return release, path
    return None


def _obtain(folder: Path, download: bool, progress: DownloadProgress | None) -> Path:
    (archive,) = ARCHIVES["cifar10"]
    what = f"{_RELEASES[0].folder}/ or {archive.name}, or {_RELEASES[1].folder}/ or {_RELEASES[1].archive}"
    return obtain_archive("cifar10", archive, [folder / archive.name], folder, what, download, progress)


def _read_files(release: _Release, where: Path) -> Iterator[tuple[str, bytes]]:
    """The batches in order, each with what errors call it."""
    if where.is_dir():
        yield from ((str(where / name), _read(where / name)) for name in release.names)
    else:
        yield from ((f"{where}: {name}", data) for name, data in _untar(where, release).items())


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


def _untar(path: Path, release: _Release) -> dict[str, bytes]:
    """The batches in an archive, in the order of `release.names`; in memory: nothing is unpacked onto the disk."""
    found: dict[str, bytes] = {}
    try:
        with gzip.open(path) as packed, tarfile.open(fileobj=(stream := _Bounded(cast(BinaryIO, packed))), mode="r|") as archive:
            for member in archive:
                parent, _, name = member.name.removeprefix("./").rpartition("/")
                if parent not in ("", release.folder) or name not in release.names or not member.isfile():
                    continue
                if member.size > MAX_FILE:
                    raise ValueError(f"its {name} is too large for CIFAR-10")
                file = archive.extractfile(member)
                found[name] = file.read() if file else b""
            while stream.read(1 << 20):  # The checksum of all stands at the end.
                pass
    except Exception as error:  # tarfile raises whatever its parsing meets.
        raise DatasetError(f"{path}: damaged archive: {explain(error)}; get the official one, or delete it to download it") from error
    if missing := [name for name in release.names if name not in found]:
        raise DatasetError(f"{path}: has no {release.folder}/{missing[0]}; get the official archive, or delete it to download it")
    return {name: found[name] for name in release.names}


def _parse(release: _Release, data: bytes, where: str) -> tuple[Tensor, Tensor]:
    """Pixels uint8 (N, 3, 32, 32) and labels int64 (N,) of one batch."""
    try:
        pixels, labels = release.parse(data)
    except KeyError as error:
        raise DatasetError(f"{where}: not a CIFAR-10 batch: it has no {error}; get the official files") from error
    except (ValueError, TypeError) as error:
        raise DatasetError(f"{where}: not a CIFAR-10 batch: {explain(error)}; get the official files") from error
    return torch.from_numpy(pixels.reshape(-1, 3, 32, 32)), torch.from_numpy(labels.astype(np.int64))


def _parse_binary(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Of rows of a label, 0 to 9, and the red, green and blue values."""
    if not data or len(data) % (1 + _PIXELS):
        raise ValueError(f"it is not rows of {1 + _PIXELS} bytes")
    rows = np.frombuffer(data, np.uint8).reshape(-1, 1 + _PIXELS)
    if rows[:, 0].max() > 9:
        raise ValueError("its labels are not 0 to 9")
    return rows[:, 1:].copy(), rows[:, 0]


def _parse_pickle(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Of a pickled dictionary of both, which is read without running it."""
    batch = read_pickle(data)
    pixels, labels = batch[b"data"], batch[b"labels"]
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise ValueError(f"its data is not rows of {_PIXELS} bytes")
    # Each is looked at: NumPy takes forever to convert a list that holds itself.
    if len(labels) != len(pixels) or not len(pixels) or not all(type(label) is int and 0 <= label <= 255 for label in labels):
        raise ValueError("its labels are not one small number an image")
    return pixels, np.array(labels)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise DatasetError(f"{path}: cannot read: {explain(error)}; get the official files") from error
    if len(data) > MAX_FILE:
        raise DatasetError(f"{path}: too large for CIFAR-10; get the official files")
    return data


#: The binary one, which is downloaded, needs no pickle; that for Python many have already.
_RELEASES = (
    _Release("cifar-10-binary.tar.gz", "cifar-10-batches-bin", tuple(f"{name}.bin" for name in _BATCHES), _parse_binary),
    _Release("cifar-10-python.tar.gz", "cifar-10-batches-py", _BATCHES, _parse_pickle),
)
