"""A data set by its name, or a folder of images, to train on."""

from __future__ import annotations

from pathlib import Path

from comdefend_cli.data.cifar import read_cifar10
from comdefend_cli.data.download import DownloadProgress
from comdefend_cli.data.folder import read_folder
from comdefend_cli.data.idx import read_mnist
from comdefend_cli.data.sources import CROP, Dataset
from comdefend_cli.errors import DatasetError

DATASETS = ("cifar10", "fashion-mnist", "mnist")


def load_dataset(name: str, folder: Path, *, download: bool = True, progress: DownloadProgress | None = None, crop: int = CROP) -> Dataset:
    """A data set by name from its official files in `folder`, downloaded there if absent; or a folder of images.

    Args:
        name: one of `DATASETS`, or the path of a folder of images.
        folder: where the official files are, or go; files that are there are taken as they are, without a checksum.
        download: whether absent files may be downloaded.
        progress: called while downloading.
        crop: side of the random crops of a folder's images, in pixels.

    Raises:
        DatasetError: absent, damaged, not downloadable; the message says what to put where.
    """
    if name == "cifar10":
        return read_cifar10(folder, download, progress)
    if name in ("mnist", "fashion-mnist"):
        return read_mnist(name, folder, download, progress)
    try:
        is_folder = bool(name) and Path(name).is_dir()
    except OSError:  # A name that no folder can have.
        is_folder = False
    if is_folder:
        return read_folder(Path(name), crop)
    raise DatasetError(f"{name}: no such data set or folder; use {', '.join(DATASETS)}, or a folder of images")
