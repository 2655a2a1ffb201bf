"""A data set by its name, or a folder of images, to train on."""

from __future__ import annotations

from pathlib import Path

from comdefend_cli.data.cifar import read_cifar10
from comdefend_cli.data.download import DownloadProgress
from comdefend_cli.data.drawings import LARGEST, make_drawings
from comdefend_cli.data.folder import find_folder, read_folder
from comdefend_cli.data.idx import read_mnist
from comdefend_cli.data.sources import CROP, Dataset

DATASETS = ("cifar10", "fashion-mnist", "mnist", "drawings")


def load_dataset(
    name: str, folder: Path, *, download: bool = True, progress: DownloadProgress | None = None, crop: int = CROP, shrink: int = 1
) -> Dataset:
    """A data set by name from its official files in `folder`, downloaded there if absent; or a folder of images.

    Args:
        name: one of `DATASETS`, or the path of a folder of images. "drawings" needs no files.
        folder: where the official files are, or go; files that are there are taken as they are, without a checksum.
        download: whether absent files may be downloaded.
        progress: called while downloading.
        crop: side of the random crops of a folder's images, in pixels, and of drawings up to `LARGEST`.
        shrink: of a folder's images, see :class:`.Crops`.

    Raises:
        DatasetError: absent, damaged, not downloadable; the message says what to put where.
    """
    if name == "cifar10":
        return read_cifar10(folder, download, progress)
    if name in ("mnist", "fashion-mnist"):
        return read_mnist(name, folder, download, progress)
    if name == "drawings":
        return make_drawings(min(crop, LARGEST))
    return read_folder(find_folder(name, f"{', '.join(DATASETS)}, or a folder of images"), crop, shrink)
