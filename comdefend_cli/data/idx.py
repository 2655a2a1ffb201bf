"""MNIST and Fashion-MNIST from their official files, which are in the IDX format."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from comdefend_cli.data.download import ARCHIVES, MAX_FILE, Archive, DownloadProgress, obtain_archive
from comdefend_cli.data.sources import Dataset, ImageArray
from comdefend_cli.errors import DatasetError, explain

_MNIST_SIDE = 28


def read_mnist(name: str, folder: Path, download: bool, progress: DownloadProgress | None) -> Dataset:
    """MNIST or Fashion-MNIST from `folder`, or from the folder of its name in it; errors as of :func:`load_dataset`."""
    # MNIST's and Fashion-MNIST's files have the same names, so the folder named after the data set goes first.
    flat = not (folder / name).is_dir() and any(path.exists() for path in _list_spellings(folder, ARCHIVES[name][0]))
    where = folder if flat else folder / name
    splits = []
    for pair in (ARCHIVES[name][:2], ARCHIVES[name][2:]):
        paths = [
            obtain_archive(name, archive, _list_spellings(where, archive), folder, f"{name}/{archive.name}", download, progress)
            for archive in pair
        ]
        pixels, labels = _read_idx(paths[0], 3), _read_idx(paths[1], 1)
        if len(pixels) != len(labels) or not len(pixels) or pixels.shape[1:] != (_MNIST_SIDE, _MNIST_SIDE):
            raise DatasetError(f"{paths[0]}: holds {pixels.shape} pixels for {len(labels)} labels; get the official files")
        splits.append(ImageArray(torch.from_numpy(pixels)[:, None], torch.from_numpy(labels.astype(np.int64))))
    return Dataset(name, splits[0], splits[1])


def _list_spellings(folder: Path, archive: Archive) -> list[Path]:
    """Where an IDX file may be: as published, unpacked, or unpacked by the name within the archive."""
    unpacked = archive.name.removesuffix(".gz")
    return [folder / name for name in (archive.name, unpacked, unpacked.replace("-idx", ".idx"))]


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An array in the IDX format (http://yann.lecun.com/exdb/mnist): two zeros, type 8, dimensions, sizes, bytes.

    Compressed or not is told by the content: a browser may have unpacked it and kept the name.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as stream:
            magic, *shape = struct.unpack(f">{1 + dimensions}I", stream.read(4 * (1 + dimensions)))
            size = math.prod(shape)
            if magic != 0x800 + dimensions or size > MAX_FILE:
                raise ValueError("its header is not that of such a file")
            data = stream.read(size + 1)
        if len(data) != size:
            raise ValueError("its header does not fit its length")
        return np.frombuffer(data, np.uint8).reshape(shape).copy()
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise DatasetError(f"{path}: not an IDX file: {explain(error)}; get the official one, or delete it to download it") from error
