"""`comdefend evaluate` and `comdefend train-classifier` as a person runs them: real processes on files in the official format."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import formats
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from comdefend_cli.classifiers.loading import read_classifier_header
from comdefend_cli.cli import app

#: The commands with a classifier of two convolutions.
TINY = """
from torch import nn
from comdefend_cli.classifiers import networks
from comdefend_cli.cli import main
def tiny(channels, classes):
    layers = [nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))
networks.ARCHITECTURES["small"] = tiny
main()
"""
ENVIRONMENT = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", TINY, *map(str, arguments)]


def start(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(command(*arguments), cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def tiny(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with CIFAR-10's files, 40 images each, a trained classifier, and a module with one of the user's own."""
    folder = tmp_path_factory.mktemp("work")
    formats.write(folder / "data" / "cifar-10-batches-py", formats.cifar_files(40))
    done = tiny("train-classifier", "--data", "cifar10", "--epochs", 2, "--batch-size", 20, cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = (
        "import torch",
        "def make():",
        "    torch.manual_seed(0)",
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))",
    )
    (folder / "mine.py").write_text("\n".join(lines))
    return folder


def test_the_classifier_says_how_it_was_made(work: Path) -> None:
    """Its file lies at the default place with its settings and accuracy, and no checkpoint is left."""
    assert sorted(path.name for path in (work / "classifiers").iterdir()) == ["small-cifar10.safetensors"]
    again = tiny("train-classifier", "--data", "cifar10", cwd=work)
    assert again.returncode == 2 and "already exists; use --overwrite" in again.stderr
    done = tiny("train-classifier", "--data", "cifar10", "--resume", "--out", "other.safetensors", cwd=work)
    assert done.returncode == 1 and "no checkpoint to resume from" in done.stderr


@pytest.mark.slow
def test_an_interrupted_training_resumes(work: Path) -> None:
    """Ctrl-C leaves a checkpoint and exit code 130; --resume ends with the file of an uninterrupted run."""
    settings = ("train-classifier", "--data", "cifar10", "--epochs", 20, "--batch-size", 20, "--precision", "float32")
    process = start(*settings, "--out", "a.safetensors", "--checkpoint-every", 5, cwd=work)
    deadline = time.monotonic() + 120
    while not (work / "a.checkpoint").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and "--resume goes on" in said and not (work / "a.safetensors").exists()
    refused = tiny(*settings, "--out", "a.safetensors", cwd=work)
    assert refused.returncode == 2 and "checkpoint of an unfinished run" in refused.stderr
    done = tiny(*settings, "--out", "a.safetensors", "--resume", cwd=work)
    assert done.returncode == 0 and "going on after step" in done.stderr
    whole = tiny(*settings, "--out", "b.safetensors", cwd=work)
    assert whole.returncode == 0
    assert (work / "a.safetensors").read_bytes() == (work / "b.safetensors").read_bytes()


@pytest.mark.slow
def test_purified_training(work: Path, small_weights: Path) -> None:
    """--purify trains on purified images, and the header names the weights."""
    done = tiny("train-classifier", "--data", "cifar10", "--epochs", 1, "--purify", small_weights, "--out", "p.safetensors", cwd=work)
    assert done.returncode == 0, done.stderr
    header = read_classifier_header((work / "p.safetensors").read_bytes(), work / "p.safetensors")
    assert header.training["purify"] == hashlib.sha256(small_weights.read_bytes()).hexdigest()
    assert header.training["test_images"] == 40
    smoothed = ("--sigma", 0.25, "--consistency", 5, "--out", "s.safetensors")
    done = tiny("train-classifier", "--data", "cifar10", "--epochs", 1, "--purify", small_weights, *smoothed, cwd=work)
    assert done.returncode == 0 and "% of noisy test images right" in done.stderr, done.stderr
    header = read_classifier_header((work / "s.safetensors").read_bytes(), work / "s.safetensors")
    assert (header.training["sigma"], header.training["consistency"], header.training["draws"]) == (0.25, 5.0, 2)


@pytest.mark.slow
def test_training_on_noisy_images_too(work: Path, small_weights: Path) -> None:
    """--input-noise doubles the training images, not the test's, before they are purified; the header names it."""
    settings = ("--epochs", 1, "--purify", small_weights, "--input-noise", 16, "--out", "n.safetensors")
    done = tiny("train-classifier", "--data", "cifar10", *settings, cwd=work)
    assert done.returncode == 0, done.stderr
    training = read_classifier_header((work / "n.safetensors").read_bytes(), work / "n.safetensors").training
    assert (training["input_noise"], training["train_images"], training["test_images"]) == (16.0, 400, 40)


def test_help_names_the_extra() -> None:
    """The brackets of the extra are not taken for markup."""
    done = subprocess.run(command("evaluate", "--help"), env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert "pip install 'comdefend-cli[evaluate]'" in done.stdout


@pytest.mark.slow
def test_the_whole_comparison(work: Path, small_weights: Path) -> None:
    """Tables, results.json with n and intervals, report.html and charts, images that purify-dir takes; and a rerun from the cache."""
    arguments = (
        *("evaluate", "--data", "cifar10", "--classifier", "small", "--defences", f"none {small_weights} bits:depth=3", "--limit", 12),
        *(
            "--attacks",
            "fgsm,bim,pgd,square",
            "--limit-adaptive",
            4,
            "--limit-black-box",
            3,
            "--queries",
            20,
            "--steps",
            3,
            "--epsilons",
            "2,8",
        ),
    )
    done = tiny(*arguments, "--save-adversarial", "attacked", cwd=work)
    assert done.returncode == 0, done.stderr
    assert "grey-box" in done.stdout and "adaptive" in done.stdout
    results = json.loads((work / "evaluation" / "results.json").read_text())
    cells = results["cells"]
    assert {cell["threat"] for cell in cells} == {"clean", "grey-box", "adaptive", "black-box"}
    assert {cell["n"] for cell in cells if cell["threat"] == "adaptive"} == {4}
    assert all(cell["low"] <= cell["accuracy"] <= cell["high"] for cell in cells)
    assert results["seed"] == 0 and results["versions"]["foolbox"] and results["command"].startswith("comdefend evaluate")
    page = (work / "evaluation" / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "bits:depth=3" in page
    assert (work / "evaluation" / "tables.md").read_text().count("|") > 50
    assert {path.suffix for path in (work / "evaluation" / "charts").iterdir()} == {".png", ".svg"}

    purified = tiny("purify-dir", "attacked", "--recursive", "--weights", small_weights, "--out", "cleaned", cwd=work)
    assert purified.returncode == 0, purified.stderr
    images = sorted((work / "cleaned").rglob("*.png"))
    assert len(images) == 12 * 3 * 2 and Image.open(images[0]).size == (32, 32)

    refused = tiny(*(word if word != 12 else 13 for word in arguments), cwd=work)
    assert refused.returncode == 2 and "results.json: is of another data; use --overwrite" in refused.stderr
    began = time.perf_counter()
    again = tiny(*arguments, "--json", "--quiet", cwd=work)
    assert again.returncode == 0, again.stderr
    same = json.loads(again.stdout)
    assert [cell["outcomes"] for cell in same["cells"]] == [cell["outcomes"] for cell in cells]
    assert [cell["seconds"] for cell in same["cells"]] == [cell["seconds"] for cell in cells], time.perf_counter() - began


def test_the_same_command_goes_on_and_another_one_does_not(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of the same settings are measured no second time; of others, the line says which; a classifier's own errors come first."""
    monkeypatch.chdir(work)

    def evaluate(*changes: str) -> Any:
        given = ["evaluate", "--data", "cifar10", "--classifier", "mine:make", "--defences", "none", "--threat-models", "grey-box"]
        return CliRunner().invoke(app, [*given, "--attacks", "fgsm", "--limit", "4", "--out", "again", "--device", "cpu", *changes])

    assert evaluate().exit_code == 0
    first = json.loads((work / "again" / "results.json").read_text())
    again = evaluate()
    assert again.exit_code == 0 and "holds results of the same settings" in again.stderr
    same = json.loads((work / "again" / "results.json").read_text())
    assert [cell["seconds"] for cell in same["cells"]] == [cell["seconds"] for cell in first["cells"]]
    for changes, words in (
        (("--epsilons", "4/255"), "is of another protocol (epsilons)"),
        (("--defences", "none bits"), "is of another choice of classifiers or defences"),
        (("--classifier", "nothing"), "nothing: no such classifier"),
    ):
        refused = evaluate(*changes)
        assert refused.exit_code == 2 and words in refused.stderr
    assert json.loads((work / "again" / "results.json").read_text()) == same
    (work / "again" / "results.json").write_text("[]")
    assert "is not of comdefend evaluate; use --overwrite" in evaluate().stderr
    assert evaluate("--epsilons", "4/255", "--overwrite").exit_code == 0


def test_it_can_end_a_build(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below a floor: exit code 4 and a line that says by how much, with the results written; a floor of what is not measured is refused."""
    monkeypatch.chdir(work)

    def evaluate(floors: str) -> Any:
        given = ["evaluate", "--data", "cifar10", "--classifier", "mine:make", "--defences", "none bits", "--threat-models", "grey-box"]
        more = ["--attacks", "fgsm", "--epsilons", "8", "--limit", "4", "--out", "gate", "--device", "cpu", "--fail-under", floors]
        return CliRunner().invoke(app, [*given, *more])

    missed = evaluate("grey-box:8/255=100")
    assert missed.exit_code == 4 and "behind bits:depth=3: grey-box at 8/255 is " in missed.stderr and "below 100 %" in missed.stderr
    assert "error: mine:make behind none" not in missed.stderr and (work / "gate" / "results.json").is_file()
    assert evaluate("clean=0,grey-box:8=0").exit_code == 0
    assert evaluate("adaptive:8=1").exit_code == 2 and evaluate("grey-box=1").exit_code == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(work: Path) -> None:
    """Where standard output takes nothing, results as JSON and as tables, help and version end with exit code 1 and a line."""
    arguments = ("evaluate", "--data", "cifar10", "--classifier", "small", "--defences", "none", "--attacks", "fgsm")
    arguments += ("--threat-models", "grey-box", "--limit", "4", "--out", "full", "--device", "cpu", "--overwrite")
    for options in ((*arguments, "--json"), arguments, ("--version",), ("evaluate", "--help")):
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(command(*options), cwd=work, env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        said = done.stderr.splitlines()
        assert done.returncode == 1 and said[-1].startswith("error: standard output: cannot write: no space left"), done.stderr
        assert "Traceback" not in done.stderr and (work / "full" / "results.json").exists()


@pytest.mark.slow
def test_own_classifier_on_a_folder(work: Path) -> None:
    """A user's module:function, on a folder with labels.csv; sub-folders alone are refused, as it has other classes."""
    for index, crop in enumerate(formats.cuts(6, 32)):
        path = work / "labelled" / ("cup", "face")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(crop)).save(path)
    command = ("evaluate", "--data", "labelled", "--classifier", "mine:make", "--defences", "none;jpeg", "--attacks", "fgsm")
    refused = tiny(*command, "--threat-models", "grey-box", "--out", "own", cwd=work)
    assert refused.returncode == 2 and "has 2 sub-folders, numbered from 0 by name, and mine:make answers with 10" in refused.stderr
    names = sorted(work.glob("labelled/*/*.png"))
    rows = [f"{path.parent.name}/{path.name},{int(path.parent.name == 'face')},{path.parent.name}\n" for path in names]
    (work / "labelled" / "labels.csv").write_text("".join(rows))
    done = tiny(*command, "--threat-models", "grey-box", "--out", "own", cwd=work)
    assert done.returncode == 0, done.stderr
    results = json.loads((work / "own" / "results.json").read_text())
    assert results["data"] == results["data"] | {"name": "labelled", "n": 6, "classes": ["cup", "face"]}
    assert {system["defence"] for system in results["systems"]} == {"none", "jpeg:quality=75"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--classifier", "nothing"), "nothing: no such classifier"),
        (("--classifier", "mine:make", "--attacks", "magic"), "unknown attack 'magic'"),
        (("--classifier", "mine:make", "--attacks", "AutoAttack,magic"), "AutoAttack stands for apgd-fmn-square here"),
        (("--classifier", "mine:make", "--epsilons", "eight"), "--epsilons takes numbers"),
        (("--classifier", "mine:make", "--threat-models", "white"), "unknown threat model"),
        (("--classifier", "mine:make", "--defences", "magic"), "magic"),
        (("--classifier", "mine:make", "--classifier", "mine:make"), "two classifiers are called"),
        (("--classifier", "mine:make", "--save-adversarial", "data"), "is there and not empty"),
    ],
)
def test_wrong_usage(work: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str) -> None:
    """What cannot be done is said on one line with exit code 2, before anything is attacked or written."""
    monkeypatch.chdir(work)
    done = CliRunner().invoke(app, ["evaluate", "--data", "cifar10", "--out", "wrong", *options])
    assert done.exit_code == 2 and message in done.stderr and isinstance(done.exception, SystemExit)
    assert not (work / "wrong" / "results.json").exists()


def test_nothing_is_downloaded_unasked(work: Path) -> None:
    """With --no-download, absent files are an error of one line that names them, for evaluating and for training."""
    for out, *arguments in (("e", "evaluate", "--classifier", "small"), ("t.safetensors", "train-classifier")):
        done = tiny(*arguments, "--data", "mnist", "--data-dir", "nowhere", "--out", out, "--no-download", cwd=work)
        assert done.returncode == 1, done.stderr
        assert "nowhere" in done.stderr and "Traceback" not in done.stderr
        assert not (work / "nowhere").exists() and not (work / "t.safetensors").exists() and not (work / "e" / "results.json").exists()


def test_without_the_extra(work: Path) -> None:
    """Where foolbox is not installed, one line says how to get it."""
    hidden = "import sys; sys.modules['foolbox'] = None\n"
    arguments = ["evaluate", "--data", "cifar10", "--classifier", "mine:make"]
    done = subprocess.run(
        [sys.executable, "-c", hidden + TINY, *arguments], cwd=work, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "pip install 'comdefend-cli[evaluate]'" in done.stderr and "Traceback" not in done.stderr
