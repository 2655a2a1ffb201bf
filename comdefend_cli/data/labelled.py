"""Images with labels to evaluate on: a data set's test split, a folder a class, or a folder with labels.csv."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from comdefend_cli.data.datasets import DATASETS, load_dataset
from comdefend_cli.data.download import DownloadProgress
from comdefend_cli.data.folder import decode_images, find_folder, list_images
from comdefend_cli.errors import DatasetError, UsageError, explain

CLASSES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "fashion-mnist": ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    "mnist": tuple("0123456789"),
}
LABELS = "labels.csv"


@dataclass(frozen=True)
class Labelled:
    """Images of one size with labels.

    Attributes:
        name: of the data.
        pixels: uint8 (N, C, H, W).
        labels: int64 (N,).
        classes: their names, in the order of the labels; () where they are not known.
        skipped: files of a folder that could not be read.
        by_folder: whether labels are sub-folders, numbered from 0 in the order of their names.
    """

    name: str
    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...] = ()
    skipped: int = 0
    by_folder: bool = False

    def __len__(self) -> int:
        return len(self.pixels)

    @cached_property
    def sha256(self) -> str:
        """Of shape, pixels and labels."""
        digest = hashlib.sha256(repr(tuple(self.pixels.shape)).encode())
        digest.update(self.pixels.contiguous().numpy().tobytes())
        digest.update(self.labels.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def floats(self) -> Tensor:
        """The images as float32 in [0, 1]."""
        return self.pixels.float().div(255)

    def first(self, n: int) -> Labelled:
        """The first n of them, or all where there are fewer."""
        return replace(self, pixels=self.pixels[:n], labels=self.labels[:n])


def load_labelled(
    name: str,
    data_dir: Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    size: int | None = None,
    download: bool = True,
    progress: DownloadProgress | None = None,
) -> Labelled:
    """Images to evaluate on, drawn by `seed`.

    Args:
        name: one of `comdefend_cli.data.datasets.DATASETS` (its test split), or a folder with `labels.csv` (columns file, class
            index and, if given, class name), or with one sub-folder a class.
        data_dir: where the official files of a data set are, or go.
        limit: how many at most; they are a random sample.
        seed: of the sample.
        size: scale a folder's images to this on their shorter side and crop the centre; None takes them as they are.
        download: fetch a data set that is absent; else that is an error.
        progress: called while downloading.

    Raises:
        DatasetError: absent or damaged, or images of several sizes without `size`.
        UsageError: a limit or size that cannot be.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"the limit must be at least 1 image, not {limit}")
    if size is not None and size < 8:
        raise UsageError(f"the size must be at least 8 pixels, not {size}")
    if size is not None and name in DATASETS:
        raise UsageError(f"a size is for folders of images; those of {name} are taken as they are: leave --size out")
    if name in DATASETS:
        test = load_dataset(name, data_dir, download=download, progress=progress).test
        chosen = _draw_sample(len(test), limit, seed)
        return Labelled(name, test.pixels[chosen], test.labels[chosen], CLASSES[name])
    folder = find_folder(name, f"{', '.join(DATASETS)}, or a folder of images with labels")
    by_folder = not (folder / LABELS).exists()
    entries, classes = _list_by_folder(folder) if by_folder else _list_by_table(folder / LABELS)
    entries = [entries[i] for i in _draw_sample(len(entries), limit, seed).tolist()]
    return replace(_decode(folder, entries, classes, size), by_folder=by_folder)


def _draw_sample(count: int, limit: int | None, seed: int) -> Tensor:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed % 2**32))
    return order[: count if limit is None else limit]


_Entries = list[tuple[Path, int]]


def _list_by_table(table: Path) -> tuple[_Entries, tuple[str, ...]]:
    """Files and labels of labels.csv; files stay within its folder."""
    entries: _Entries = []
    names: dict[int, str] = {}
    root = table.parent.resolve()
    try:
        with table.open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.reader(file), 1):
                if not row or (number == 1 and len(row) > 1 and not row[1].strip().lstrip("-").isdigit()):
                    continue  # An empty line, or the heads of the columns.
                label = int(row[1])
                path = (root / row[0]).resolve()
                if label < 0 or not path.is_relative_to(root):
                    raise ValueError(f"line {number}: a label below 0, or a file outside the folder")
                entries.append((path, label))
                if len(row) > 2:
                    names[label] = row[2]
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise DatasetError(f"{table}: cannot read the labels: {explain(error)}; each line is: file, class index, class name") from error
    if not entries:
        raise DatasetError(f"{table}: names no images; each line is: file, class index, class name")
    top = max(label for _, label in entries)
    classes = tuple(names.get(label, str(label)) for label in range(top + 1)) if names and top < 10_000 else ()
    return entries, classes


def _list_by_folder(folder: Path) -> tuple[_Entries, tuple[str, ...]]:
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    entries = [(path, label) for label, name in enumerate(classes) for path in list_images(folder / name)]
    if len(classes) < 2 or not entries:
        raise DatasetError(f"{folder}: has neither {LABELS} nor one sub-folder of images a class")
    return entries, tuple(classes)


def _decode(folder: Path, entries: _Entries, classes: tuple[str, ...], size: int | None) -> Labelled:
    pixels: list[np.ndarray] = []
    labels: list[int] = []

    def fit(array: np.ndarray) -> np.ndarray:
        return array if size is None else _crop(array, size)

    for place, array in decode_images(folder, [path for path, _ in entries], fit, "use a smaller --limit or --size"):
        path, label = entries[place]
        if pixels and array.shape[:2] != pixels[0].shape[:2]:
            raise DatasetError(f"{path}: is {array.shape[1]}x{array.shape[0]}, others are not; give one --size for all")
        pixels.append(array)
        labels.append(label)
    if not pixels:
        raise DatasetError(f"{folder}: none of its images can be read")
    channels = max(array.shape[2] for array in pixels)
    stack = np.stack([np.broadcast_to(array, (*array.shape[:2], channels)) for array in pixels])
    batch = torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous()
    return Labelled(folder.name, batch, torch.tensor(labels), classes, len(entries) - len(pixels))


def _crop(array: np.ndarray, size: int) -> np.ndarray:
    """Scaled to `size` on the shorter side, and the centre cropped, as ImageNet's classifiers expect."""
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    fitted = np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))
    return fitted[..., None] if fitted.ndim == 2 else fitted
