"""Options that would do nothing beside others, or without them: refused in one line, on every command, before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from comdefend_cli.cli import app

PURIFY = ("purify", "in.png", "out.png")
FOLDER = ("purify-dir", "images")
TRAIN = ("train", "--data", "cifar10")
CLASSIFIER = ("train-classifier", "--data", "cifar10")
EVALUATE = ("evaluate", "--data", "cifar10", "--classifier", "small", "--no-download", "--device", "cpu")


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        (PURIFY, "--tiling paper --tile 64", "a tile's side is for exact tiling"),
        (PURIFY, "--tiling paper --tile 64 --no-strips", "a tile's side is for exact tiling"),
        (FOLDER, "--tiling paper --tile 64", "a tile's side is for exact tiling"),
        (PURIFY, "--quality 80", "--quality is for JPEG and AVIF, PNG has none"),
        (("purify", "in.png", "-"), "--quality 80 --format webp", "--quality is for JPEG and AVIF, WEBP has none"),
        (FOLDER, "--quality 80 --format png", "--quality is for JPEG and AVIF, PNG has none"),
        (TRAIN, "--feature-weight 0.1", "--feature-weight does nothing without --features"),
        (TRAIN, "--width 32", "--width does nothing without --arch residual"),
        (TRAIN, "--arch paper --blocks 2", "--blocks does nothing without --arch residual"),
        (TRAIN, "--downscale 4 --init comdefend-12bit", "--downscale does nothing without --arch residual"),
        (TRAIN, "--stability-weight 0.1", "--stability-weight does nothing without --features"),
        (CLASSIFIER, "--consistency 5", "--consistency does nothing without --sigma"),
        (CLASSIFIER, "--sigma 0.25 --input-noise 20", "sigma is a way to train of its own"),
        (CLASSIFIER, "--adversarial-epsilon 8", "--adversarial-epsilon does nothing without --adversarial"),
        (CLASSIFIER, "--adversarial-steps 3", "--adversarial-steps does nothing without --adversarial"),
        (CLASSIFIER, "--adversarial fgsm --adversarial-steps 3", "--adversarial-steps does nothing without --adversarial bim"),
        (EVALUATE, "--size 64", "a size is for folders of images"),
        (EVALUATE, "--slow-epsilons 8,12", "the slow attacks' epsilons must be some of the epsilons"),
        (EVALUATE, "--save-adversarial saved --threat-models adaptive", "--save-adversarial writes the images of grey-box attacks"),
        (EVALUATE, "--save-adversarial saved --attacks square", "--save-adversarial writes the images of grey-box attacks"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, astronaut: np.ndarray, command: tuple[str, ...], options: str, message: str
) -> None:
    """The command ends with exit code 2 and one line that names the option, and has written nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for name in ("in.png", "images/in.png"):
        Image.fromarray(astronaut[:20, :20]).save(name)
    said = CliRunner().invoke(app, [*command, *options.split()])
    assert said.exit_code == 2, said.output
    assert said.stderr.startswith("error: ") and message in " ".join(said.stderr.split())
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "in.png"]
