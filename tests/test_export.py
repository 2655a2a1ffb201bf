"""Files for other software: they compute what PyTorch does, and none is left that does not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run, small_model
from PIL import Image

from comdefend_cli import export as exports
from comdefend_cli import graphs, weights
from comdefend_cli.errors import ComdefendError, UsageError
from comdefend_cli.export import FORMATS, export, made_pictures
from comdefend_cli.metrics import mean_psnr
from comdefend_cli.weights import Weights

NEEDS = {"onnx": "onnxruntime", "openvino": "openvino", "torch-export": "torch"}
#: torch.export takes seconds.
QUICK = [format for format in FORMATS if format != "torch-export"]


def loaded(channels: int = 3) -> Weights:
    model = small_model(channels)
    return Weights("small", "", weights.Header(model.architecture), model)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("format", [*QUICK, pytest.param("torch-export", marks=pytest.mark.slow)])
def test_a_file_computes_what_pytorch_does(format: str, channels: int, tmp_path: Path) -> None:
    """Each format, grey and colour, of any height, width and number of pictures, read back by the library that it is for."""
    pytest.importorskip(NEEDS[format])
    path = tmp_path / f"out{FORMATS[format]}"
    done = export(loaded(channels), format, path)
    assert set(done.paths) == set(tmp_path.iterdir())
    assert done.psnr_db > 55
    x = torch.rand((3, channels, 23, 31), generator=torch.Generator().manual_seed(0))
    found = exports._runner(format, [path.read_bytes() for path in done.paths])(x.numpy())
    levels = [(value * 255).round().to(torch.uint8) for value in (torch.from_numpy(found), small_model(channels)(x))]
    assert mean_psnr(*levels) > 55


@pytest.mark.parametrize("format", QUICK)
def test_a_file_that_computes_something_else_is_not_left(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the written networks differ from PyTorch's, it is an error, and there is no file."""
    pytest.importorskip(NEEDS[format])
    name = {"onnx": "onnx_model", "openvino": "openvino_model"}[format]
    right = getattr(graphs, name)
    monkeypatch.setattr(graphs, name, lambda model: right(small_model(seed=1)))
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


def test_made_pictures_are_pictures() -> None:
    """They are the same each time, of several sizes, and neither flat nor noise: most neighbours are close, some are not."""
    for one, other in zip(made_pictures(3), made_pictures(3), strict=True):
        assert torch.equal(one, other)
        steps = one.float().diff(dim=3).abs()
        assert steps.median() < 20
        assert steps.max() > 50


def test_the_command_compares_on_the_users_pictures(run: Run, small_weights: Path, astronaut: np.ndarray, tmp_path: Path) -> None:
    """`comdefend export` writes the file, says on how many pictures it was compared, and refuses a second time."""
    pytest.importorskip("onnxruntime")
    Image.fromarray(astronaut[:40, :50]).save(tmp_path / "photo.png")
    options = ["export", tmp_path / "out.onnx", "--format", "onnx", "--weights", small_weights, "--check", tmp_path / "photo.png", "--json"]
    done = run(*options)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["pictures"], record["written"]) == (1, [str(tmp_path / "out.onnx")])
    assert run(*options).returncode == 2
