"""The benchmark of strong attackers: the copy that attacks are transferred from, and how what they leave is counted."""

from __future__ import annotations

import argparse
import importlib
import json
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from comdefend_cli.classifiers.loading import Classifier
from comdefend_cli.data.labelled import Labelled
from comdefend_cli.evaluate.defences.catalogue import make_defence
from comdefend_cli.evaluate.systems import System
from comdefend_cli.network.model import ComCNN, binarize


@pytest.fixture
def adaptive(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark, which finds those beside it as when run as a script."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent.parent / "benchmarks"))
    return importlib.import_module("adaptive")


def make_system(defence: str) -> System:
    """Three classes by the brightest channel, behind a defence."""
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return System(Classifier("brightest", "", head.eval()), make_defence(defence, device="cpu", precision="float32"))


def make_images() -> Labelled:
    """Six images, each a little brighter in the channel of its label."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(90, 110, (6, 3, 16, 16), generator=generator).to(torch.uint8)
    labels = torch.arange(6) % 3
    for row, label in enumerate(labels.tolist()):
        pixels[row, label] += 12 + 20 * (row >= 3)
    return Labelled("made", pixels, labels, ("r", "g", "b"))


@pytest.mark.parametrize("defence", ["comdefend-fast", "comdefend-12bit"])
def test_the_copy_has_relu_and_the_system_stays(adaptive: ModuleType, defence: str) -> None:
    """Another answer from the same weights, of networks of both families."""
    system, x = make_system(defence), make_images().floats()
    before = system.deploy()(x)
    copied = adaptive.copy_with_relu(system)
    assert copied is not None
    kinds = {type(module).__name__ for module in copied.defence.modules()}
    assert not kinds & {"ELU", "LeakyReLU", "Residual"} and kinds & {"ReLU", "ReluResidual"}
    assert not torch.equal(copied.deploy()(x), before) and torch.equal(system.deploy()(x), before)
    for (name, own), (_, other) in zip(system.defence.state_dict().items(), copied.defence.state_dict().items(), strict=True):
        assert torch.equal(own, other), name


@pytest.mark.parametrize("defence", ["comdefend-fast", "comdefend-12bit"])
def test_a_wider_slope_is_of_the_same_answers(adaptive: ModuleType, defence: str) -> None:
    """Bit for bit, of logits an eighth as large, for which the sigmoid's slope is one eight times as wide; none without networks."""
    system, x = make_system(defence), make_images().floats()
    wide = adaptive.widen(system)
    assert wide is not None and torch.equal(wide.deploy()(x), system.deploy()(x))
    at = torch.linspace(-40, 40, 81, requires_grad=True)
    before, after = (next(module for module in each.defence.modules() if isinstance(module, ComCNN)) for each in (system, wide))
    logits, smaller = before(x), after(x)
    assert torch.equal(logits / 8, smaller)
    slopes = [torch.autograd.grad(binarize(at / width, "soft").sum(), at)[0] for width in (1, 8)]
    assert float(slopes[1][60]) == pytest.approx(0.25 / 8 / math.cosh(20 / 16) ** 2, rel=1e-4) and float(slopes[0][60]) < 1e-8
    assert adaptive.widen(make_system("none")) is None


def test_what_attacks_leave(adaptive: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images stand a small epsilon and fall at a large one; a finished attack is not made again; the worst is image by image."""
    monkeypatch.setattr(adaptive, "PGD_STEPS", 5)
    monkeypatch.setattr(adaptive, "PGD_RESTARTS", 1)
    system, data = make_system("none"), make_images()
    names = ["pgd-straight-through", "transfer"]
    asked = argparse.Namespace(out=tmp_path, epsilons=[2.0, 10.0], attacks=names, batch=4, seed=0, standing=False)
    adaptive.measure(asked, [system], data)
    rows = {(row["attack"], row["epsilon"]): row["accuracy"] for row in adaptive.summarize(tmp_path)}
    assert rows["clean", 0] == rows["worst", 2] == 100 and rows["pgd-straight-through", 10] == rows["worst", 10] == 50
    kept = tmp_path / "transfer-10.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "held": [True, True, True, True, False, True]}))
    adaptive.measure(asked, [system], data)
    assert {(row["attack"], row["epsilon"]): row["accuracy"] for row in adaptive.summarize(tmp_path)}["worst", 10] == 33.3
    (tmp_path / "transfer-10.json").unlink()
    asked.standing = True
    adaptive.measure(asked, [system], data)
    late = next(row for row in adaptive.summarize(tmp_path) if (row["attack"], row["epsilon"]) == ("transfer", 10))
    assert late["after"] == ["pgd-straight-through"] and late["accuracy"] == 50
