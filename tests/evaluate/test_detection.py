"""Detection: scores, thresholds by conformal calibration, detector files, and the two commands in real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from comdefend_cli.cli import app
from comdefend_cli.errors import ImageError, UsageError
from comdefend_cli.evaluate.detection import Calibration, Detector, choose_threshold, fit_image

ENVIRONMENT = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
#: Answers by fine chequers, which a median takes away, and by brightness.
CLASSIFIER = """
import torch
class Fine(torch.nn.Module):
    def forward(self, x):
        fine = (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3))
        return torch.stack([1 - 40 * fine, 40 * fine - 1], 1) * 4
make = Fine
"""


class Shift(nn.Module):
    """A squeezer that moves all values by so much."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


class Mean(nn.Module):
    """Logits from the mean of the values."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3)) * 8
        return torch.stack([mean, -mean], 1)


def test_score_is_the_largest_distance_of_the_probabilities() -> None:
    """L1 between the softmax before and after, the largest of the squeezers'; none where nothing changes; at most 2."""
    x = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)).mul(255).round().to(torch.uint8)
    assert Detector(Mean(), [Shift(0.0)]).score(x).abs().max() == 0
    both = Detector(Mean(), [Shift(0.1), Shift(-0.6)]).score(x, batch=2)
    single = torch.stack([Detector(Mean(), [Shift(by)]).score(x) for by in (0.1, -0.6)])
    assert torch.equal(both, single.amax(0)) and 0 < float(both.max()) <= 2
    model, floats = Mean(), x.float() / 255
    wanted = (model(floats - 0.6).softmax(1) - model(floats).softmax(1)).abs().sum(1)
    assert torch.allclose(single[1], wanted)
    with pytest.raises(UsageError, match="at least one squeezer"):
        Detector(Mean(), [])
    with pytest.raises(UsageError, match="not finite"):
        Detector(Mean(), [Shift(float("nan"))]).score(x)


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_threshold_holds_for_images_to_come(rate: float) -> None:
    """Over many calibrations, new images of the same kind are flagged no more often than the rate, and nearly as often."""
    rng = torch.Generator().manual_seed(1)
    flagged = []
    for _ in range(300):
        old, new = torch.rand((2, 99), generator=rng)
        flagged.append(float((new > choose_threshold(old, rate)).float().mean()))
    assert rate - 0.012 < np.mean(flagged) < rate + 0.005
    assert choose_threshold(torch.arange(19.0), 0.05) == 18.0
    with pytest.raises(UsageError, match="19 or more"):
        choose_threshold(torch.arange(18.0), 0.05)
    with pytest.raises(UsageError, match="above 0"):
        choose_threshold(torch.arange(18.0), 0.0)


def test_files_are_read_with_care(tmp_path: Path) -> None:
    """A file comes back as it was written; what is no detector is one line."""
    made = Calibration("small", "ab", ("median:size=3",), "cd", None, 3, 0.05, 0.25, 40)
    path = tmp_path / "detector.json"
    made.write(path)
    assert Calibration.read(path) == made
    with pytest.raises(UsageError, match="already exists"):
        made.write(path)
    record = json.loads(path.read_text())
    changed: list[dict[str, object]] = [{"threshold": value} for value in (9, "1.0", 10**400, True, float("nan"))]
    changed += [{"size": value} for value in (0, -5, True, 10**6, "8")] + [{"classifier": value} for value in (5, None, "", ["x"])]
    changed += [{"channels": 3.0}, {"squeezers": []}, {"squeezers": [5]}, {"false_alarms": "0.05"}, {"format_version": 2}, {"more": 1}]
    for wrong in ("[]", "{", "{}", "[" * 10_000, *(json.dumps({**record, **change}) for change in changed)):
        path.write_text(wrong)
        with pytest.raises(UsageError, match="no detector"):
            Calibration.read(path)
    with pytest.raises(UsageError, match="cannot read"):
        Calibration.read(tmp_path / "absent.json")


def test_images_are_fitted_to_the_classifier() -> None:
    """Scaled on the shorter side and cropped; grey repeated; colour refused where grey is taken."""
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 1), np.uint8)
    assert fit_image(image, None, 3, "a").shape == (1, 3, 20, 30) and fit_image(image, 8, 1, "a").shape == (1, 1, 8, 8)
    with pytest.raises(ImageError, match="in colour"):
        fit_image(image.repeat(3, 2), None, 1, "a")


def run(work: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A real process."""
    command = [sys.executable, "-m", "comdefend_cli", *map(str, arguments)]
    return subprocess.run(command, cwd=work, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300)


def call(*arguments: object) -> SimpleNamespace:
    """The same in this process: so many starts would take half a minute."""
    result = CliRunner().invoke(app, list(map(str, arguments)), env=ENVIRONMENT)
    return SimpleNamespace(returncode=result.exit_code, stdout=result.stdout, stderr=result.stderr)


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean images pass, an attacked one is flagged with exit code 3 and is in the report; what cannot be read is told."""
    pytest.importorskip("scipy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "fine_images.py").write_text(CLASSIFIER)
    for folder, count in (("clean", 24), ("new", 3)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            ramp = np.linspace(rng.integers(40, 90), rng.integers(150, 200), 32).round().astype(np.uint8)
            Image.fromarray(np.broadcast_to(ramp, (32, 32)).copy()).convert("RGB").save(tmp_path / folder / f"{number}.png")
    chequers = np.indices((32, 32)).sum(0) % 2 * 12
    attacked = np.asarray(Image.open(tmp_path / "new" / "0.png")) + chequers[..., None]
    Image.fromarray(attacked.astype(np.uint8)).save(tmp_path / "attacked.png")
    made = run(tmp_path, "calibrate-detector", "--data", "clean", "--classifier", "fine_images:make", "--squeezers", "median:size=3")
    assert made.returncode == 0 and "24 clean images" in made.stderr and "one who does passes it" in made.stderr, made.stderr
    unnamed = call("detect", "new")
    assert unnamed.returncode == 2 and "run only if you name it too" in unnamed.stderr
    mine = ("--classifier", "fine_images:make")
    passed = call("detect", "new", "--quiet", "--json", *mine)
    assert passed.returncode == 0 and [json.loads(line)["flagged"] for line in passed.stdout.splitlines()] == [False] * 3
    (tmp_path / "new" / "broken.png").write_bytes(b"no image")
    assert call("detect", "new", *mine).returncode == 1
    found = call("detect", "attacked.png", "new", "--report", "report.jsonl", *mine)
    assert found.returncode == 3 and found.stdout.startswith("attacked  ") and "broken.png" in found.stderr, found.stderr
    records = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert [record["flagged"] for record in records] == [True, False, False, False, False] and records[4]["error"]
    again = call("detect", "attacked.png", "--report", "report.jsonl", *mine)
    assert again.returncode == 2 and "already exists" in again.stderr
    before = (tmp_path / "attacked.png").read_bytes()
    for report in ("attacked.png", "detector.json"):
        refused = call("detect", "attacked.png", "--report", report, "--overwrite", *mine)
        assert refused.returncode == 2 and "name another file" in refused.stderr
    assert (tmp_path / "attacked.png").read_bytes() == before
    (tmp_path / "fine_images.py").write_text(CLASSIFIER.replace("class Fine", "class Other").replace("= Fine", "= Other"))
    changed = run(tmp_path, "detect", "attacked.png", *mine)
    assert changed.returncode == 2 and "not the classifier" in changed.stderr and changed.stderr.count("\n") == 1
    for arguments, part in (
        (("detect", "absent.png"), "no such image"),
        (("detect", "attacked.png", "--detector", "absent.json"), "cannot read"),
        (("calibrate-detector", "--data", "new", "--classifier", "fine_images:make", "--out", "few.json"), "19 or more"),
    ):
        refused = call(*arguments)
        lines = [line for line in refused.stderr.splitlines() if not line.startswith("note:")]
        assert refused.returncode in (1, 2) and len(lines) == 1 and part in lines[0], refused.stderr
