"""Training images: the official files in each form that people have them, damaged ones, and folders of images."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from formats import (
    BATCHES,
    Raw,
    array_opcodes,
    cifar_archive,
    cifar_batch,
    cifar_files,
    cuts,
    dtype_opcodes,
    idx,
    mnist_files,
    python2_pickle,
    tar_gz,
    write,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from comdefend_cli.data.datasets import load_dataset
from comdefend_cli.data.sources import Crops, Dataset, ImageArray
from comdefend_cli.errors import DatasetError

COLOR = torch.from_numpy(cuts(18, 32)).permute(0, 3, 1, 2)
GRAY = torch.from_numpy(cuts(6, 28, gray=True))[:, None]
CIFAR = "cifar-10-batches-py"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may ask a server."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


OBJECT = dtype_opcodes(b"O8", b"|", 63)


def arrays(dataset: Dataset) -> tuple[ImageArray, ImageArray]:
    """Both splits."""
    assert isinstance(dataset.train, ImageArray)
    return dataset.train, dataset.test


def dotted_archive() -> bytes:
    """An archive as `tar czf x.tgz ./cifar-10-batches-py` makes it: other names, another checksum."""
    return tar_gz({f"./{CIFAR}/{name}": data for name, data in reversed(cifar_files().items())})


@pytest.mark.parametrize(
    "put",
    [
        lambda folder: write(folder / CIFAR, cifar_files()),
        lambda folder: write(folder, cifar_files()),
        lambda folder: write(folder, {"cifar-10-python.tar.gz": cifar_archive()}),
        lambda folder: write(folder, {"cifar-10-python.tar.gz": dotted_archive()}),
    ],
    ids=["folder", "the folder itself", "archive", "rebuilt archive"],
)
def test_cifar10_is_read(put: Callable[[Path], None], tmp_path: Path) -> None:
    """CIFAR-10's folder or archive, whatever the checksum of a user's own, gives the images and labels in order, nothing unpacked."""
    put(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    dataset = load_dataset("cifar10", tmp_path)
    train, test = arrays(dataset)
    assert torch.equal(torch.cat([train.pixels, test.pixels]), COLOR)
    assert train.labels.tolist() + test.labels.tolist() == [(i + j) % 10 for i in range(6) for j in range(3)]
    assert (dataset.name, len(train), train.channels, train.pixels.dtype, train.labels.dtype) == (
        "cifar10",
        15,
        3,
        torch.uint8,
        torch.int64,
    )
    assert sorted(tmp_path.rglob("*")) == before


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
    train, test = arrays(dataset)
    assert torch.equal(torch.cat([train.pixels, test.pixels]), GRAY)
    assert train.labels.tolist() + test.labels.tolist() == list(range(6))
    assert (dataset.name, train.channels, train.labels.dtype) == (name, 1, torch.int64)


def test_the_folder_of_the_name_goes_first(tmp_path: Path) -> None:
    """Fashion-MNIST is not mixed up with MNIST's files of the same names that lie beside its folder."""
    write(tmp_path, mnist_files(1))
    write(tmp_path / "fashion-mnist", mnist_files(2))
    assert (len(load_dataset("mnist", tmp_path).train), len(load_dataset("fashion-mnist", tmp_path).train)) == (1, 2)


def refused(name: str, folder: Path, words: str) -> str:
    """The message that a data set is refused by: one line, with a remedy."""
    with pytest.raises(DatasetError, match=words) as caught:
        load_dataset(name, folder, download=False)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


def test_absent_files_say_what_to_put_where(tmp_path: Path, run: Run) -> None:
    """Without the files and without downloads, the message names the address, the folder and the file, also from the real command."""
    message = refused("cifar10", tmp_path, "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz")
    assert str(tmp_path) in message and CIFAR in message
    message = refused("mnist", tmp_path, "https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz")
    assert str(tmp_path / "mnist") in message
    out = tmp_path / "out.safetensors"
    done = run("train", "--data", "cifar10", "--data-dir", tmp_path, "--out", out, "--no-download", "--device", "cpu")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"error: cifar10 is not in ") and done.stderr.count(b"\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["no-such-set", "", "x" * 300])
def test_unknown_names_are_refused(name: str, tmp_path: Path) -> None:
    """A name that is neither a data set nor a folder lists the data sets."""
    refused(name, tmp_path, "no such data set or folder; use cifar10, fashion-mnist, mnist")


LABELS_IN_THEMSELVES = Raw(b"]q\x01(h\x01h\x01h\x01e")
ROWS = np.zeros((3, 3072), np.uint8)
BAD_BATCHES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a CIFAR-10 batch"),
    "text": (b"<html>404</html>", "not a CIFAR-10 batch"),
    "truncated": (cifar_batch(cuts(3, 32), [1, 2, 3])[:5000], "not a CIFAR-10 batch"),
    "a list": (python2_pickle([1, 2]), "not a CIFAR-10 batch"),
    "no data": (python2_pickle({b"labels": [1]}), "it has no b'data'"),
    "no labels": (python2_pickle({b"data": ROWS}), "it has no b'labels'"),
    "other rows": (python2_pickle({b"data": ROWS[:, :100], b"labels": [1, 2, 3]}), "rows of 3072"),
    "floats": (python2_pickle({b"data": ROWS.astype(np.float32), b"labels": [1, 2, 3]}), "rows of 3072"),
    "objects": (python2_pickle({b"data": array_opcodes((3, 3072), OBJECT, b"\x41" * 3 * 3072), b"labels": [1, 2, 3]}), "does not fit"),
    "short": (
        python2_pickle({b"data": array_opcodes((10000, 3072), Raw(b"cnumpy\ndtype\n(U\x02u1tR"), b"x"), b"labels": []}),
        "does not fit",
    ),
    "fewer labels": (python2_pickle({b"data": ROWS, b"labels": [1, 2]}), "labels"),
    "no images": (python2_pickle({b"data": ROWS[:0], b"labels": []}), "labels"),
    "labels that are text": (python2_pickle({b"data": ROWS, b"labels": [b"cat"] * 3}), "labels"),
    "labels out of range": (python2_pickle({b"data": ROWS, b"labels": [1, 2, -3]}), "labels"),
    "labels in themselves": (python2_pickle({b"data": ROWS, b"labels": LABELS_IN_THEMSELVES}), "labels"),
    "a call": (b"cos\nsystem\n(S'touch marker'\ntR.", "'os.system', which is not allowed"),
    "a call within": (python2_pickle({b"data": ROWS, b"labels": Raw(b"c__builtin__\neval\n(U\x011tR")}), "'__builtin__.eval'"),
}


@pytest.mark.parametrize("kind", BAD_BATCHES)
@pytest.mark.parametrize("packed", [False, True])
def test_bad_batches_are_refused(kind: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged, misshapen or malicious batch is refused by its name, in the folder as in the archive, and nothing in it runs."""
    monkeypatch.chdir(tmp_path)
    data, words = BAD_BATCHES[kind]
    files = cifar_files() | {"data_batch_4": data}
    if packed:
        write(tmp_path, {"cifar-10-python.tar.gz": tar_gz({f"{CIFAR}/{name}": content for name, content in files.items()})})
    else:
        write(tmp_path / CIFAR, files)
    message = refused("cifar10", tmp_path, words)
    assert "data_batch_4" in message and "get the official files" in message
    assert len(list(tmp_path.iterdir())) == 1


def test_incomplete_and_oversized_folders_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing batch file is named with a remedy, and one that is too large is not read whole."""
    write(tmp_path / CIFAR, cifar_files())
    (tmp_path / CIFAR / "data_batch_5").unlink()
    refused("cifar10", tmp_path, "data_batch_5: cannot read: no such file or directory; get the official files")
    monkeypatch.setattr("comdefend_cli.data.cifar.MAX_FILE", 5000)
    refused("cifar10", tmp_path, "data_batch_1: too large")


def archive_of(*members: tarfile.TarInfo) -> bytes:
    """A .tar.gz of members without content, of any name and type."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for member in members:
            archive.addfile(member)
    return buffer.getvalue()


def link(name: str) -> tarfile.TarInfo:
    """A symbolic link to a file of this machine."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
    return info


def cut(data: bytes, share: float) -> bytes:
    """The front of a file."""
    return data[: int(len(data) * share)]


BAD_ARCHIVES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "has no|damaged"),
    "text": (b"<html>404</html>", "damaged archive"),
    "truncated": (cut(cifar_archive(), 0.5), "damaged archive"),
    "last bytes missing": (cifar_archive()[:-4], "damaged archive"),
    "wrong checksum within": (cifar_archive()[:-8] + b"\0\0\0\0" + cifar_archive()[-4:], "damaged archive"),
    "not a tar": (gzip.compress(b"x" * 5000), "damaged archive"),
    "random bytes compressed": (b"\x1f\x8b\x08\0\0\0\0\0\0\0" + bytes(range(256)) * 8, "damaged archive"),
    "no members": (tar_gz({}), "has no cifar-10-batches-py/data_batch_1"),
    "one missing": (tar_gz({f"{CIFAR}/{name}": data for name, data in cifar_files().items() if name != "test_batch"}), "test_batch"),
    "paths upwards": (tar_gz({f"../{CIFAR}/{name}": data for name, data in cifar_files().items()}), "has no"),
    "paths from the root": (tar_gz({f"/tmp/{CIFAR}/{name}": data for name, data in cifar_files().items()}), "has no"),
    "links": (archive_of(*(link(f"{CIFAR}/{name}") for name in BATCHES)), "has no"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_ARCHIVES)
def test_bad_archives_are_refused(kind: str, tmp_path: Path) -> None:
    """A damaged archive, or one whose names lead elsewhere, is refused by its name, and no file is made."""
    data, words = BAD_ARCHIVES[kind]
    path = tmp_path / "data" / "cifar-10-python.tar.gz"
    write(path.parent, {path.name: data})
    assert refused("cifar10", path.parent, words).startswith(f"{path}: ")
    assert [item for item in tmp_path.rglob("*") if item.is_file()] == [path]


def test_archives_that_unpack_to_too_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that claims to be huge, and members that are huge together, end at the limits."""
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(cifar_archive())
    monkeypatch.setattr("comdefend_cli.data.cifar.MAX_FILE", 5000)
    refused("cifar10", tmp_path, "data_batch_1 is too large")
    monkeypatch.undo()
    monkeypatch.setattr("comdefend_cli.data.cifar.MAX_UNPACKED", 10**6)
    path.write_bytes(tar_gz({"zeros": bytes(5 * 10**6)}))
    refused("cifar10", tmp_path, "it unpacks to more than")
    sparse = tarfile.TarInfo(f"{CIFAR}/data_batch_1")
    sparse.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.size": str(2**40), "GNU.sparse.map": "0,0"}
    path.write_bytes(archive_of(sparse))
    refused("cifar10", tmp_path, "too large|has no|damaged|not a CIFAR-10 batch")


def header(*fields: int) -> bytes:
    """The front of an IDX file."""
    return struct.pack(f">{len(fields)}I", *fields)


TRAIN = "train-images-idx3-ubyte.gz"
BAD_IDX: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not an IDX file"),
    "text": (b"<html>404</html>    ", "header is not"),
    "truncated": (cut(mnist_files()[TRAIN], 0.5), "not an IDX file"),
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


ARCHIVE = cifar_archive(1)
IDX = mnist_files(1)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["cifar10", "mnist"]), st.data())
def test_damage_raises_dataset_errors_only(tmp_path: Path, name: str, data: st.DataObject) -> None:
    """Archives and IDX files with bytes changed are read or end in a DatasetError, never in another exception."""
    valid = ARCHIVE if name == "cifar10" else IDX[TRAIN]
    damaged = bytearray(valid if data.draw(st.booleans()) else gzip.decompress(valid))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    packed = bytes(damaged) if name == "mnist" or len(damaged) <= len(valid) else gzip.compress(damaged, 1)
    write(tmp_path, IDX | {"cifar-10-python.tar.gz" if name == "cifar10" else TRAIN: packed})
    try:
        load_dataset(name, tmp_path, download=False)
    except DatasetError as error:
        assert "\n" not in str(error)


def save(path: Path, pixels: np.ndarray) -> None:
    """Write an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_a_folder_of_images_gives_crops(tmp_path: Path, astronaut: np.ndarray, camera: np.ndarray) -> None:
    """Images in folders give crops of their own pixels, grey ones as colour among colour, one in twenty for tests; others are counted."""
    for index in range(40):
        save(tmp_path / f"{index % 3}" / f"{index:02d}.png", (camera if index == 7 else astronaut)[: 40 + index, :50])
    save(tmp_path / "small.png", astronaut[:31, :100])
    (tmp_path / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (tmp_path / "notes.txt").write_text("no image")
    dataset = load_dataset(str(tmp_path), tmp_path / "unused")
    assert isinstance(dataset.train, Crops)
    assert (dataset.name, len(dataset.train), dataset.train.channels, dataset.skipped) == (f"folder:{tmp_path.name}", 38, 3, 2)
    assert dataset.test.pixels.shape == (64, 3, 32, 32) and dataset.test.pixels.dtype == torch.uint8
    assert torch.equal(dataset.test.pixels, load_dataset(str(tmp_path), tmp_path).test.pixels)
    train, test = {id(image) for image in dataset.train.images}, dataset.test.pixels
    assert len(train) == 38 and not test.eq(test[:1]).all()


def windows(image: torch.Tensor) -> set[bytes]:
    """All 32x32 squares of an image (C, H, W), and their mirror images."""
    squares = image.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    return {square.contiguous().numpy().tobytes() for both in (squares, squares.flip(3)) for square in both}


def test_crops_are_windows_drawn_by_the_generator(astronaut: np.ndarray) -> None:
    """Every crop is a window of an image or its mirror image, corners are reached, and equal generators give equal batches."""
    images = [
        torch.from_numpy(astronaut[:34, :33].copy()).permute(2, 0, 1),
        torch.from_numpy(astronaut[100:132, 50:90].copy()).permute(2, 0, 1),
    ]
    source: Any = Crops(images)
    batch = source.batch(300, torch.Generator().manual_seed(3))
    seen = {crop.contiguous().numpy().tobytes() for crop in batch}
    possible = windows(images[0]) | windows(images[1])
    assert seen <= possible and len(seen) > 0.95 * len(possible)
    assert torch.equal(batch, source.batch(300, torch.Generator().manual_seed(3)))
    assert not torch.equal(batch, source.batch(300, torch.Generator().manual_seed(4)))


def test_batches_are_images_or_their_mirror(astronaut: np.ndarray) -> None:
    """A batch of images of one size holds them or their mirror image, about half of each, drawn by the generator."""
    source = ImageArray(COLOR, torch.zeros(18, dtype=torch.int64))
    batch = source.batch(400, torch.Generator().manual_seed(0))
    straight = (batch[:, None] == COLOR).flatten(2).all(2).any(1)
    mirrored = (batch[:, None] == COLOR.flip(3)).flatten(2).all(2).any(1)
    assert bool((straight | mirrored).all()) and 140 < int(straight.sum()) < 260
    assert torch.equal(batch, source.batch(400, torch.Generator().manual_seed(0)))


def test_folders_without_enough_images_are_refused(tmp_path: Path, astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder needs two images that can be cropped, which fit into memory."""
    save(tmp_path / "a.png", astronaut[:32, :32])
    save(tmp_path / "b.png", astronaut[:20, :32])
    refused(str(tmp_path), tmp_path, "needs at least 2 readable images of 32x32 pixels or more, found 1")
    save(tmp_path / "c.png", astronaut[:32, :32])
    assert len(load_dataset(str(tmp_path), tmp_path).train) == 1
    monkeypatch.setattr("comdefend_cli.data.folder.MAX_IMAGE_BYTES", 5000)
    refused(str(tmp_path), tmp_path, "take more than .* of memory; use fewer or smaller ones")
