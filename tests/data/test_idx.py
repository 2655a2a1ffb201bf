"""MNIST and Fashion-MNIST: the official files in each form that people have them, and damaged ones."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from formats import cuts, damage, idx, mnist_files, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import refused

from comdefend_cli.data.datasets import load_dataset
from comdefend_cli.data.sources import ImageArray
from comdefend_cli.errors import DatasetError

pytestmark = pytest.mark.usefixtures("no_network")
GRAY = torch.from_numpy(cuts(6, 28, gray=True))[:, None]


def unpacked(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files as `gunzip` leaves them."""
    return {name.removesuffix(".gz"): gzip.decompress(data) for name, data in files.items()}


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("subfolder", [True, False])
@pytest.mark.parametrize(
    "files",
    [
        mnist_files(),
        unpacked(mnist_files()),
        {name.replace("-idx", ".idx"): data for name, data in unpacked(mnist_files()).items()},
        {name: gzip.decompress(data) for name, data in mnist_files().items()},
    ],
    ids=["compressed", "unpacked", "unpacked by inner name", "unpacked, old name"],
)
def test_idx_files_are_read(name: str, subfolder: bool, files: dict[str, bytes], tmp_path: Path) -> None:
    """MNIST and Fashion-MNIST are read from a folder of their name or straight from --data-dir, compressed or not."""
    write(tmp_path / name if subfolder else tmp_path, files)
    dataset = load_dataset(name, tmp_path)
    train, test = dataset.train, dataset.test
    assert isinstance(train, ImageArray)
    assert torch.equal(torch.cat([train.pixels, test.pixels]), GRAY)
    assert train.labels.tolist() + test.labels.tolist() == list(range(6))
    assert (dataset.name, train.channels, train.labels.dtype) == (name, 1, torch.int64)


def test_the_folder_of_the_name_goes_first(tmp_path: Path) -> None:
    """Fashion-MNIST is not mixed up with MNIST's files of the same names that lie beside its folder."""
    write(tmp_path, mnist_files(1))
    write(tmp_path / "fashion-mnist", mnist_files(2))
    assert (len(load_dataset("mnist", tmp_path).train), len(load_dataset("fashion-mnist", tmp_path).train)) == (1, 2)


def header(*fields: int) -> bytes:
    """The front of an IDX file."""
    return struct.pack(f">{len(fields)}I", *fields)


TRAIN = "train-images-idx3-ubyte.gz"
BAD_IDX: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not an IDX file"),
    "text": (b"<html>404</html>    ", "header is not"),
    "truncated": (mnist_files()[TRAIN][: len(mnist_files()[TRAIN]) // 2], "not an IDX file"),
    "checksum missing": (mnist_files()[TRAIN][:-4], "not an IDX file"),
    "garbage compressed": (b"\x1f\x8b\x08\0\0\0\0\0\0\0" + bytes(range(256)), "not an IDX file"),
    "labels for images": (gzip.compress(idx(np.zeros(3, np.uint8))), "not an IDX file"),
    "fewer bytes": (gzip.compress(header(0x803, 3, 28, 28) + b"\0" * 100), "does not fit its length"),
    "more bytes": (gzip.compress(header(0x803, 3, 28, 28) + b"\0" * 4000), "does not fit its length"),
    "a bomb": (gzip.compress(header(0x803, 3, 28, 28) + bytes(10**7)), "does not fit its length"),
    "huge sizes": (gzip.compress(header(0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1)), "header is not"),
    "no images": (gzip.compress(header(0x803, 0, 28, 28)), "holds .* pixels for 3 labels"),
    "other sides": (gzip.compress(idx(np.zeros((3, 8, 8), np.uint8))), "holds .* pixels for 3 labels"),
    "more images than labels": (gzip.compress(idx(np.zeros((4, 28, 28), np.uint8))), "holds .* pixels for 3 labels"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_IDX)
def test_bad_idx_files_are_refused(kind: str, tmp_path: Path) -> None:
    """A damaged or misshapen IDX file is refused by its name, without reading more than its header asks for."""
    data, words = BAD_IDX[kind]
    write(tmp_path / "mnist", mnist_files() | {TRAIN: data})
    assert refused("mnist", tmp_path, words).startswith(str(tmp_path / "mnist" / TRAIN))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_raises_dataset_errors_only(tmp_path: Path, data: st.DataObject) -> None:
    """IDX files with bytes changed are read or end in a DatasetError, never in another exception."""
    files = mnist_files(1)
    damaged = damage(files[TRAIN] if data.draw(st.booleans()) else gzip.decompress(files[TRAIN]), data)
    write(tmp_path, files | {TRAIN: damaged})
    try:
        load_dataset("mnist", tmp_path, download=False)
    except DatasetError as error:
        assert "\n" not in str(error)
