"""Import of the authors' checkpoints: the same image as an independent float64 network, and arrays only."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from formats import Raw, array_opcodes, cuts, dtype_opcodes, npz, objects, python2_pickle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comdefend_cli.errors import UsageError, WeightsError
from comdefend_cli.network.authors import convert_checkpoints, read_checkpoint
from comdefend_cli.network.registry import load_weights

COLOR = (3, 16, 32, 64, 128, 256, 128, 64, 32, 12)
GRAY = (1, 32, 64, 128, 256, 128, 64, 64, 32, 4)
#: As deep as theirs, and quick.
NARROW = (3, 4, 5, 6, 7, 8, 7, 6, 5, 4)


def layers(widths: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    """Random kernels (height, width, in, out) and biases, float32, in the checkpoint's order."""
    random = np.random.default_rng(seed)
    arrays = []
    for inputs, outputs in pairwise(widths):
        arrays.append(random.normal(0, 1.5 / np.sqrt(9 * inputs), (3, 3, inputs, outputs)).astype(np.float32))
        arrays.append(random.normal(0, 0.1, outputs).astype(np.float32))
    return arrays


def python2_file(arrays: list[np.ndarray]) -> bytes:
    """A checkpoint as Python 2 wrote it."""
    return npz(python2_pickle(objects(arrays)))


def savez_file(arrays: list[np.ndarray]) -> bytes:
    """A checkpoint as this NumPy's `savez` writes it."""
    buffer = io.BytesIO()
    np.savez(buffer, w=objects(arrays))
    return buffer.getvalue()


def convolve(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """A 3x3 convolution of x (H, W, in) with zeros around it, in float64."""
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    height, width = x.shape[:2]
    shifts = [padded[i : i + height, j : j + width] @ kernel[i, j].astype(np.float64) for i in range(3) for j in range(3)]
    return np.sum(shifts, axis=0) + bias


def network(x: np.ndarray, arrays: list[np.ndarray]) -> np.ndarray:
    """Nine layers with ELU between them."""
    for layer in range(9):
        x = convolve(x, *arrays[2 * layer : 2 * layer + 2])
        if layer < 8:
            x = np.where(x > 0, x, np.expm1(np.minimum(x, 0)))
    return x


def save(folder: Path, encoder: bytes, decoder: bytes) -> tuple[Path, Path]:
    """Both files under the names the authors gave them."""
    paths = folder / "enc.npy", folder / "dec.npy"
    for path, data in zip(paths, (encoder, decoder), strict=True):
        path.write_bytes(data)
    return paths


@pytest.mark.parametrize("file", [python2_file, savez_file])
@pytest.mark.parametrize("widths", [COLOR, GRAY])
def test_the_imported_network_is_the_checkpoints(widths: tuple[int, ...], file: Callable[..., bytes], tmp_path: Path) -> None:
    """Logits and image of an imported colour or grey network equal a float64 NumPy network's on the checkpoint's arrays."""
    encoder, decoder = layers(widths), layers(widths[::-1], seed=1)
    model = convert_checkpoints(*save(tmp_path, file(encoder), file(decoder)))
    image = cuts(1, 12, gray=widths[0] == 1)[0].reshape(12, 12, widths[0])[:10] / 255
    logits = network(image - 0.5, encoder)
    assert np.abs(logits).min() > 1e-4, "the code must not hang on rounding"
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    assert np.allclose(model.com(x)[0].permute(1, 2, 0).numpy(), logits, atol=1e-4)
    code = (logits > 0).astype(np.float64)
    assert 0.1 < code.mean() < 0.9
    assert np.allclose(model(x)[0].permute(1, 2, 0).numpy(), 1 / (1 + np.exp(-network(code, decoder))), atol=1e-5)
    assert (model.architecture.channels, model.architecture.bits, model.architecture.hidden) == (widths[0], widths[-1], widths[1:-1])


def test_import_command(tmp_path: Path, run: Run) -> None:
    """The command writes a file that loads, and refuses to write over it, absent files, and files in the wrong order."""
    encoder, decoder = save(tmp_path, python2_file(layers(NARROW)), python2_file(layers(NARROW[::-1])))
    out = tmp_path / "out.safetensors"
    done = run("weights", "import", encoder, decoder, out)
    assert (done.returncode, done.stderr) == (0, b"")
    loaded = load_weights(str(out))
    assert loaded.sha256.encode() in done.stdout
    assert loaded.header.training["imported_from"] == ["enc.npy", "dec.npy"]
    for arguments, code, words in [
        ((encoder, decoder, out), 2, b"--overwrite"),
        ((encoder, tmp_path / "absent.npy", tmp_path / "x.safetensors"), 2, b"no such file"),
        ((encoder, decoder, tmp_path / "x.npy"), 2, b".safetensors"),
        ((decoder, encoder, tmp_path / "x.safetensors"), 1, b"give ComCNN's file first"),
    ]:
        refused = run("weights", "import", *arguments)
        assert (refused.returncode, refused.stdout) == (code, b"")
        assert refused.stderr.startswith(b"error: ") and refused.stderr.count(b"\n") == 1 and words in refused.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"enc.npy", "dec.npy", "out.safetensors"}


GOOD = layers(NARROW)
OBJECT = dtype_opcodes(b"O8", b"|", 63)
SYSTEM = Raw(b"cposix\nsystem\n(U\x06touch xtR")
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "zip"),
    "text": (b"not a checkpoint\n", "zip"),
    "truncated": (python2_file(GOOD)[:-200], "zip"),
    "changed byte": (python2_file(GOOD)[:300] + b"\x55" + python2_file(GOOD)[301:], ""),
    "other member": (npz(python2_pickle(objects(GOOD)), member="v.npy"), "w.npy"),
    "numbers": (npz(b"\0" * 8, header="{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }"), "does not hold arrays"),
    "a list": (npz(python2_pickle([1])), "does not hold arrays"),
    "one layer": (python2_file(GOOD[:2]), "9 kernels"),
    "seventeen arrays": (python2_file(GOOD[:-1]), "9 kernels"),
    "no arrays": (python2_file([]), "9 kernels"),
    "biases first": (python2_file([GOOD[i ^ 1] for i in range(18)]), "9 kernels"),
    "layers of two networks": (python2_file(GOOD[:2] + layers(COLOR)[2:]), "do not fit"),
    "whole numbers": (python2_file([array.astype(np.int32) for array in GOOD]), "floating-point"),
    "not a number": (python2_file([*GOOD[:-1], GOOD[-1] * np.float32("nan")]), "not finite"),
    "too large for float32": (python2_file([*GOOD[:-1], GOOD[-1].astype(np.float64) + 1e300]), "not finite"),
    "a call": (npz(python2_pickle(SYSTEM)), "posix.system"),
    "a call in the array": (npz(python2_pickle(array_opcodes((19,), OBJECT, [*GOOD, SYSTEM]))), "posix.system"),
    "no NumPy file": (savez_file([]).replace(b"\x93NUMPY", b"\x93NUMPX"), ""),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_checkpoints_are_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged, foreign or malicious file is refused in one line that names it and what to do, and nothing in it runs."""
    data, words = BAD[kind]
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "enc.npy"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"get their \.npy file again") as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and words in message and "\n" not in message
    assert list(tmp_path.iterdir()) == [path]


def test_folders_and_absent_files_are_refused(tmp_path: Path) -> None:
    """A folder is a bad file (exit code 1), an absent file a wrong request (2)."""
    with pytest.raises(WeightsError, match="is a directory"):
        read_checkpoint(tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        read_checkpoint(tmp_path / "absent.npy")


def test_networks_must_mirror_each_other(tmp_path: Path) -> None:
    """Two checkpoints of different networks are refused, naming both."""
    encoder, decoder = save(tmp_path, python2_file(layers(NARROW)), python2_file(layers(COLOR[::-1])))
    with pytest.raises(WeightsError, match=r"dec\.npy.* do not mirror .*enc\.npy"):
        convert_checkpoints(encoder, decoder)
    with pytest.raises(WeightsError, match="do not mirror"):
        convert_checkpoints(encoder, encoder)


def test_a_zip_bomb_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An array that unpacks to more than the limit is not unpacked, also when the archive's directory lies about its size."""
    monkeypatch.setattr("comdefend_cli.network.authors.MAX_BYTES", 10_000)
    path = tmp_path / "enc.npy"
    data = npz(b"\0" * 1_000_000)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = archive.infolist()[0].file_size.to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="takes more than"):
        read_checkpoint(path)
    path.write_bytes(data.replace(size, (500).to_bytes(4, "little")))
    with pytest.raises(WeightsError):
        read_checkpoint(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_raises_weights_errors_only(tmp_path: Path, data: st.DataObject) -> None:
    """A checkpoint with bytes changed is read or ends in a WeightsError, never in another exception."""
    damaged = bytearray(SMALL_FILE)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "enc.npy"
    path.write_bytes(damaged)
    try:
        arrays = read_checkpoint(path)
    except WeightsError as error:
        assert "\n" not in str(error)
    else:
        assert len(arrays) == 18


SMALL_FILE = python2_file(layers((1,) * 9 + (4,)))
