"""What is fuzzed: the readers of files that anybody may have made, each with seeds that are made here.

A target takes bytes and makes of them what its reader reads. It raises `FindingError`, or whatever else escapes the reader, where that is
not one of the errors that it documents. Nothing here needs a fuzzer: tests run the same targets on the seeds and a few changes of each.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from comdefend_cli.data.datasets import load_dataset
from comdefend_cli.data.sources import ImageArray
from comdefend_cli.errors import ComdefendError
from comdefend_cli.imaging.reading import read_image
from comdefend_cli.network.architecture import PaperArchitecture, ResidualArchitecture
from comdefend_cli.network.authors import MEMBER, read_checkpoint
from comdefend_cli.network.model import ComDefend
from comdefend_cli.network.weight_file import parse_weights, save_weights

#: Enough for all that a small input decodes to; what claims more is refused, as with --max-megapixels.
MEGAPIXELS = 4
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "TGA", "JPEG2000", "AVIF", "PCX", "SGI", "DDS", "ICO", "ICNS", "MSP", "QOI")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class FindingError(AssertionError):
    """A reader returned what it promises not to."""


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        run: reads bytes; lets through what must not happen.
        make_seeds: inputs to begin with.
        modules: whose lines and branches guide the fuzzer.
    """

    run: Callable[[bytes], None]
    make_seeds: Callable[[], list[bytes]]
    modules: tuple[str, ...]


@cache
def _folder() -> Path:
    """A folder for inputs that are read from files; whoever starts the process says where, and deletes it: libFuzzer does not."""
    return Path(tempfile.mkdtemp())


def _seal_png(data: bytes) -> bytes:
    """A PNG with the checksums that its chunks should have, so that changes reach what is behind them."""
    parts, at = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        body = data[at + 4 : at + 8 + length]
        if len(body) < 4 + length:
            break
        parts += [data[at : at + 4], body, struct.pack(">I", zlib.crc32(body))]
        at += 12 + length
    return b"".join([*parts, data[at:]])


def read_any_image(data: bytes) -> None:
    """An image file; a PNG with its checksums set right."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            raster = read_image(_seal_png(data) if data.startswith(PNG_SIGNATURE) else data, max_megapixels=MEGAPIXELS)
        except ComdefendError as error:
            _check_message(error)
            return
    height, width, channels = raster.pixels.shape
    if raster.pixels.dtype != np.uint8 or channels not in (1, 3) or not height * width:
        raise FindingError(f"pixels {raster.pixels.dtype} {raster.pixels.shape}")
    if raster.alpha is not None and (raster.alpha.dtype != np.uint8 or raster.alpha.shape != (height, width)):
        raise FindingError(f"alpha {raster.alpha.dtype} {raster.alpha.shape} of {raster.pixels.shape}")
    raster.to_pillow()


def read_cifar(data: bytes) -> None:
    """CIFAR-10: by the first byte a pickled batch, an unpacked archive, a packed one, or a binary batch; it stands for all six batches."""
    kind, data = data[:1], data[1:]
    folder = _folder() / f"cifar-{kind.hex()[:1]}"
    folder.mkdir(exist_ok=True)
    batches = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
    if kind == b"p":
        _write_all(folder, batches, data)
    elif kind in (b"t", b"z"):
        (folder / "cifar-10-python.tar.gz").write_bytes(gzip.compress(data, 1) if kind == b"t" else data)
    else:
        _write_all(folder, [f"{name}.bin" for name in batches], data)
    _read_dataset("cifar10", folder)


def read_idx(data: bytes) -> None:
    """MNIST: the input is the images where the first byte is "i", else the labels, of both splits."""
    folder = _folder() / "idx"
    folder.mkdir(exist_ok=True)
    images, labels = (data[1:], _make_idx(1)) if data[:1] == b"i" else (_make_idx(3), data[1:])
    _write_all(folder, ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"), images)
    _write_all(folder, ("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"), labels)
    _read_dataset("mnist", folder)


def read_authors(data: bytes) -> None:
    """A checkpoint of ComDefend's authors: the archive where the first byte is "z", else the array file inside one."""
    path = _folder() / "checkpoint.npy"
    path.write_bytes(data[1:] if data[:1] == b"z" else _pack_member(data[1:]))
    try:
        arrays = read_checkpoint(path)
    except ComdefendError as error:
        _check_message(error)
        return
    if len(arrays) != 18 or any(array.dtype != np.float32 or not np.isfinite(array).all() for array in arrays):
        raise FindingError("arrays that are not finite float32")


def read_weights(data: bytes) -> None:
    """A weight file: as it is where the first byte is "w", else a header whose length is told right, before the tensors of a good file."""
    content = data[1:] if data[:1] == b"w" else struct.pack("<Q", len(data[1:])) + data[1:] + _make_weights(False, "")[1]
    try:
        weights = parse_weights(content, Path("weights.safetensors"), "weights", "")
    except ComdefendError as error:
        _check_message(error)
        return
    if not all(torch.isfinite(tensor).all() for tensor in weights.model.state_dict().values()):
        raise FindingError("weights that are not finite")


def _read_dataset(name: str, folder: Path) -> None:
    try:
        dataset = load_dataset(name, folder, download=False)
    except ComdefendError as error:
        _check_message(error)
        return
    for split in (dataset.train, dataset.test):
        assert isinstance(split, ImageArray)
        if split.pixels.dtype != torch.uint8 or split.pixels.ndim != 4 or len(split.pixels) != len(split.labels):
            raise FindingError(f"{split.pixels.dtype} {tuple(split.pixels.shape)} and {len(split.labels)} labels")


def _check_message(error: ComdefendError) -> None:
    """An error is one line, which a terminal shows whole."""
    if len(str(error).splitlines()) != 1 or len(str(error)) > 2000:
        raise FindingError(f"an error of {len(str(error).splitlines())} lines and {len(str(error))} characters") from error


def _write_all(folder: Path, names: tuple[str, ...] | list[str], data: bytes) -> None:
    """One file under several names."""
    (folder / names[0]).write_bytes(data)
    for name in names[1:]:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(names[0])


# Seeds


def make_images() -> list[bytes]:
    """Small pictures of many modes in every format that Pillow writes and the reader reads, with what else files carry."""
    rng = np.random.default_rng(0)
    color = Image.fromarray(rng.integers(0, 256, (9, 13, 4), np.uint8))
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x010F: "maker", 0x829A: IFDRational(1, 3)})
    extras = {"exif": exif, "icc_profile": b"\0" * 128, "xmp": b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>", "dpi": (72, 72)}
    seeds = []
    for name in FORMATS:
        for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "F"):
            for options in ({}, extras):
                image = Image.new(mode, (13, 9), 7) if mode in ("I;16", "F") else color.convert("RGB").convert(mode)
                image = color if mode == "RGBA" else image
                file = io.BytesIO()
                try:
                    image.save(file, name, **options)
                except (OSError, ValueError, KeyError, TypeError, AttributeError):
                    continue  # A format has not every mode.
                seeds.append(file.getvalue())
    frames = [color.convert("P"), color.rotate(90).convert("P")]
    for name in ("GIF", "PNG", "WEBP", "TIFF"):
        file = io.BytesIO()
        frames[0].save(file, name, save_all=True, append_images=frames[1:])
        seeds.append(file.getvalue())
    return sorted({seed for seed in seeds if len(seed) < 4096})


def make_cifar() -> list[bytes]:
    """A batch in each form, in several protocols, and archives."""
    pixels, labels = np.zeros((1, 3072), np.uint8), [3]
    batch = {b"data": pixels, b"labels": labels, b"batch_label": b"x", b"filenames": [b"a.png"]}
    seeds = [b"p" + pickle.dumps(batch, protocol) for protocol in range(6)]
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number in range(6):
            info = tarfile.TarInfo("cifar-10-batches-py/" + ("test_batch" if number == 5 else f"data_batch_{number + 1}"))
            content = pickle.dumps({b"data": pixels, b"labels": labels}, 2)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return [*seeds, b"b" + bytes(3073), b"t" + file.getvalue(), b"z" + gzip.compress(file.getvalue())]


def _make_idx(dimensions: int) -> bytes:
    shape = (1, 28, 28)[:dimensions]
    return struct.pack(f">{1 + dimensions}I", 0x800 + dimensions, *shape) + bytes(int(np.prod(shape)))


def make_idx() -> list[bytes]:
    """Images and labels, packed and not."""
    return [kind + pack(_make_idx(size)) for kind, size in ((b"i", 3), (b"l", 1)) for pack in (bytes, gzip.compress)]


def _pack_member(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(MEMBER, content)
    return file.getvalue()


def make_authors() -> list[bytes]:
    """Checkpoints of nine narrow layers in several protocols, as array files and within archives."""
    layers = np.empty(18, object)
    for layer in range(9):
        channels = 3 if layer == 0 else 1
        layers[2 * layer], layers[2 * layer + 1] = np.zeros((3, 3, channels, 1), np.float32), np.zeros(1, np.float32)
    seeds = []
    for protocol in (0, 2, 3, 4, 5):
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (18,)})
        file.write(pickle.dumps(layers, protocol))
        seeds.append(b"m" + file.getvalue())
    return [*seeds, b"z" + _pack_member(seeds[1][1:])]


@cache
def _make_weights(residual: bool, digest: str) -> tuple[bytes, bytes]:
    """Header and tensors of a file of narrow networks."""
    torch.manual_seed(0)
    model = ComDefend(ResidualArchitecture(3, 4, 2, 1, 1) if residual else PaperArchitecture(1, 4, (1,) * 8))
    path = _folder() / f"seed-{residual}.safetensors"
    save_weights(path, model, {"data": "none"}, overwrite=True)
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    if not digest:  # Files from before they said their hash, which lets changes through to what is behind.
        fields = json.loads(header["__metadata__"]["comdefend"])
        del fields["sha256"]
        header["__metadata__"]["comdefend"] = json.dumps(fields)
    return json.dumps(header).encode(), data[8 + length :]


def make_weights() -> list[bytes]:
    """Files of both families, with and without their hash, and headers alone."""
    made = [_make_weights(residual, digest) for residual in (False, True) for digest in ("", "kept")]
    return [*(b"w" + struct.pack("<Q", len(header)) + header + tensors for header, tensors in made), *(b"h" + header for header, _ in made)]


TARGETS = {
    "image": Target(read_any_image, make_images, ("comdefend_cli.imaging", "PIL")),
    "cifar": Target(read_cifar, make_cifar, ("comdefend_cli.data", "comdefend_cli.runtime", "pickletools", "tarfile")),
    "idx": Target(read_idx, make_idx, ("comdefend_cli.data", "comdefend_cli.runtime", "gzip")),
    "authors": Target(read_authors, make_authors, ("comdefend_cli.network", "comdefend_cli.runtime", "pickletools", "zipfile")),
    "weights": Target(read_weights, make_weights, ("comdefend_cli.network", "comdefend_cli.runtime", "safetensors", "json")),
}
