"""Training images: CIFAR-10, MNIST and Fashion-MNIST in their official files, and folders of images."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import math
import struct
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from comdefend_cli.errors import ComdefendError, DatasetError, ImageError, reason
from comdefend_cli.imaging import images
from comdefend_cli.runtime.files import atomic
from comdefend_cli.runtime.unpickle import loads

DATASETS = ("cifar10", "fashion-mnist", "mnist")
#: Side of the random crops of a folder's images, in pixels: as large as CIFAR-10's images.
CROP = 32
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
#: Guards against files that are, or unpack to, more than a data set can be: CIFAR-10's archive takes 178 MB, and
#: 186 MB unpacked, 31 MB a batch; MNIST's largest file 47 MB.
MAX_DOWNLOAD = 2**28
MAX_UNPACKED = 2**29
MAX_FILE = 2**26
#: The pixels of a folder of images, which are all kept in memory.
MAX_IMAGE_BYTES = 4 * 2**30
#: Seconds a server may keep silent.
TIMEOUT = 30.0
_CIFAR_FOLDER = "cifar-10-batches-py"
_CIFAR_BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
_MNIST_SIDE = 28


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
    """Random square crops of images of any size, all decoded in memory.

    Attributes:
        images: uint8 (C, H, W) each, H and W at least `side`.
        side: of a crop, in pixels.
    """

    images: list[Tensor]
    side: int = CROP

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        """1 or 3."""
        return int(self.images[0].shape[0])

    def batch(self, size: int, generator: torch.Generator) -> Tensor:
        """`size` crops at random places of random images, mirrored at random left to right."""
        crops = []
        for index in torch.randint(len(self), (size,), generator=generator).tolist():
            image = self.images[index]
            top, left = (int(torch.randint(n - self.side + 1, (), generator=generator)) for n in image.shape[1:])
            crop = image[:, top : top + self.side, left : left + self.side]
            crops.append(crop.flip(2) if torch.rand((), generator=generator) < 0.5 else crop)
        return torch.stack(crops)


@dataclass(frozen=True)
class Dataset:
    """A data set, split.

    Attributes:
        name: for the weight file's header.
        train: what the networks learn from.
        test: what PSNR is measured on, uint8 (N, C, H, W).
        skipped: files in a folder of images that could not be read, or are smaller than a crop.
    """

    name: str
    train: TrainingImages
    test: ImageArray
    skipped: int = 0


def load(name: str, folder: Path, *, download: bool = True, progress: DownloadProgress | None = None, crop: int = CROP) -> Dataset:
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
        return _cifar10(folder, download, progress)
    if name in ("mnist", "fashion-mnist"):
        return _mnist(name, folder, download, progress)
    try:
        is_folder = bool(name) and Path(name).is_dir()
    except OSError:  # A name that no folder can have.
        is_folder = False
    if is_folder:
        return _image_folder(Path(name), crop)
    raise DatasetError(f"{name}: no such data set or folder; use {', '.join(DATASETS)}, or a folder of images")


def _cifar10(folder: Path, download: bool, progress: DownloadProgress | None) -> Dataset:
    (archive,) = ARCHIVES["cifar10"]
    batches = folder if (folder / _CIFAR_BATCHES[0]).is_file() else folder / _CIFAR_FOLDER
    if batches.is_dir():
        files = ((str(batches / name), _read(batches / name)) for name in _CIFAR_BATCHES)
    else:
        what = f"{_CIFAR_FOLDER}/ or {archive.name}"
        path = _obtain("cifar10", archive, [folder / archive.name], folder, what, download, progress)
        files = ((f"{path}: {name}", data) for name, data in _untar(path).items())
    pixels, labels = zip(*(_cifar_batch(data, where) for where, data in files), strict=True)
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


def _cifar_batch(data: bytes, where: str) -> tuple[Tensor, Tensor]:
    """Pixels uint8 (N, 3, 32, 32) and labels int64 (N,) of one batch file."""
    try:
        batch = loads(data)
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


def _mnist(name: str, folder: Path, download: bool, progress: DownloadProgress | None) -> Dataset:
    # MNIST's and Fashion-MNIST's files have the same names, so the folder named after the data set goes first.
    flat = not (folder / name).is_dir() and any(path.exists() for path in _spellings(folder, ARCHIVES[name][0]))
    where = folder if flat else folder / name
    splits = []
    for pair in (ARCHIVES[name][:2], ARCHIVES[name][2:]):
        paths = [
            _obtain(name, archive, _spellings(where, archive), folder, f"{name}/{archive.name}", download, progress) for archive in pair
        ]
        pixels, labels = _idx(paths[0], 3), _idx(paths[1], 1)
        if len(pixels) != len(labels) or not len(pixels) or pixels.shape[1:] != (_MNIST_SIDE, _MNIST_SIDE):
            raise DatasetError(f"{paths[0]}: holds {pixels.shape} pixels for {len(labels)} labels; get the official files")
        splits.append(ImageArray(torch.from_numpy(pixels)[:, None], torch.from_numpy(labels.astype(np.int64))))
    return Dataset(name, splits[0], splits[1])


def _spellings(folder: Path, archive: Archive) -> list[Path]:
    """Where an IDX file may be: as published, unpacked, or unpacked by the name within the archive."""
    unpacked = archive.name.removesuffix(".gz")
    return [folder / name for name in (archive.name, unpacked, unpacked.replace("-idx", ".idx"))]


def _idx(path: Path, dimensions: int) -> np.ndarray:
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
        raise DatasetError(f"{path}: not an IDX file: {reason(error)}; get the official one, or delete it to download it") from error


def _image_folder(folder: Path, crop: int) -> Dataset:
    """Images below a folder as random crops; one in twenty, evenly spread, is kept for testing."""
    known = images.suffixes(writable=False)
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in known and path.is_file())
    found, size = [], 0
    for path in paths:
        each = _image(path, crop)
        if each is None:
            continue
        found.append(each)
        size += each.numel()
        if size > MAX_IMAGE_BYTES:
            raise DatasetError(f"{folder}: its images take more than {MAX_IMAGE_BYTES >> 30} GiB of memory; use fewer or smaller ones")
    if len(found) < 2:
        raise DatasetError(f"{folder}: needs at least 2 readable images of {crop}x{crop} pixels or more, found {len(found)}")
    skipped = len(paths) - len(found)
    if any(each.shape[0] == 3 for each in found):
        found = [each.expand(3, -1, -1) for each in found]
    held_out = found[::20]
    del found[::20]
    test = Crops(held_out, crop).batch(max(64, len(held_out)), torch.Generator().manual_seed(0))
    return Dataset(f"folder:{folder.name}", Crops(found, crop), ImageArray(test, torch.empty(0, dtype=torch.int64)), skipped)


def _image(path: Path, crop: int) -> Tensor | None:
    """An image, uint8 (C, H, W), or None where there is none of a crop's size."""
    try:
        pixels = images.read(path).pixels
    except ImageError:
        return None
    return torch.from_numpy(pixels).permute(2, 0, 1) if min(pixels.shape[:2]) >= crop else None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise DatasetError(f"{path}: cannot read: {reason(error)}; get the official files") from error
    if len(data) > MAX_FILE:
        raise DatasetError(f"{path}: too large for CIFAR-10; get the official files")
    return data


def _obtain(
    name: str, archive: Archive, paths: list[Path], folder: Path, what: str, download_absent: bool, progress: DownloadProgress | None
) -> Path:
    """The first of `paths` that exists, or the first of all after downloading the official file there."""
    for path in paths:
        if path.exists():
            return path
    target = paths[0]
    remedy = f"download {archive.url} yourself and put it into {target.parent}, or point --data-dir at a folder that holds {what}"
    if not download_absent:
        raise DatasetError(f"{name} is not in {folder}: {remedy}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        download(archive, target, progress)
    except (ComdefendError, OSError) as error:
        raise DatasetError(f"{name} is not in {folder}, and downloading it failed ({reason(error)}): {remedy}") from error
    return target


def download(archive: Archive, path: Path, progress: DownloadProgress | None = None, *, timeout: float = TIMEOUT) -> None:
    """Fetch a file to `path`, which appears only when whole and with the right checksum.

    Args:
        archive: what to fetch.
        path: where to; replaced if it came to be meanwhile, as when several processes of one run download.
        progress: called after each piece.
        timeout: seconds the server may keep silent.

    Raises:
        DatasetError: the server cannot be reached, the transfer broke, or the checksum is another.
        ComdefendError: `path` cannot be written.
    """
    digest, done, total = hashlib.md5(usedforsecurity=False), 0, 0
    with atomic(path, overwrite=True) as file:
        for chunk, total in _transfer(archive.url, timeout):
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            if done > MAX_DOWNLOAD:
                raise DatasetError(f"{archive.url}: sends more than {MAX_DOWNLOAD >> 20} MiB")
            if progress:
                progress(done, total)
        if done < total:
            raise DatasetError(f"{archive.url}: the transfer ended after {done} of {total} bytes")
        if digest.hexdigest() != archive.md5:
            raise DatasetError(f"{archive.url}: the file's checksum is not the published one")


def _transfer(url: str, timeout: float) -> Iterator[tuple[bytes, int]]:
    """The pieces of a file on a server, each with the bytes that the server promised in all, or 0."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:  # noqa: S310  # Addresses are ours, above.
            total = int(response.headers.get("Content-Length") or 0)
            while chunk := response.read(1 << 16):
                yield chunk, total
    except urllib.error.HTTPError as error:
        raise DatasetError(f"{url}: the server says {error.code} {reason(Exception(error.reason))}") from error
    except urllib.error.URLError as error:
        cause = error.reason if isinstance(error.reason, OSError) else error
        raise DatasetError(f"{url}: {reason(cause)}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DatasetError(f"{url}: the transfer broke: {reason(error)}") from error
