"""The commands for the paper's tables and figures: its numbers are whole, and measured ones stand beside them."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import formats
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from comdefend_cli.classifiers.loading import ClassifierHeader, build, save_classifier
from comdefend_cli.classifiers.networks import ARCHITECTURES
from comdefend_cli.data.labelled import CLASSES
from comdefend_cli.errors import UsageError
from comdefend_cli.evaluate.attacks.catalogue import Attack
from comdefend_cli.evaluate.attacks.recipes import NAMES
from comdefend_cli.evaluate.cells import Cell
from comdefend_cli.network.registry import load_weights

FOLDER = Path(__file__).parent.parent.parent / "benchmarks" / "paper"


@pytest.fixture(autouse=True)
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands find the modules in their own folder, as they do when run as scripts."""
    monkeypatch.syspath_prepend(str(FOLDER))


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with two untrained classifiers of two convolutions; that of purified images names no weights."""

    def small(channels: int, classes: int) -> nn.Module:
        layers = [nn.Conv2d(channels, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, classes)]
        return nn.Sequential(*layers)

    monkeypatch.setitem(ARCHITECTURES, "tiny", small)
    folder = tmp_path / "classifiers"
    folder.mkdir()
    for seed, name in enumerate(("small-cifar10", "small-cifar10-purified")):
        torch.manual_seed(seed)
        header = ClassifierHeader("tiny", 3, CLASSES["cifar10"], (0.5,) * 3, (0.1,) * 3)
        save_classifier(folder / f"{name}.safetensors", build(header), header)
    return folder


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    formats.write(tmp_path / "data" / "cifar-10-batches-py", formats.cifar_files(6))
    return tmp_path / "data"


def rows_of(text: str) -> list[list[str]]:
    """The cells of the first table in Markdown."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_the_paper_is_whole() -> None:
    """Each row has a value for each bound of each column, from 0 to 100, and no method stands twice for a network and group."""
    published = module("published")
    assert [len(table.rows) for table in published.TABLES] == [8, 7, 3, 9, 3]
    for table in published.TABLES:
        for row in table.rows:
            assert len(row.values) == len(table.columns)
            for column, values in zip(table.columns, row.values, strict=True):
                assert len(values) == max(1, len(column.epsilons)), (table.number, row.defence, column.title)
                assert all(0 <= value <= 100 for value in values)
        names = [(row.network, row.group, row.defence) for row in table.rows]
        assert len(set(names)) == len(names)
        assert all(column.attack in ("", *NAMES) for column in table.columns)
    assert all(len(row) == len(published.PHIS) for row in published.TABLE4.values())
    assert len(published.TABLE4) == len(published.TABLE4_BY_LAMBDA) == 5


def test_the_averages_of_table_4_are_those_of_its_cells() -> None:
    """Its printed averages follow from its cells to 0.03, but that of phi = 30, as its doubts say: a digit typed wrong would show."""
    published = module("published")
    cells = list(published.TABLE4.values())
    for row, average in zip(cells, published.TABLE4_BY_LAMBDA, strict=True):
        assert sum(row) / len(row) == pytest.approx(average, abs=0.01)
    for phi, column, average in zip(published.PHIS, zip(*cells, strict=True), published.TABLE4_BY_PHI, strict=True):
        assert (sum(column) / len(column) == pytest.approx(average, abs=0.03)) is (phi != 30)


def test_looking_up_the_paper() -> None:
    """A value is found by attack and bound, clean ones without a bound too, and what the paper lacks is None."""
    published = module("published")
    (proposed,) = published.TABLE5.find("Proposed method", published.TEST)
    assert [published.TABLE5.value(proposed, "bim", epsilon) for epsilon in (2, 8, 16, 4)] == [78, 41, 34, None]
    ours = published.TABLE8.find("Our method")
    assert [row.network for row in ours] == ["IncResV2", "IncV3", "IncV4"]
    assert published.TABLE8.value(ours[0], "bim", 3.0) == 51 and published.TABLE8.value(ours[0], "bim", 8) is None
    assert published.TABLE8.value(ours[0], "", None) == 77
    assert published.TABLE9.value(published.TABLE9.rows[1], "fgsm", 12) == 50
    assert published.TABLE6.find("Normal", published.TRAINING) == published.TABLE6.find("Normal")


def test_cells_side_by_side() -> None:
    """A cell has the paper's number above the measured one with its interval; what was not measured has a number for its reason."""
    side = module("side_by_side")
    assert side.beside("41", side.interval(48, 500)) == "paper 41<br>measured 9.6 (7.3-12.5)"
    reasons = side.Reasons()
    said = [reasons.say(why) for why in ("no file", "left out", "no file")]
    assert said == ["not measured (1)", "not measured (2)", "not measured (1)"]
    assert reasons.text().endswith("1. no file\n2. left out")
    assert side.beside("", said[0], measured=False) == "not measured (1)"
    assert side.grid(["a|b"], [["c"]]) == "| a\\|b |\n| --- |\n| c |"
    with pytest.raises(ValueError, match="1 cells under 2 heads"):
        side.grid(["a", "b"], [["c"]])


def cell(attack: str, epsilon: float | None, correct: int) -> Cell:
    outcomes = (True,) * correct + (False,) * (500 - correct)
    return Cell("net", "none", "grey-box" if attack else "clean", attack, attack or "clean", "", epsilon, outcomes, 1.0)


def test_a_whole_table_as_markdown() -> None:
    """Every row has as many cells as the head; paper and measured numbers meet in the cell of their attack and bound, and nowhere else."""
    published, systems, measuring = module("published"), module("systems"), module("measuring")
    table = published.TABLE8
    absent = systems.Line(table.find("HGD"), "HGD", why="no --hgd was given")
    names = type("Names", (), {"classifier": type("C", (), {"name": "net"}), "defence": type("D", (), {"name": "none"})})
    there = systems.Line(table.find("Normal"), "net", names, note="a note")
    measured = measuring.Measured(("fgsm", "bim"))
    for attack, epsilon, correct in (("", None, 400), ("fgsm", 16.0, 50), ("bim", 3.0, 48)):
        measured.cells["net", "none", attack, epsilon] = cell(attack, epsilon, correct)
    text = measuring.markdown(table, table.columns, [there, absent], measured, ["about it.", ""])
    head, _, *rows = rows_of(text)
    assert head == ["in the paper", "here", "ε", "Clean", "FGSM", "IFGSM(3/5)", "MI-FGSM", "Deepfool", "C&W"]
    assert len(rows) == 4 and all(len(row) == len(head) for row in rows)
    assert rows[0][:5] == [
        "Normal, IncResV2 / IncV3 / IncV4",
        "net",
        "8",
        "paper 86 / 83 / 88<br>measured 80.0 (76.3-83.3)",
        "paper 34 / 20 / 28<br>not measured (1)",
    ]
    assert rows[0][5] == "paper 10 / 57 / 6<br>measured 9.6 (7.3-12.5)"
    assert rows[1][2:6] == [
        "16",
        "paper 86 / 83 / 88<br>measured 80.0 (76.3-83.3)",
        "paper 30 / 18 / 26<br>measured 10.0 (7.7-12.9)",
        "paper 5 / 49 / 1<br>not measured (1)",
    ]
    assert rows[2][3] == "paper 54 / 70 / 64<br>not measured (2)"
    assert "1. left out by --attacks\n2. no --hgd was given\n" in text
    assert "about it.\n" in text and "a note.\n" in text and table.doubts[0] in text


def test_attacks_left_out() -> None:
    """Some attacks can be chosen by their own names or the paper's, in the table's order; an unknown one is said."""
    measuring, published = module("measuring"), module("published")
    columns = published.TABLE8.columns
    assert measuring.chosen_attacks(columns, None) == ("fgsm", "bim", "mi-fgsm", "deepfool", "cw")
    assert measuring.chosen_attacks(columns, "cw, ifgsm") == ("bim", "cw")
    with pytest.raises(UsageError, match="unknown attack 'magic'"):
        measuring.chosen_attacks(columns, "magic")


def test_paths_in_names() -> None:
    """A spec is shown with its files' names alone."""
    short = module("systems").short
    assert short("pixeldefend:weights=/a/b c/cnn.safetensors,epsilon=16") == "pixeldefend:weights=cnn.safetensors,epsilon=16"
    assert short("runs/w.safetensors:noise=20") == "w.safetensors:noise=20" and short("jpeg:quality=75") == "jpeg:quality=75"


def test_weights_that_a_classifier_was_trained_behind(tiny: Path, tmp_path: Path, small_weights: Path) -> None:
    """Of several weights, a classifier meets those whose hash its file names; else the first, which a note says."""
    systems, options = module("systems"), module("options")
    parser = options.parser("")
    options.add_weights(parser)
    arguments = parser.parse_args(["--out", str(tmp_path), "--weights", "comdefend-12bit", str(small_weights)])
    shelf = systems.Shelf(arguments)
    classifier = shelf.classifier(str(tiny / "small-cifar10-purified.safetensors"))
    spec, note = shelf.fitting(classifier)
    assert spec == "comdefend-12bit" and "learnt from images that were not purified" in note
    classifier.record["purify"] = load_weights(str(small_weights)).sha256
    assert shelf.fitting(classifier) == (str(small_weights), "")


@pytest.mark.slow
def test_table_5_from_end_to_end(tiny: Path, cifar: Path, tmp_path: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Table 5 is measured where its files are and says of the rest how to make it; again, and in figure 4, nothing is attacked anew."""
    common = ["--data-dir", str(cifar), "--out", str(tmp_path / "out"), "--classifiers", str(tiny), "--weights", str(small_weights)]
    arguments: list[str] = [*common, "--limit", "4", "--attacks", "fgsm,bim,deepfool", "--device", "cpu", "--precision", "float32"]
    table5 = module("table5")
    table5.main([*arguments, "--note", "Made images"])
    text = (tmp_path / "out" / "table5.md").read_text()
    head, _, *rows = rows_of(text)
    assert (
        head[3:] == ["Clean", "FGSM", "BIM", "DeepFool"]
        and "Columns left out by --attacks: C&W." in text
        and all(len(row) == len(head) for row in rows)
    )
    lines = {(row[0], row[1]): row for row in rows if row[0]}
    squeezed = lines["Feature Squeezing (in test time), Resnet50", "small-cifar10 behind bits:depth=3"]
    assert re.fullmatch(r"paper 13<br>measured [\d.]+ \([\d.]+-[\d.]+\)", squeezed[5])
    absent = lines["Adversarial FGSM (in training time), Resnet50", "small-cifar10-fgsm"]
    assert absent[4].startswith("paper 88<br>not measured")
    assert f"--adversarial fgsm --out {tiny / 'small-cifar10-fgsm.safetensors'}" in text
    assert "n = 4 images of cifar10" in text and "Made images.\n" in text and "--arch resnet50" in text
    record = json.loads((tmp_path / "out" / "table5.json").read_text())
    measured = [entry for entry in record["cells"] if entry["measured"]]
    assert {entry["measured"]["n"] for entry in measured} == {4} and record["evaluations"][0]["versions"]["foolbox"]
    assert all((entry["measured"] is None) == bool(entry["why_not"]) for entry in record["cells"])

    def forbidden(*args: Any, **options: Any) -> Tensor:
        raise AssertionError("attacked again")

    monkeypatch.setattr(Attack, "run", forbidden)
    table5.main([*arguments, "--note", "Made images"])
    assert (tmp_path / "out" / "table5.md").read_text() == text
    module("figure4").main(arguments)
    with Image.open(tmp_path / "out" / "figure4.png") as image:
        assert image.width > 1000
    svg = (tmp_path / "out" / "figure4.svg").read_text()
    assert svg.startswith("<?xml") and "<svg" in svg
    assert len(rows_of((tmp_path / "out" / "figure4.md").read_text())) == 2 + 3 * 3


@pytest.mark.slow
def test_table_4_trains_each_cell_once(tiny: Path, cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell is trained, measured and put beside the paper's; the same command again trains nothing and finds the same."""
    table4, training = module("table4"), module("training")
    arguments = ["--data-dir", str(cifar), "--out", str(tmp_path / "out"), "--classifier", str(tiny / "small-cifar10.safetensors")]
    arguments += ["--lambdas", "0.0001", "--phis", "20", "--steps", "1", "--batch-size", "1", "--limit", "4", "--device", "cpu"]
    table4.main(arguments)
    text = (tmp_path / "out" / "table4.md").read_text()
    assert re.search(r"^\| λ = 0.0001 \| paper 91.82<br>measured [\d.]+ \([\d.]+-[\d.]+\), [\d.]+ dB \|$", text, re.MULTILINE)
    monkeypatch.setattr(training, "PurifierTrainer", None)
    table4.main(arguments)
    assert (tmp_path / "out" / "table4.md").read_text() == text
