"""`comdefend certify` as a person runs it: rows as in the literature, resumed, repeated, refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from comdefend_cli.cli import app

pytest.importorskip("scipy")
ENVIRONMENT = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
#: Class 0 for dark images, 1 for bright ones: sure of both, unless they are near the middle.
CLASSIFIER = """
import torch
class Bright(torch.nn.Module):
    def forward(self, x):
        score = x.mean((1, 2, 3)) - 0.5
        return torch.stack([-score, score, torch.full_like(score, -9)], 1)
make = Bright
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine flat images of 32x32 in sub-folders by class, of which one lies in the middle, and a classifier of brightness."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "bright_images.py").write_text(CLASSIFIER)
    for label, levels in (("dark", (10, 40, 60, 90)), ("light", (160, 190, 220, 250)), ("other", (127,))):
        for level in levels:
            path = folder / "images" / label / f"{level}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (level,) * 3).save(path)
    return folder


BASE = ("certify", "--data", "images", "--classifier", "bright_images:make", "--sigma", 0.12, "--n", 200, "--n0", 20)


def certify(work: Path, *options: object) -> subprocess.CompletedProcess[str]:
    """A real process."""
    command = [sys.executable, "-m", "comdefend_cli", *map(str, (*BASE, *options))]
    return subprocess.run(command, cwd=work, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def in_process(work: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The same in this process, or another command: so many starts would take a minute."""
    monkeypatch.chdir(work)
    monkeypatch.syspath_prepend(work)
    for name in ("COLUMNS", "NO_COLOR"):
        monkeypatch.setenv(name, ENVIRONMENT[name])

    def invoke(*options: object, base: Sequence[object] = BASE) -> Result:
        return CliRunner().invoke(app, list(map(str, (*base, *options))))

    return invoke


def read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    lines = path.read_text().splitlines()
    return [line for line in lines if line.startswith("#")], [line.split("\t") for line in lines if not line.startswith("#")]


def test_rows_summary_and_curve(work: Path) -> None:
    """Each image has a row; a sure classifier's radii are the largest that so many draws can give, and the summary counts them."""
    done = certify(work, "--noise-seed", 3, "--json", "--out", "one")
    assert done.returncode == 0, done.stderr
    head, (columns, *rows) = read_rows(work / "one" / "certificates.tsv")
    assert columns == ["idx", "label", "predict", "radius", "correct", "time"] and [int(row[0]) for row in rows] == list(range(9))
    assert "# sigma: 0.12" in head and "# noise seed: 3" in head and any(line.startswith("# weights sha256: ") for line in head)
    sure = [row for row in rows if row[1] != "2"]
    assert all(row[1] == row[2] and row[4] == "1" for row in sure) and {row[3] for row in sure} == {max(row[3] for row in rows)}
    assert all(row[4] == "0" for row in rows if row[1] == "2")
    summary = json.loads(done.stdout)
    assert summary == json.loads((work / "one" / "summary.json").read_text())
    assert (summary["images"], summary["clean"]["accuracy"]) == (9, pytest.approx(88.9))
    held = {row["name"]: row["held"] for row in summary["certified"]}
    assert held == {"0": 8, "0.217 (L-infinity 1/255)": 8}, "larger radii cannot be certified with so few draws"
    assert Image.open(work / "one" / "curve.png").size[0] > 300


def test_it_goes_on_and_repeats(work: Path, in_process: Callable[..., Result]) -> None:
    """A run that was cut off in the middle of a line goes on and gives, by the same seed, the same rows; without a seed they differ."""
    whole = in_process("--noise-seed", 3, "--quiet", "--out", "whole")
    assert (whole.exit_code, whole.output) == (0, "")
    path = work / "whole" / "certificates.tsv"
    strip = [row[:5] for row in read_rows(path)[1]]
    text = path.read_text()
    path.write_text(text[: text.index("\n5\t") + 4])
    again = in_process("--noise-seed", 3, "--out", "whole", "--batch-size", 7)
    assert again.exit_code == 0 and "5 images were certified before" in again.output
    assert [row[:5] for row in read_rows(path)[1]] == strip
    assert "certified before" not in in_process("--out", "free", "--weights", "none", "--limit", 2).output


def test_what_is_refused(work: Path, in_process: Callable[..., Result]) -> None:
    """Other settings than the file's, a damaged file, an unknown classifier, numbers out of range: one line, exit code 2, nothing lost."""
    assert in_process("--out", "kept", "--weights", "none", "--limit", 3).exit_code == 0
    path = work / "kept" / "certificates.tsv"
    before = path.read_text()
    for options, part in (
        (("--out", "kept", "--weights", "none", "--limit", 3, "--sigma", 0.25), "other settings (sigma)"),
        (("--out", "kept", "--weights", "none", "--limit", 3, "--seed", 1), "other settings (sample"),
        (("--out", "kept", "--weights", "none", "--limit", 2), "of more images"),
        (("--out", "new", "--classifier", "no-such"), "no such classifier"),
        (("--out", "new", "--weights", "no-such"), "no such weights"),
        (("--out", "new", "--alpha", 0.7), "alpha"),
        (("--out", "new", "--sigma", 0), "sigma"),
    ):
        refused = in_process(*options)
        lines = [line for line in refused.output.splitlines() if not line.startswith("note:")]
        assert refused.exit_code == 2 and len(lines) == 1 and part in lines[0], refused.output
        assert path.read_text() == before
    for name in ("summary.json", "curve.png"):
        (work / name.partition(".")[0]).mkdir()
        (work / name.partition(".")[0] / name).write_text("mine")
        refused = in_process("--out", name.partition(".")[0], "--weights", "none", "--limit", 2)
        assert refused.exit_code == 2 and f"{name}: already exists" in refused.output
    path.write_text(before.replace("\n1\t", "\nx\t"))
    refused = in_process("--out", "kept", "--weights", "none", "--limit", 3)
    assert refused.exit_code == 2 and "damaged" in refused.output
    assert in_process("--out", "kept", "--weights", "none", "--limit", 3, "--overwrite", "--quiet").exit_code == 0
    more = in_process("--out", "kept", "--weights", "none", "--limit", 5)
    assert more.exit_code == 0 and "3 images were certified before" in more.output
    text = path.read_text()
    path.write_text(re.sub(r'(# images sha256: ")[0-9a-f]', r"\1x", text))
    changed = in_process("--out", "kept", "--weights", "none", "--limit", 6)
    assert changed.exit_code == 2 and "other settings (images sha256)" in changed.output


def test_certificates_stand_in_the_report(work: Path, in_process: Callable[..., Result]) -> None:
    """`evaluate --certificates` shows them beside what attacks left, holds a build to them, and refuses those of other systems."""
    pytest.importorskip("foolbox")
    assert in_process("--out", "shown", "--noise-seed", 3, "--quiet").exit_code == 0
    base = (
        "evaluate",
        "--data",
        "images",
        "--classifier",
        "bright_images:make",
        "--attacks",
        "fgsm",
        "--threat-models",
        "grey-box",
        "--epsilons",
        8,
    )

    def evaluate(defences: str, *more: str) -> Result:
        return in_process("--defences", defences, "--certificates", "shown", *more, base=base)

    done = evaluate("none comdefend-fast", "--fail-under", "certified:0.217=95")
    assert done.exit_code == 4 and "certified at L2 radius 0.217 is 88.9 %" in done.output, done.output
    tables, page = (work / "evaluation" / "tables.md").read_text(), (work / "evaluation" / "report.html").read_text()
    assert "### Certified" in tables and "88.9" in tables.partition("### Certified")[2] and 'id="table-certified"' in page
    refused = evaluate("none", "--out", "other")
    assert refused.exit_code == 2 and "other weights (comdefend-fast)" in refused.output.splitlines()[-1]
    (work / "shown" / "summary.json").write_text("[]")
    damaged = evaluate("none comdefend-fast", "--out", "other")
    assert damaged.exit_code == 2 and "not a summary" in damaged.output
