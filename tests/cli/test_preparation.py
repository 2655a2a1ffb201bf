"""Commands read folders of images in one way: with the limit of `purify`, telling what they leave out, with a bar of a download."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import photo
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from comdefend_cli.cli import console, preparation, progress
from comdefend_cli.cli.evaluate import evaluate
from comdefend_cli.cli.export import export, quantize
from comdefend_cli.cli.train import train
from comdefend_cli.cli.train_baseline import train_baseline
from comdefend_cli.errors import ComdefendError
from comdefend_cli.imaging import reading
from comdefend_cli.imaging.limits import MAX_MEGAPIXELS

#: Commands that read images beside purify and purify-dir, with what they need to come to that.
COMMANDS: dict[str, tuple[Callable[..., None], list[str]]] = {
    "train": (train, ["--data", "images", "--out", "a.safetensors", "--device", "cpu"]),
    "train-baseline": (train_baseline, ["pixelcnn", "--data", "images", "--device", "cpu"]),
    "evaluate": (evaluate, ["--data", "images", "--classifier", "net.py:net", "--out", "out", "--device", "cpu"]),
    "quantize": (quantize, ["--data", "images", "--out", "a.safetensors"]),
    "export": (export, ["a.onnx", "--format", "onnx", "--check", "images/a/0.png"]),
}


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of images, each of more pixels than Pillow would read by its own limit, and a damaged one."""
    for index in range(4):
        path = tmp_path / "images" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo("astronaut.png")[index : index + 40, :40]).save(path)
    (tmp_path / "images" / "a" / "damaged.png").write_bytes(b"\x89PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "images"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is written to a terminal."""
    file = io.StringIO()
    err = Console(file=file, force_terminal=True, width=200, color_system=None)
    for module in (console, progress):
        monkeypatch.setattr(module, "err", err)
    return file


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_limit_of_purify(name: str, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's own limit, which would be lower, leaves no image out: it is half of ours, since it ends at twice what it is."""
    if name == "quantize":
        pytest.importorskip("nncf")
    limits = []

    def read(path: Path) -> None:
        limits.append(Image.MAX_IMAGE_PIXELS)
        raise ComdefendError("enough")

    for place in ("comdefend_cli.data.folder.read_image", "comdefend_cli.imaging.reading.read_image"):
        monkeypatch.setattr(place, read)
    command, arguments = COMMANDS[name]
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1 and "error: enough" in result.output
    assert limits == [MAX_MEGAPIXELS * 1e6 / 2]


def test_labelled_images_are_fetched_like_others(images: Path, said: io.StringIO) -> None:
    """Both kinds come whole, and the damaged file is told of each time."""
    dataset = preparation.fetch_dataset(str(images), images, download=False, quiet=False)
    labelled = preparation.fetch_labelled(str(images), images, limit=None, seed=0, size=None, download=False, quiet=False)
    assert (len(dataset.train) + 1, len(labelled), dataset.skipped, labelled.skipped) == (4, 4, 1, 1)
    assert f"1 file in {images} is no image of 32x32" in said.getvalue()
    assert f"1 file in {images} could not be read as images" in said.getvalue()


def test_a_download_of_labelled_images_has_a_bar(said: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`evaluate` shows how far the download of its data set is."""

    def load(*_: Any, progress: Callable[[int, int], None], **__: Any) -> Any:
        progress(1000, 2000)
        raise ComdefendError("enough")

    monkeypatch.setattr("comdefend_cli.data.labelled.load_dataset", load)
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command()(evaluate)
    result = CliRunner().invoke(app, ["--data", "cifar10", "--classifier", "reference", "--out", "out", "--device", "cpu"])
    assert result.exit_code == 1 and "error: enough" in said.getvalue()
    assert "1.0/2.0 kB" in said.getvalue()


def test_the_limit_itself_holds(images: Path) -> None:
    """What is lifted is Pillow's limit, not that on megapixels."""
    reading.prepare_pillow()
    with pytest.raises(ComdefendError, match=r"over the limit of 0\.001"):
        reading.read_image(images / "a" / "0.png", max_megapixels=0.001)
