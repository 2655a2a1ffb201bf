"""Weights that do not ship: every command that runs some says that their origin is unknown."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image
from test_commands import COMMANDS
from typer.testing import CliRunner

from comdefend_cli.cli import app
from comdefend_cli.errors import ComdefendError

#: Options that name weights, in whatever words.
OPTIONS = {"weights", "defences", "squeezers", "purify", "detector"}
CLASSIFIER = "import torch\ndef make():\n    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())\n"
JUDGED = "--data images --size 16 --classifier means:make"
#: A call of each command; W is a weight file of one's own.
CALLS = {
    "purify": "in.png out.png --weights W",
    "purify-dir": "images/0 -o out --weights W",
    "train": "--data images --crop 8 --init W --steps 1 --batch-size 2 --test-images 1 --out new.safetensors",
    "train-classifier": "--data mnist --data-dir none --no-download --purify W",
    "certify": f"{JUDGED} --n 20 --n0 5 --weights W",
    "evaluate": f"{JUDGED} --attacks fgsm --epsilons 8 --threat-models grey-box --defences W",
    "calibrate-detector": f"{JUDGED} --false-alarms 0.4 --squeezers W -o d.json",
    "detect": "in.png --classifier means:make --detector d.json",
    "export": "out.pt2 --format torch-export --weights W",
    "quantize": "--data none --out q.safetensors --weights W",
}
#: What these do next, which would take long: it is said before.
WORK = {
    "train": "comdefend_cli.cli.train.make_trainer",
    "train-classifier": "comdefend_cli.cli.train_classifier.make_config",
    "certify": "comdefend_cli.cli.certify._certify",
    "evaluate": "comdefend_cli.cli.evaluate._plan",
    "export": "comdefend_cli.backends.export.export",
    "quantize": "comdefend_cli.cli.export.fetch_dataset",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small images in folders of their classes, one more, and a classifier."""
    folder = tmp_path_factory.mktemp("origin")
    (folder / "means.py").write_text(CLASSIFIER)
    for number in range(6):
        path = folder / "images" / str(number % 3) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (40 * number, 250 - 40 * number, 90)).save(path)
    Image.new("RGB", (16, 16), (40, 50, 60)).save(folder / "in.png")
    return folder


@pytest.fixture(scope="module")
def own_weights(family_weights: dict[str, Path]) -> Path:
    """Of a family that `train` makes in any size."""
    return family_weights["residual-2"]


def call(name: str, weights: Path, *more: str) -> Result:
    given = [str(weights) if word == "W" else word for word in CALLS[name].split()]
    device = [] if name in ("export", "quantize") else ["--device", "cpu"]
    overwrite = [] if name == "detect" else ["--overwrite"]
    return CliRunner().invoke(app, [name, *given, *device, *overwrite, *more])


def begin(*_: object, **__: object) -> None:
    raise ComdefendError("the work begins")


@pytest.mark.parametrize("name", CALLS)
def test_weights_of_unknown_origin_are_said_to_be(name: str, place: Path, own_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, with what that means and the beginning of their SHA-256, on standard error, unless nothing is to be said."""
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    for module in ("comdefend_cli.runtime.extras", "comdefend_cli.cli.export"):
        monkeypatch.setattr(f"{module}.require", lambda *_, **__: None)
    monkeypatch.setattr("comdefend_cli.runtime.machine.limit_threads", lambda: None)  # It takes all cores, for tiny images.
    if name in WORK:
        monkeypatch.setattr(WORK[name], begin)
    if name == "detect":
        call("calibrate-detector", own_weights, "--quiet")
    said = call(name, own_weights)
    assert said.exit_code == (name in WORK), said.output
    assert said.stderr.count("weights of unknown origin, SHA-256 ") == 1 and "unknown origin" not in said.stdout
    again = call(name, own_weights, "--quiet")
    assert again.exit_code == (name in WORK) and "origin" not in again.stderr, again.output


def test_no_command_is_left_out() -> None:
    """Whoever takes weights is above; those that ship are not spoken of, and `weights verify` says it too."""
    taking = {name for name, command in COMMANDS.items() if OPTIONS & {each.name for each in command.params}}
    assert taking | {"train"} == set(CALLS)


def test_verify_says_it_too(own_weights: Path) -> None:
    """A file may be whole and of anybody's making; of those that ship nothing is said."""
    own, shipped = (CliRunner().invoke(app, ["weights", "verify", str(which)]) for which in (own_weights, "comdefend-fast"))
    assert own.stdout.startswith("ok ") and "unknown origin" in own.stderr
    assert shipped.stdout.startswith("ok ") and not shipped.stderr
