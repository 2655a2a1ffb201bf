"""Files for other software: they compute what PyTorch does, and none is left that does not."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from conftest import FAMILIES, Run, small_model
from PIL import Image

from comdefend_cli.backends import export as exports
from comdefend_cli.backends.export import FORMATS, export, make_images
from comdefend_cli.cli.export import _read as read_image
from comdefend_cli.errors import ComdefendError, UsageError, WeightsError
from comdefend_cli.network.metrics import mean_psnr
from comdefend_cli.network.weight_file import Header, Quantized, Weights, save_weights
from comdefend_cli.runtime.files import open_atomically

NEEDS = {"onnx": "onnxruntime", "openvino": "openvino", "torch-export": "torch"}
#: torch.export takes seconds.
QUICK = [format for format in FORMATS if format != "torch-export"]


def loaded(channels: int = 3, family: str = "paper") -> Weights:
    model = small_model(channels, family=family)
    return Weights("small", "", Header(model.architecture), model)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("format", [*QUICK, pytest.param("torch-export", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_computes_what_pytorch_does(format: str, channels: int, family: str, tmp_path: Path) -> None:
    """Each format, both families, grey and colour, of any height, width and number of images, read back by the library that it is for."""
    pytest.importorskip(NEEDS[format])
    path, model = tmp_path / f"out{FORMATS[format]}", small_model(channels, family=family)
    done = export(loaded(channels, family), format, path)
    assert set(done.paths) == set(tmp_path.iterdir())
    assert done.psnr_db > 55
    runner = exports._load_runner(format, [path.read_bytes() for path in done.paths])
    smallest = model.architecture.scale + 1 if format == "torch-export" and model.architecture.scale > 1 else 1
    for height, width in ((23, 31), (8, 12), (smallest, smallest), (smallest, 14), (5, 7)):
        x = torch.rand((3, channels, height, width), generator=torch.Generator().manual_seed(0))
        found = torch.from_numpy(runner(x.numpy()))
        levels = [(value * 255).round().to(torch.uint8) for value in (found, model(x))]
        assert found.shape == x.shape and mean_psnr(*levels) > 55


@pytest.mark.slow
def test_a_program_refuses_images_of_one_square(tmp_path: Path) -> None:
    """Of networks that see squares, what `torch.export` recorded is not run where it does not hold; ONNX and OpenVINO are not so narrow."""
    done = export(loaded(family="residual-4"), "torch-export", tmp_path / "out.pt2")
    runner = exports._load_runner("torch-export", [path.read_bytes() for path in done.paths])
    with pytest.raises((AssertionError, RuntimeError), match="5"):
        runner(np.zeros((1, 3, 4, 9), np.float32))


@pytest.mark.parametrize("family", FAMILIES[1:])
def test_what_is_recorded_computes_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way in which squares are made and cut for exporters gives the values of the other way, to within roundings."""
    model = small_model(family=family)
    for height, width in ((1, 1), (5, 7), (8, 8), (2, 13)):
        x = torch.rand((2, 3, height, width), generator=torch.Generator().manual_seed(0))
        expected = model(x)
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            recorded = model(x)
        assert recorded.shape == x.shape
        assert torch.allclose(recorded, expected, atol=1e-5)


@pytest.mark.parametrize("format", QUICK)
def test_a_file_that_computes_something_else_is_not_left(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the written networks differ from PyTorch's, it is an error, and there is no file."""
    pytest.importorskip(NEEDS[format])
    name = {"onnx": "make_onnx", "openvino": "build_graph"}[format]
    right = getattr(exports, name)
    monkeypatch.setattr(exports, name, lambda model: right(small_model(seed=1)))
    with pytest.raises(ComdefendError, match="dB"):
        export(loaded(), format, tmp_path / f"out{FORMATS[format]}")
    assert not list(tmp_path.iterdir())


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    """An unknown format, another ending, a file that is there, and int8 networks that are not, are errors of usage."""
    (tmp_path / "there.onnx").write_bytes(b"mine")
    for format, name, more in (
        ("tflite", "a.tflite", {}),
        ("onnx", "a.xml", {}),
        ("onnx", "there.onnx", {}),
        ("openvino", "a.xml", {"int8": True}),
    ):
        with pytest.raises(UsageError):
            export(loaded(), format, tmp_path / name, **more)  # type: ignore[arg-type]
    assert (tmp_path / "there.onnx").read_bytes() == b"mine"


def test_make_images_are_images() -> None:
    """They are the same each time, of several sizes, and neither flat nor noise: most neighbours are close, some are not."""
    for one, other in zip(make_images(3), make_images(3), strict=True):
        assert torch.equal(one, other)
        steps = one.float().diff(dim=3).abs()
        assert steps.median() < 20
        assert steps.max() > 50


def test_the_command_compares_on_the_users_images(run: Run, small_weights: Path, astronaut: np.ndarray, tmp_path: Path) -> None:
    """`comdefend export` writes the file, says on how many images it was compared, and refuses a second time."""
    pytest.importorskip("onnxruntime")
    Image.fromarray(astronaut[:40, :50]).save(tmp_path / "photo.png")
    options = [
        "export",
        tmp_path / "out.onnx",
        "--format",
        "onnx",
        "--weights",
        small_weights,
        "--check",
        tmp_path / "photo.png",
        "--json",
        "--quiet",
    ]
    done = run(*options)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["pictures"], record["written"]) == (1, [str(tmp_path / "out.onnx")])
    assert (record["input_noise"], done.stderr) == (0, b"")
    assert run(*options).returncode == 2


def test_the_command_says_what_noise_the_networks_are_made_for(run: Run, tmp_path: Path) -> None:
    """The file does not add it, so whoever uses it must know."""
    pytest.importorskip("openvino")
    model = small_model()
    model.input_noise = 20.0
    save_weights(tmp_path / "noisy.safetensors", model, {})
    done = run("export", tmp_path / "out.xml", "--format", "openvino", "--weights", tmp_path / "noisy.safetensors")
    assert done.returncode == 0 and b"standard deviation 20/255" in done.stderr


def test_both_files_of_openvino_are_replaced_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is there is refused, --overwrite replaces both, and where the second cannot be written the first stays."""
    pytest.importorskip("openvino")
    (tmp_path / "a.bin").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"a\.bin"):
        export(loaded(), "openvino", tmp_path / "a.xml")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    export(loaded(), "openvino", tmp_path / "a.xml", overwrite=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"a.xml", "a.bin"}
    atomic = open_atomically

    @contextmanager
    def full(path: Path, *, overwrite: bool) -> Iterator[BinaryIO]:
        with atomic(path, overwrite=overwrite) as file:
            if path.suffix == ".bin":
                raise OSError(errno.ENOSPC, "full")
            yield file

    monkeypatch.setattr("comdefend_cli.backends.export.open_atomically", full)
    with pytest.raises(ComdefendError):
        export(Weights("other", "", loaded().header, small_model(seed=1)), "openvino", tmp_path / "a.xml", overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("family", ["paper", "residual-2"])
def test_int8_networks_are_exported_as_they_are(family: str, tmp_path: Path) -> None:
    """The files are those in the weights; networks in it that are none are refused."""
    pytest.importorskip("nncf")
    from comdefend_cli.backends.quantize import quantize

    quantized = quantize(small_model(family=family), torch.cat([image[:, :, :37, :37] for image in make_images(3)]))
    given = Weights("small", "", loaded(family=family).header, small_model(family=family), quantized)
    with pytest.raises(ComdefendError, match="dB"):  # The tests' random networks flip too many bits.
        export(given, "openvino", tmp_path / "a.xml", int8=True)
    exports_least = exports.LEAST["int8"]
    exports.LEAST["int8"] = 5.0
    try:
        export(given, "openvino", tmp_path / "a.xml", int8=True)
    finally:
        exports.LEAST["int8"] = exports_least
    assert ((tmp_path / "a.xml").read_bytes(), (tmp_path / "a.bin").read_bytes()) == (quantized.graph, quantized.constants)
    with pytest.raises(WeightsError):
        export(Weights("small", "", given.header, given.model, Quantized(b"no", b"")), "openvino", tmp_path / "b.xml", int8=True)


@pytest.mark.parametrize("size", [(20, 700), (600, 30), (513, 40)])
def test_the_middle_of_a_large_image_is_compared(size: tuple[int, int], tmp_path: Path) -> None:
    """At most 512 pixels a side, from the middle."""
    height, width = size
    pixels = np.arange(height * width * 3, dtype=np.uint32).reshape(height, width, 3).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png", 3)
    assert found.shape == (1, 3, min(height, 512), min(width, 512))
    top, left = max(0, (height - 512) // 2), max(0, (width - 512) // 2)
    assert found[0, :, 0, 0].tolist() == pixels[top, left].tolist()
