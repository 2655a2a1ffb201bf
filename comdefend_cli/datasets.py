"""Training images: CIFAR-10, MNIST and Fashion-MNIST in their official files, and folders of pictures."""

from __future__ import annotations

import gzip
import hashlib
import struct
import tarfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from comdefend_cli import images
from comdefend_cli.errors import ComdefendError, DatasetError, ImageError, reason
from comdefend_cli.files import atomic
from comdefend_cli.unpickle import loads

DATASETS = ("cifar10", "fashion-mnist", "mnist")
#: Called with bytes done and bytes in all (0 when the server does not say).
DownloadProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Archive:
    """A file on an official server.

    Attributes:
        url: where it is.
        md5: its checksum, as the data set's authors publish it.
    """

    url: str
    md5: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[1]


#: Checksums: https://www.cs.toronto.edu/~kriz/cifar.html and https://github.com/zalandoresearch/fashion-mnist;
#: MNIST's are those of the four files on its mirror, as torchvision lists them.
ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "cifar10": (Archive("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),),
    "fashion-mnist": tuple(
        Archive(f"http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{name}", md5)
        for name, md5 in (
            ("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            ("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
            ("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
            ("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
        )
    ),
    "mnist": tuple(
        Archive(f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}", md5)
        for name, md5 in (
            ("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            ("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
            ("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
            ("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
        )
    ),
}
#: Guards against an archive that unpacks to more than the data set can be.
MAX_UNPACKED = 2**30


class TrainingImages(Protocol):
    """Where training batches come from."""

    def __len__(self) -> int: ...

    @property
    def channels(self) -> int:
        """1 or 3."""
        ...

    def batch(self, size: int, generator: torch.Generator) -> Tensor:
        """`size` random images, uint8 (size, channels, side, side), drawn by the generator alone."""
        ...


@dataclass(frozen=True)
class ImageArray:
    """Images of one size in memory.

    Attributes:
        pixels: uint8 (N, C, H, W).
        labels: int64 (N,), or empty where there are none.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def channels(self) -> int:
        """1 or 3."""
        return int(self.pixels.shape[1])

    def batch(self, size: int, generator: torch.Generator) -> Tensor:
        """`size` images drawn with replacement, mirrored at random left to right."""
        chosen = self.pixels[torch.randint(len(self), (size,), generator=generator)]
        mirror = torch.rand(size, 1, 1, 1, generator=generator) < 0.5
        return torch.where(mirror, chosen.flip(3), chosen)


@dataclass(frozen=True)
class Crops:
    """Random square crops of pictures of any size, all decoded in memory.

    Attributes:
        pictures: uint8 (C, H, W) each, H and W at least `side`.
        side: of a crop, in pixels.
    """

    pictures: list[Tensor]
    side: int = 32

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def channels(self) -> int:
        """1 or 3."""
        return int(self.pictures[0].shape[0])

    def batch(self, size: int, generator: torch.Generator) -> Tensor:
        """`size` crops at random places of random pictures, mirrored at random left to right."""
        crops = []
        for index in torch.randint(len(self), (size,), generator=generator).tolist():
            picture = self.pictures[index]
            top, left = (int(torch.randint(n - self.side + 1, (), generator=generator)) for n in picture.shape[1:])
            crop = picture[:, top : top + self.side, left : left + self.side]
            crops.append(crop.flip(2) if torch.rand((), generator=generator) < 0.5 else crop)
        return torch.stack(crops)


@dataclass(frozen=True)
class Dataset:
    """A data set, split.

    Attributes:
        name: for the weight file's header.
        train: what the networks learn from.
        test: what PSNR is measured on, uint8 (N, C, H, W).
    """

    name: str
    train: TrainingImages
    test: ImageArray


def load(name: str, folder: Path, *, download: bool = True, progress: DownloadProgress | None = None) -> Dataset:
    """A data set by name from its official files in `folder`, downloaded there if absent; or a folder of pictures.

    Args:
        name: one of `DATASETS`, or the path of a folder of pictures.
        folder: where the official files are, or go.
        download: whether absent files may be downloaded.
        progress: called while downloading.

    Raises:
        DatasetError: absent, damaged, not downloadable; the message says what to put where.
    """
    if name == "cifar10":
        return _cifar10(folder, download, progress)
    if name in ("mnist", "fashion-mnist"):
        return _mnist(name, folder, download, progress)
    if Path(name).is_dir():
        return _picture_folder(Path(name))
    raise DatasetError(f"{name}: no such data set or folder; use {', '.join(DATASETS)}, or a folder of pictures")


def _cifar10(folder: Path, download: bool, progress: DownloadProgress | None) -> Dataset:
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    batches = folder / "cifar-10-batches-py"
    (archive,) = ARCHIVES["cifar10"]
    if batches.is_dir():
        files = iter([(name, _read(batches / name)) for name in names])
    else:
        path = _obtain("cifar10", archive, folder, folder, "cifar-10-batches-py/ or cifar-10-python.tar.gz", download, progress)
        files = _untar(path, names)
    parts = [_cifar_batch(data, batches / name) for name, data in files]
    pixels, labels = zip(*parts, strict=True)
    train = ImageArray(torch.cat(pixels[:-1]), torch.cat(labels[:-1]))
    return Dataset("cifar10", train, ImageArray(pixels[-1], labels[-1]))


def _untar(path: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """The named members of the CIFAR-10 archive, read in memory: nothing is unpacked onto the disk."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name.removeprefix("cifar-10-batches-py/")
                if name in names and member.isfile():
                    if member.size > MAX_UNPACKED:
                        raise DatasetError(f"{path}: {member.name} is too large for CIFAR-10; get the official archive")
                    file = archive.extractfile(member)
                    found[name] = file.read() if file else b""
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DatasetError(f"{path}: damaged archive: {reason(error)}; delete it to download it again") from error
    if missing := [name for name in names if name not in found]:
        raise DatasetError(f"{path}: has no cifar-10-batches-py/{missing[0]}; get the official archive")
    yield from ((name, found[name]) for name in names)


def _cifar_batch(data: bytes, path: Path) -> tuple[Tensor, Tensor]:
    try:
        batch = loads(data)
        pixels, labels = batch[b"data"], np.array(batch[b"labels"], np.int64)
        if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072 or labels.shape != pixels.shape[:1]:
            raise ValueError(f"its data is {pixels.dtype} {pixels.shape}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path}: not a CIFAR-10 batch: {reason(error)}; get the official files") from error
    return torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy()), torch.from_numpy(labels)


def _mnist(name: str, folder: Path, download: bool, progress: DownloadProgress | None) -> Dataset:
    where = folder if (folder / ARCHIVES[name][0].name).exists() else folder / name
    splits = []
    for images_archive, labels_archive in (ARCHIVES[name][:2], ARCHIVES[name][2:]):
        what = f"{name}/{images_archive.name}"
        pixels = _idx(_obtain(name, images_archive, where, folder, what, download, progress), 3)
        what = f"{name}/{labels_archive.name}"
        labels = _idx(_obtain(name, labels_archive, where, folder, what, download, progress), 1)
        splits.append(ImageArray(torch.from_numpy(pixels)[:, None], torch.from_numpy(labels.astype(np.int64))))
    return Dataset(name, splits[0], splits[1])


def _idx(path: Path, dimensions: int) -> np.ndarray:
    """An array in the IDX format (http://yann.lecun.com/exdb/mnist): two zeros, type 8, dimensions, sizes, bytes."""
    try:
        with gzip.open(path) as file:
            data = file.read(MAX_UNPACKED)
        magic, *shape = struct.unpack_from(f">{1 + dimensions}I", data)
        values = np.frombuffer(data, np.uint8, offset=4 * (1 + dimensions))
        if magic != 0x800 + dimensions or values.size != np.prod(shape, dtype=np.int64):
            raise ValueError("its header does not fit its length")
        return values.reshape(shape).copy()
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise DatasetError(f"{path}: not an IDX file: {reason(error)}; delete it to download it again") from error


def _picture_folder(folder: Path) -> Dataset:
    """Pictures below a folder as random crops; one in twenty is kept for testing."""
    known = images.suffixes(writable=False)
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in known and path.is_file())
    pictures = []
    for path in paths:
        with suppress(ImageError):
            pixels = images.read(path).pixels
            if min(pixels.shape[:2]) >= 32:
                pictures.append(torch.from_numpy(pixels).permute(2, 0, 1))
    if len(pictures) < 2:
        raise DatasetError(f"{folder}: needs at least 2 readable pictures of 32x32 pixels or more, found {len(pictures)}")
    if any(picture.shape[0] == 3 for picture in pictures):
        pictures = [picture.expand(3, -1, -1) for picture in pictures]
    held_out = max(1, len(pictures) // 20)
    test = Crops(pictures[:held_out]).batch(max(64, held_out), torch.Generator().manual_seed(0))
    return Dataset(f"folder:{folder.name}", Crops(pictures[held_out:]), ImageArray(test, torch.empty(0, dtype=torch.int64)))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: cannot read: {reason(error)}") from error


def _obtain(
    name: str, archive: Archive, where: Path, folder: Path, what: str, download_absent: bool, progress: DownloadProgress | None
) -> Path:
    """The path of an official file, after downloading it if it is absent."""
    path = where / archive.name
    if path.exists():
        return path
    remedy = f"download {archive.url} yourself and put it into {where}, or point --data-dir at a folder that holds {what}"
    if not download_absent:
        raise DatasetError(f"{name} is not in {folder}: {remedy}")
    try:
        where.mkdir(parents=True, exist_ok=True)
        download(archive, path, progress)
    except (ComdefendError, OSError) as error:
        raise DatasetError(f"{name} is not in {folder}, and downloading it failed ({reason(error)}): {remedy}") from error
    return path


def download(archive: Archive, path: Path, progress: DownloadProgress | None = None) -> None:
    """Fetch a file to `path`, which appears only when whole and with the right checksum.

    Raises:
        DatasetError: the server cannot be reached, the transfer broke, or the checksum is another.
        ComdefendError: `path` cannot be written.
    """
    digest, done = hashlib.md5(usedforsecurity=False), 0
    with atomic(path) as file:
        try:
            with urllib.request.urlopen(archive.url, timeout=30) as response:  # noqa: S310  # Addresses are ours, above.
                total = int(response.headers.get("Content-Length") or 0)
                while chunk := response.read(1 << 16):
                    file.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    if progress:
                        progress(done, total)
        except (OSError, ValueError) as error:
            raise DatasetError(f"{archive.url}: {reason(error)}") from error
        if total and done != total:
            raise DatasetError(f"{archive.url}: the transfer ended after {done} of {total} bytes")
        if digest.hexdigest() != archive.md5:
            raise DatasetError(f"{archive.url}: the file's checksum is not the published one")
