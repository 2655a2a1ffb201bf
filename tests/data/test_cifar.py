"""CIFAR-10: both official releases in each form that people have them, and damaged ones."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from formats import (
    Raw,
    array_opcodes,
    cifar_archive,
    cifar_batch,
    cifar_files,
    cuts,
    damage,
    dtype_opcodes,
    python2_pickle,
    tar_gz,
    write,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import refused

from comdefend_cli.data.datasets import load_dataset
from comdefend_cli.data.sources import ImageArray
from comdefend_cli.errors import DatasetError

COLOR = torch.from_numpy(cuts(18, 32)).permute(0, 3, 1, 2)
#: By whether it is the binary release: what it unpacks to, its archive, what its files end in.
FOLDERS = {False: "cifar-10-batches-py", True: "cifar-10-batches-bin"}
ARCHIVES = {False: "cifar-10-python.tar.gz", True: "cifar-10-binary.tar.gz"}
ENDINGS = {False: "", True: ".bin"}
CIFAR = FOLDERS[False]
pytestmark = pytest.mark.usefixtures("no_network")
OBJECT = dtype_opcodes(b"O8", b"|", 63)


def dotted_archive(binary: bool) -> bytes:
    """An archive as `tar czf x.tgz ./cifar-10-batches-py` makes it: other names, another checksum."""
    return tar_gz({f"./{FOLDERS[binary]}/{name}": data for name, data in reversed(cifar_files(binary=binary).items())})


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(
    "put",
    [
        lambda folder, binary: write(folder / FOLDERS[binary], cifar_files(binary=binary)),
        lambda folder, binary: write(folder, cifar_files(binary=binary)),
        lambda folder, binary: write(folder, {ARCHIVES[binary]: cifar_archive(binary=binary)}),
        lambda folder, binary: write(folder, {ARCHIVES[binary]: dotted_archive(binary)}),
    ],
    ids=["folder", "the folder itself", "archive", "rebuilt archive"],
)
def test_cifar10_is_read(put: Callable[[Path, bool], None], binary: bool, tmp_path: Path) -> None:
    """Both releases, as a folder or archive of whatever checksum, give the same images and labels in order, nothing unpacked."""
    put(tmp_path, binary)
    before = sorted(tmp_path.rglob("*"))
    dataset = load_dataset("cifar10", tmp_path)
    train, test = dataset.train, dataset.test
    assert isinstance(train, ImageArray)
    assert torch.equal(torch.cat([train.pixels, test.pixels]), COLOR)
    assert train.labels.tolist() + test.labels.tolist() == [(i + j) % 10 for i in range(6) for j in range(3)]
    assert (dataset.name, len(train), train.channels) == ("cifar10", 15, 3)
    assert (train.pixels.dtype, train.labels.dtype) == (torch.uint8, torch.int64)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_there_is_not_downloaded(tmp_path: Path) -> None:
    """Of the release for Python, which many have, the archive is enough; where both are, the binary one is read."""
    write(tmp_path, {ARCHIVES[False]: cifar_archive(2)})
    assert len(load_dataset("cifar10", tmp_path).train) == 10
    write(tmp_path, {ARCHIVES[True]: cifar_archive(3, binary=True)})
    assert len(load_dataset("cifar10", tmp_path).train) == 15


def test_absent_files_say_what_to_put_where(tmp_path: Path, run: Run) -> None:
    """Without the files and without downloads, the message names the address, the folder and the file, also from the real command."""
    message = refused("cifar10", tmp_path, "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz")
    assert str(tmp_path) in message and all(f"{name}/" in message for name in FOLDERS.values())
    message = refused("mnist", tmp_path, "https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz")
    assert str(tmp_path / "mnist") in message
    out = tmp_path / "out.safetensors"
    done = run("train", "--data", "cifar10", "--data-dir", tmp_path, "--out", out, "--no-download", "--device", "cpu")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"error: cifar10 is not in ") and done.stderr.count(b"\n") == 1
    assert list(tmp_path.iterdir()) == []


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


ROW = bytes([3]) + bytes(range(256)) * 12
BAD_ROWS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "rows of 3073 bytes"),
    "text": (b"<html>404</html>", "rows of 3073 bytes"),
    "truncated": (ROW * 2 + ROW[:-1], "rows of 3073 bytes"),
    "a pickle": (cifar_batch(cuts(3, 32), [1, 2, 3]), "rows of 3073 bytes"),
    "labels out of range": (ROW + bytes([10]) + ROW[1:], "labels are not 0 to 9"),
}
BAD = [(False, kind) for kind in BAD_BATCHES] + [(True, kind) for kind in BAD_ROWS]


@pytest.mark.parametrize(("binary", "kind"), BAD)
@pytest.mark.parametrize("packed", [False, True])
def test_bad_batches_are_refused(binary: bool, kind: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged, misshapen or malicious batch is refused by its name, in the folder as in the archive, and nothing in it runs."""
    monkeypatch.chdir(tmp_path)
    data, words = (BAD_ROWS if binary else BAD_BATCHES)[kind]
    files = cifar_files(binary=binary) | {f"data_batch_4{ENDINGS[binary]}": data}
    if packed:
        write(tmp_path, {ARCHIVES[binary]: tar_gz({f"{FOLDERS[binary]}/{name}": content for name, content in files.items()})})
    else:
        write(tmp_path / FOLDERS[binary], files)
    message = refused("cifar10", tmp_path, words)
    assert "data_batch_4" in message and "get the official files" in message
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("binary", [False, True])
def test_incomplete_and_oversized_folders_are_refused(binary: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing batch file is named with a remedy, and one that is too large is not read whole."""
    write(tmp_path / FOLDERS[binary], cifar_files(binary=binary))
    missing = f"data_batch_5{ENDINGS[binary]}"
    (tmp_path / FOLDERS[binary] / missing).unlink()
    refused("cifar10", tmp_path, f"{missing}: cannot read: no such file or directory; get the official files")
    monkeypatch.setattr("comdefend_cli.data.cifar.MAX_FILE", 5000)
    refused("cifar10", tmp_path, f"data_batch_1{ENDINGS[binary]}: too large")


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


def make_bad_archives(binary: bool) -> dict[str, tuple[bytes, str]]:
    """Archives of a release that are damaged or lead elsewhere, each with words of its refusal."""
    whole, folder, files = cifar_archive(binary=binary), FOLDERS[binary], cifar_files(binary=binary)
    last = f"test_batch{ENDINGS[binary]}"
    return {
        "empty": (b"", "has no|damaged"),
        "text": (b"<html>404</html>", "damaged archive"),
        "truncated": (cut(whole, 0.5), "damaged archive"),
        "last bytes missing": (whole[:-4], "damaged archive"),
        "wrong checksum within": (whole[:-8] + b"\0\0\0\0" + whole[-4:], "damaged archive"),
        "not a tar": (gzip.compress(b"x" * 5000), "damaged archive"),
        "random bytes compressed": (b"\x1f\x8b\x08\0\0\0\0\0\0\0" + bytes(range(256)) * 8, "damaged archive"),
        "no members": (tar_gz({}), f"has no {folder}/data_batch_1"),
        "one missing": (tar_gz({f"{folder}/{name}": data for name, data in files.items() if name != last}), last),
        "paths upwards": (tar_gz({f"../{folder}/{name}": data for name, data in files.items()}), "has no"),
        "paths from the root": (tar_gz({f"/tmp/{folder}/{name}": data for name, data in files.items()}), "has no"),
        "links": (archive_of(*(link(f"{folder}/{name}") for name in files)), "has no"),
        "the other release": (cifar_archive(binary=not binary), "has no"),
    }


BAD_ARCHIVES = {binary: make_bad_archives(binary) for binary in (False, True)}


@pytest.mark.parametrize("binary", BAD_ARCHIVES)
@pytest.mark.parametrize("kind", BAD_ARCHIVES[True])
def test_bad_archives_are_refused(kind: str, binary: bool, tmp_path: Path) -> None:
    """A damaged archive, or one whose names lead elsewhere, is refused by its name, and no file is made."""
    data, words = BAD_ARCHIVES[binary][kind]
    path = tmp_path / "data" / ARCHIVES[binary]
    write(path.parent, {path.name: data})
    assert refused("cifar10", path.parent, words).startswith(f"{path}: ")
    assert [item for item in tmp_path.rglob("*") if item.is_file()] == [path]


@pytest.mark.parametrize("binary", [False, True])
def test_archives_that_unpack_to_too_much_are_refused(binary: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that claims to be huge, and members that are huge together, end at the limits."""
    path, first = tmp_path / ARCHIVES[binary], f"data_batch_1{ENDINGS[binary]}"
    path.write_bytes(cifar_archive(binary=binary))
    monkeypatch.setattr("comdefend_cli.data.cifar.MAX_FILE", 5000)
    refused("cifar10", tmp_path, f"{first} is too large")
    monkeypatch.undo()
    monkeypatch.setattr("comdefend_cli.data.cifar.MAX_UNPACKED", 10**6)
    path.write_bytes(tar_gz({"zeros": bytes(5 * 10**6)}))
    refused("cifar10", tmp_path, "it unpacks to more than")
    sparse = tarfile.TarInfo(f"{FOLDERS[binary]}/{first}")
    sparse.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.size": str(2**40), "GNU.sparse.map": "0,0"}
    path.write_bytes(archive_of(sparse))
    refused("cifar10", tmp_path, "too large|has no|damaged|not a CIFAR-10 batch")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.booleans(), st.data())
def test_damage_raises_dataset_errors_only(tmp_path: Path, binary: bool, data: st.DataObject) -> None:
    """Archives with bytes changed are read or end in a DatasetError, never in another exception."""
    archive = cifar_archive(1, binary=binary)
    damaged = damage(archive if data.draw(st.booleans()) else gzip.decompress(archive), data)
    packed = damaged if len(damaged) <= len(archive) else gzip.compress(damaged, 1)
    path = tmp_path / ARCHIVES[binary]
    path.write_bytes(packed)
    try:
        load_dataset("cifar10", tmp_path, download=False)
    except DatasetError as error:
        assert "\n" not in str(error)
    path.unlink()  # The next example may be of the other release.


def test_a_hostile_file_does_not_fill_the_message(tmp_path: Path) -> None:
    """Where Python's error quotes what it could not read, ours quotes the begin of it; found by fuzzing."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"F" + b"9" * 5000 + b"x\n.")
    with pytest.raises(DatasetError, match=r"not a CIFAR-10 batch: could not convert string to float[^\n]{,420}…; get the official files$"):
        load_dataset("cifar10", tmp_path, download=False)
