"""`comdefend train-baseline`: both networks from a folder of images, and what it refuses before it trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from conftest import photo
from PIL import Image
from typer.testing import CliRunner, Result

from comdefend_cli.cli.train_baseline import train_baseline
from comdefend_cli.evaluate.defences import hgd, pixelcnn
from comdefend_cli.evaluate.defences.catalogue import make_defence
from comdefend_cli.training.baseline import BaselineTrainer

#: A user's own classifier, for images of three channels.
GUIDE = """
import torch
from torch import nn

def guide():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

def for_40_pixels():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 40 * 40, 3))
"""

Invoke = Callable[..., Result]


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run the command in an empty folder, on four crops of photographs and one thread."""
    app = typer.Typer()
    app.command()(train_baseline)
    (tmp_path / "images").mkdir()
    for name in ("astronaut.png", "coffee.png"):
        for top in (40, 200):
            Image.fromarray(photo(name)[top : top + 40, 60:100]).save(tmp_path / "images" / f"{top}-{name}")
    (tmp_path / "guides.py").write_text(GUIDE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(kind: str, *arguments: object) -> Result:
        fixed = [kind, "--data", "images", "--device", "cpu", "--precision", "float32", "--steps", "2", "--batch-size", "2"]
        return CliRunner().invoke(app, [*fixed, *map(str, arguments)])

    return invoke


def test_a_pixelcnn_is_trained_and_used(invoke: Invoke) -> None:
    """The file is one that the defence takes; progress and bits per channel are said on standard error."""
    result = invoke("pixelcnn", "--seed", "3")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert "step 2/2" in result.stderr and "wrote pixelcnn.safetensors" in result.stderr and "bits a channel of a pixel" in result.stderr
    record = pixelcnn.load(Path("pixelcnn.safetensors")).training
    assert (record["data"], record["steps"], record["batch_size"], record["seed"]) == ("folder:images", 2, 2, 3)
    assert make_defence("pixeldefend:weights=pixelcnn.safetensors", device="cpu")(torch.rand(1, 3, 6, 6)).shape == (1, 3, 6, 6)


def test_hgd_is_trained_with_a_classifier(invoke: Invoke) -> None:
    """A user's own function serves; the file says which."""
    result = invoke("hgd", "--classifier", "guides:guide", "--out", "h.safetensors", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert result.output == ""
    assert hgd.load(Path("h.safetensors")).training["classifier"] == {"name": "guides:guide", "sha256": ""}


def test_crops_have_the_classifiers_size(invoke: Invoke) -> None:
    """A classifier for images of one size is met with such."""
    result = invoke("hgd", "--classifier", "guides:for_40_pixels", "--crop", "40", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert hgd.load(Path("hgd.safetensors")).training["test_images"] == 64


def test_outputs_are_not_replaced_unasked(invoke: Invoke) -> None:
    """An existing file is an error before training, and replaced with --overwrite."""
    Path("p.safetensors").write_text("mine")
    result = invoke("pixelcnn", "--out", "p.safetensors")
    assert result.exit_code == 2 and "already exists" in result.stderr
    assert Path("p.safetensors").read_text() == "mine"
    assert invoke("pixelcnn", "--out", "p.safetensors", "--overwrite").exit_code == 0
    assert pixelcnn.load(Path("p.safetensors")).model.architecture.channels == 3


@pytest.mark.parametrize("kind", ["pixelcnn", "hgd"])
def test_a_stopped_run_goes_on(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Asked to stop, it leaves a checkpoint, from which --resume ends in the same file as without; another run does not take it."""
    guide = ("--classifier", "guides:guide") if kind == "hgd" else ()
    options = (*guide, "--steps", "5")
    assert invoke(kind, *options, "--out", "whole.safetensors").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(BaselineTrainer, "after_step", lambda trainer, figures: setattr(trainer, "stop_asked", trainer.step_done == 1))
        stopped = invoke(kind, *options, "--out", "w.safetensors")
    assert stopped.exit_code == 130 and "stopped after step 3" in stopped.stderr
    assert sorted(path.name for path in Path().glob("w.*")) == ["w.checkpoint"]
    again = invoke(kind, *options, "--out", "w.safetensors")
    assert again.exit_code == 2 and "unfinished run" in again.stderr
    other = invoke(kind, *guide, "--steps", "6", "--out", "w.safetensors", "--resume")
    assert other.exit_code == 1 and "--steps 5, not 6" in other.stderr
    done = invoke(kind, *options, "--out", "w.safetensors", "--resume")
    assert done.exit_code == 0 and "going on after step 3" in done.stderr
    assert Path("w.safetensors").read_bytes() == Path("whole.safetensors").read_bytes() and not Path("w.checkpoint").exists()


def test_a_checkpoint_is_of_one_network_and_classifier(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither another kind's nor one with another guide is gone on from."""
    with monkeypatch.context() as patch:
        patch.setattr(BaselineTrainer, "after_step", lambda trainer, figures: setattr(trainer, "stop_asked", True))
        assert invoke("hgd", "--classifier", "guides:guide", "--out", "w.safetensors", "--steps", "5").exit_code == 130
    kind = invoke("pixelcnn", "--out", "w.safetensors", "--steps", "5", "--resume")
    assert kind.exit_code == 1 and "not a checkpoint of comdefend train-baseline pixelcnn" in kind.stderr
    guide = invoke("hgd", "--classifier", "guides:for_40_pixels", "--crop", "40", "--out", "w.safetensors", "--steps", "5", "--resume")
    assert guide.exit_code == 1 and "--classifier guides:guide, not guides:for_40_pixels" in guide.stderr


def test_images_past_pillows_own_limit_are_learnt_from(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have the limit that they have in the other commands; those that are left out are said."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # Of the four images here each has 1,600.
    Path("images/broken.png").write_bytes(b"no image")
    result = invoke("pixelcnn")
    assert result.exit_code == 0, result.stderr
    assert "1 file in images is no image" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("pixelrnn",), "unknown network 'pixelrnn': use pixelcnn or hgd"),
        (("hgd",), "hgd needs --classifier"),
        (("pixelcnn", "--classifier", "guides:guide"), "--classifier is for hgd only"),
        (("hgd", "--classifier", "absent"), "absent: no such classifier"),
        (("pixelcnn", "--out", "p.bin"), "ends in .safetensors"),
        (("pixelcnn", "--out", "absent/p.safetensors"), "cannot write"),
        (("pixelcnn", "--lr", "0"), "lr must be above 0"),
        (("pixelcnn", "--data", "absent"), "no such data set or folder"),
        (("pixelcnn", "--device", "abacus"), "unknown device"),
        (("pixelcnn", "--crop", "41"), "needs at least 2 readable images of 41x41 pixels or more, found 0"),
        (("pixelcnn", "--data", "mnist", "--crop", "28"), "--crop is for folders of images; those of mnist are whole"),
    ],
)
def test_what_cannot_be_is_one_line(invoke: Invoke, arguments: tuple[str, ...], says: str) -> None:
    """Wrong usage is said on one line with a non-zero exit code, and nothing is written."""
    result = invoke(*arguments)
    assert result.exit_code in (1, 2)
    assert says in result.stderr and result.stderr.strip().count("\n") == 0
    assert not list(Path().glob("*.safetensors"))
