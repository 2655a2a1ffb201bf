"""`comdefend certify` as a person runs it: rows as in the literature, resumed, repeated, refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

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
    (folder / "mine.py").write_text(CLASSIFIER)
    for label, levels in (("dark", (10, 40, 60, 90)), ("light", (160, 190, 220, 250)), ("other", (127,))):
        for level in levels:
            path = folder / "images" / label / f"{level}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (level,) * 3).save(path)
    return folder


def certify(work: Path, *options: object) -> subprocess.CompletedProcess[str]:
    base = ("certify", "--data", "images", "--classifier", "mine:make", "--sigma", 0.12, "--n", 200, "--n0", 20)
    command = [sys.executable, "-m", "comdefend_cli", *map(str, (*base, *options))]
    return subprocess.run(command, cwd=work, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300)


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


def test_it_goes_on_and_repeats(work: Path) -> None:
    """A run that was cut off in the middle of a line goes on and gives, by the same seed, the same rows; without a seed they differ."""
    whole = certify(work, "--noise-seed", 3, "--quiet", "--out", "whole")
    assert (whole.returncode, whole.stdout, whole.stderr) == (0, "", "")
    path = work / "whole" / "certificates.tsv"
    strip = [row[:5] for row in read_rows(path)[1]]
    text = path.read_text()
    path.write_text(text[: text.index("\n5\t") + 4])
    again = certify(work, "--noise-seed", 3, "--out", "whole", "--batch-size", 7)
    assert again.returncode == 0 and "5 images were certified before" in again.stderr
    assert [row[:5] for row in read_rows(path)[1]] == strip
    assert "certified before" not in certify(work, "--out", "free", "--weights", "none", "--limit", 2).stderr


def test_what_is_refused(work: Path) -> None:
    """Other settings than the file's, a damaged file, an unknown classifier, numbers out of range: one line, exit code 2, nothing lost."""
    assert certify(work, "--out", "kept", "--weights", "none", "--limit", 3).returncode == 0
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
        refused = certify(work, *options)
        lines = [line for line in refused.stderr.splitlines() if not line.startswith("note:")]
        assert refused.returncode == 2 and len(lines) == 1 and part in lines[0], refused.stderr
        assert path.read_text() == before
    for name in ("summary.json", "curve.png"):
        (work / name.partition(".")[0]).mkdir()
        (work / name.partition(".")[0] / name).write_text("mine")
        refused = certify(work, "--out", name.partition(".")[0], "--weights", "none", "--limit", 2)
        assert refused.returncode == 2 and f"{name}: already exists" in refused.stderr
    path.write_text(before.replace("\n1\t", "\nx\t"))
    refused = certify(work, "--out", "kept", "--weights", "none", "--limit", 3)
    assert refused.returncode == 2 and "damaged" in refused.stderr
    assert certify(work, "--out", "kept", "--weights", "none", "--limit", 3, "--overwrite", "--quiet").returncode == 0
    more = certify(work, "--out", "kept", "--weights", "none", "--limit", 5)
    assert more.returncode == 0 and "3 images were certified before" in more.stderr
    text = path.read_text()
    path.write_text(re.sub(r'(# images sha256: ")[0-9a-f]', r"\1x", text))
    changed = certify(work, "--out", "kept", "--weights", "none", "--limit", 6)
    assert changed.returncode == 2 and "other settings (images sha256)" in changed.stderr


def test_certificates_stand_in_the_report(work: Path) -> None:
    """`evaluate --certificates` shows them beside what attacks left, holds a build to them, and refuses those of other systems."""
    pytest.importorskip("foolbox")
    assert certify(work, "--out", "shown", "--noise-seed", 3, "--quiet").returncode == 0
    base = [
        "evaluate",
        "--data",
        "images",
        "--classifier",
        "mine:make",
        "--attacks",
        "fgsm",
        "--threat-models",
        "grey-box",
        "--epsilons",
        "8",
    ]

    def evaluate(defences: str, *more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "comdefend_cli", *base, "--defences", defences, "--certificates", "shown", *more]
        return subprocess.run(command, cwd=work, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300)

    done = evaluate("none comdefend-fast", "--fail-under", "certified:0.217=95")
    assert done.returncode == 4 and "certified at L2 radius 0.217 is 88.9 %" in done.stderr, done.stderr
    tables, page = (work / "evaluation" / "tables.md").read_text(), (work / "evaluation" / "report.html").read_text()
    assert "### Certified" in tables and "88.9" in tables.partition("### Certified")[2] and 'id="table-certified"' in page
    refused = evaluate("none", "--out", "other")
    assert refused.returncode == 2 and "other weights (comdefend-fast)" in refused.stderr.splitlines()[-1]
    (work / "shown" / "summary.json").write_text("[]")
    damaged = evaluate("none comdefend-fast", "--out", "other")
    assert damaged.returncode == 2 and "not a summary" in damaged.stderr
