"""Writers of the formats that the project reads: CIFAR-10 batches, IDX files, the authors' checkpoints, PNG of any kind.

The pickles are written opcode by opcode, as Python 2's cPickle and NumPy 1 wrote the originals.
"""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from conftest import photo
from hypothesis import strategies as st

BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


class Raw(bytes):
    """Opcodes that stand for themselves."""


def python2_pickle(value: Any) -> bytes:
    """A protocol 2 pickle as Python 2 writes it: byte strings, 32-bit integers, `numpy.core`."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: Any) -> bytes:
    if isinstance(value, Raw):
        return bytes(value)
    if value is None:
        return b"N"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, bytes):
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_opcodes, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(_opcodes, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_opcodes(item) for pair in value.items() for item in pair) + b"u"
    assert isinstance(value, np.ndarray)
    if value.dtype.hasobject:
        return array_opcodes(value.shape, dtype_opcodes(b"O8", b"|", 63), list(value.ravel()))
    order = b"|" if value.dtype.itemsize == 1 else b">" if value.dtype.str[0] == ">" else b"<"
    return array_opcodes(value.shape, dtype_opcodes(value.dtype.str[1:].encode(), order), value.tobytes())


def dtype_opcodes(name: bytes, order: bytes, flags: int = 0) -> Raw:
    """A pickled `numpy.dtype`."""
    state = (3, order, None, None, None, -1, -1, flags)
    return Raw(b"cnumpy\ndtype\n" + _opcodes((name, 0, 1)) + b"R" + _opcodes(state) + b"b")


def array_opcodes(shape: Any, dtype: Any, content: Any, fortran: int = 0) -> Raw:
    """A pickled `numpy.ndarray`, of any parts, fitting or not."""
    made = b"cnumpy.core.multiarray\n_reconstruct\n" + _opcodes((Raw(b"cnumpy\nndarray\n"), (0,), b"b")) + b"R"
    return Raw(made + _opcodes((1, shape, dtype, fortran, content)) + b"b")


def cuts(count: int, side: int, *, gray: bool = False) -> np.ndarray:
    """Squares cut from a photograph, uint8 (count, side, side, 3), or (count, side, side) if grey."""
    image = photo("camera.png" if gray else "astronaut.png")
    places = [(37 * i % (512 - side), 101 * i % (512 - side)) for i in range(count)]
    return np.stack([image[top : top + side, left : left + side] for top, left in places])


def cifar_batch(images: np.ndarray, labels: list[int]) -> bytes:
    """A batch file of images (N, 32, 32, 3)."""
    rows = np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(len(images), 3072))
    names = [b"image_%04d.png" % i for i in range(len(images))]
    return python2_pickle({b"batch_label": b"training batch 1 of 5", b"labels": labels, b"data": rows, b"filenames": names})


def cifar_rows(images: np.ndarray, labels: list[int]) -> bytes:
    """A batch file of the binary release: a label and 3072 values an image."""
    return b"".join(bytes([label]) + image.transpose(2, 0, 1).tobytes() for image, label in zip(images, labels, strict=True))


def cifar_files(count: int = 3, *, binary: bool = False) -> dict[str, bytes]:
    """All six batch files of either release, of `count` images each: `cuts(6 * count, 32)` in order."""
    images = cuts(6 * count, 32)
    write_batch, ending = (cifar_rows, ".bin") if binary else (cifar_batch, "")
    parts = [(images[i * count : (i + 1) * count], [(i + j) % 10 for j in range(count)]) for i in range(6)]
    return {name + ending: write_batch(*part) for name, part in zip(BATCHES, parts, strict=True)}


def tar_gz(members: dict[str, bytes]) -> bytes:
    """A .tar.gz of regular files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def cifar_archive(count: int = 3, *, binary: bool = False) -> bytes:
    """An archive like the official one of either release, with its other members."""
    other = {"batches.meta.txt" if binary else "batches.meta": b"airplane", "readme.html": b"<a>"}
    folder = f"cifar-10-batches-{'bin' if binary else 'py'}"
    return tar_gz({f"{folder}/{name}": data for name, data in (other | cifar_files(count, binary=binary)).items()})


def idx(array: np.ndarray) -> bytes:
    """An uncompressed IDX file of bytes."""
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def mnist_files(count: int = 3) -> dict[str, bytes]:
    """The four official files, compressed, of `count` images a split: `cuts(2 * count, 28, gray=True)` in order."""
    images = cuts(2 * count, 28, gray=True)
    labels = np.arange(2 * count, dtype=np.uint8) % 10
    files = {}
    for split, part in (("train", slice(0, count)), ("t10k", slice(count, None))):
        files[f"{split}-images-idx3-ubyte.gz"] = gzip.compress(idx(images[part]))
        files[f"{split}-labels-idx1-ubyte.gz"] = gzip.compress(idx(labels[part]))
    return files


def write(folder: Path, files: dict[str, bytes]) -> None:
    """Write files into a folder, made if absent."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def objects(arrays: list[np.ndarray]) -> np.ndarray:
    """An object array of arrays, also where all have one shape."""
    array = np.empty(len(arrays), object)
    for index, item in enumerate(arrays):
        array[index] = item
    return array


def npz(pickled: bytes, *, header: str = "{'descr': '|O', 'fortran_order': False, 'shape': (18L,), }", member: str = "w.npy") -> bytes:
    """An archive with one .npy member, its header as Python 2's NumPy wrote it."""
    text = header.encode() + b" " * (-(len(header) + 11) % 16) + b"\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + pickled)
    return buffer.getvalue()


def png(width: int, height: int, data: bytes, *, depth: int = 8, color: int = 2, key: bytes = b"") -> bytes:
    """A PNG of these rows, of any depth and colour type, with `key` as its transparent colour."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    if key:
        chunks.insert(1, (b"tRNS", key))
    parts = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims any size."""
    return png(width, height, b"\0" * 64)


def damage(content: bytes, data: st.DataObject) -> bytes:
    """A file with one to three of its bytes changed."""
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    return bytes(damaged)
