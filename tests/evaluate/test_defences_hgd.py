"""HGD: the network, training by the guided loss on a classifier's adversarial images, weight files, the defence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import photo
from torch import Tensor, nn

from comdefend_cli.data.sources import Dataset, ImageArray
from comdefend_cli.errors import UsageError, WeightsError
from comdefend_cli.evaluate.defences import hgd
from comdefend_cli.evaluate.defences.catalogue import make_defence
from comdefend_cli.evaluate.defences.hgd import EPSILON, HGD, HGDArchitecture, HGDTrainer
from comdefend_cli.evaluate.defences.network_files import save_network
from comdefend_cli.evaluate.defences.pixelcnn import PixelCNN, PixelCNNArchitecture
from comdefend_cli.integrations import Defended
from comdefend_cli.training.classifier_config import BaselineConfig

CPU = torch.device("cpu")
NARROW = (8, 12)


def dataset() -> Dataset:
    """Crops of a photograph, 16x16: 48 to learn from, 16 to measure on."""
    pixels = torch.from_numpy(photo("astronaut.png")[:128, :128].copy()).permute(2, 0, 1)
    crops = pixels.reshape(3, 8, 16, 8, 16).permute(1, 3, 0, 2, 4).reshape(64, 3, 16, 16)
    none = torch.empty(0, dtype=torch.int64)
    return Dataset("crops", ImageArray(crops[:48], none), ImageArray(crops[48:], none))


def classifier() -> nn.Module:
    """A small network with random weights that sees all classes in the crops, so that small steps of the input turn it easily."""
    torch.manual_seed(0)
    last = nn.Linear(48, 5)
    model = nn.Sequential(nn.Conv2d(3, 12, 3), nn.GELU(), nn.Conv2d(12, 12, 3), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), last)
    with torch.no_grad():
        logits = model(dataset().test.pixels.float() / 255)
        last.bias.sub_(logits.mean(0))
        for parameter in last.parameters():
            parameter.mul_(5 / logits.std())
    return model.eval()


def trainer(steps: int, *, seed: int = 0, model: nn.Module | None = None, **options: Any) -> HGDTrainer:
    config = BaselineConfig("crops", steps=steps, batch_size=16, seed=seed, precision=options.pop("precision", "float32"))
    return HGDTrainer(config, dataset(), CPU, model or classifier(), architecture=HGDArchitecture(3, NARROW), **options)


@pytest.fixture(scope="module")
def trained() -> HGDTrainer:
    """A narrow network, trained for some steps."""
    made = trainer(80, classifier_record={"name": "tiny", "sha256": "0" * 64})
    made.reports = list(made.run(measure_every=40))  # type: ignore[attr-defined]
    return made


@pytest.fixture(scope="module")
def weight_file(trained: HGDTrainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of that network."""
    path = tmp_path_factory.mktemp("weights") / "h.safetensors"
    save_network(path, trained.kind, trained.model, trained.record())
    return path


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 3, 28, 28), (1, 3, 17, 23), (1, 3, 2, 2), (1, 3, 224, 40)])
def test_a_new_network_changes_nothing(shape: tuple[int, ...]) -> None:
    """Before training the noise it predicts is zero, at any size."""
    x = torch.rand(shape)
    assert torch.equal(HGD(HGDArchitecture(3, (4, 5, 6))).eval()(x), x)


def test_every_level_matters() -> None:
    """The result depends on all layers: each parameter gets a gradient, once the last layer is not zero."""
    torch.manual_seed(0)
    model = HGD(HGDArchitecture(1, (4, 5, 6)))
    nn.init.normal_(model.leave.weight)
    model(torch.rand(2, 1, 16, 16)).square().sum().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.parameters())


def test_the_result_is_a_image() -> None:
    """What the noise pushes out of [0, 1] is clipped."""
    model = HGD(HGDArchitecture(3, (4,))).eval()
    nn.init.constant_(model.leave.bias, 0.3)  # type: ignore[arg-type]
    x = torch.rand(1, 3, 8, 8)
    assert torch.allclose(model(x), (x + 0.3).clamp(max=1))


def test_the_loss_is_the_distance_of_logits() -> None:
    """Mean |f(denoised adversarial) - f(clean)|; the attack gets the clean images and the classifier's own predictions."""
    seen: list[tuple[Tensor, Tensor]] = []

    def attack(x: Tensor, y: Tensor) -> Tensor:
        seen.append((x.clone(), y.clone()))
        return (x + 0.1).clamp(0, 1)

    made = trainer(1, attack=attack)
    nn.init.normal_(made.model.leave.weight, std=0.1)
    made.model.eval()
    pixels = made.dataset.test.pixels[:5]
    loss = made.loss(pixels, torch.Generator().manual_seed(0))
    clean = pixels.float() / 255
    wanted = made.classifier(clean)
    got = made.classifier(made.model((clean + 0.1).clamp(0, 1)))
    assert float(loss.detach()) == pytest.approx(float((got - wanted).detach().abs().mean()), rel=1e-4)
    assert torch.allclose(seen[0][0], clean) and torch.equal(seen[0][1], wanted.argmax(1))
    assert made.record()["attacks"] == "given"


def test_its_own_attacks_stay_within_their_epsilon(monkeypatch: pytest.MonkeyPatch) -> None:
    """FGSM and BIM both come, every image by at most 16 levels of its own draw, and they do move the classifier."""
    made = trainer(1)
    calls: list[tuple[Tensor, int]] = []
    kept = hgd.signed_gradient

    def record(model: nn.Module, x: Tensor, y: Tensor, epsilon: Tensor, steps: int, autocast: Any) -> Tensor:
        calls.append((epsilon, steps))
        attacked = kept(model, x, y, epsilon, steps, autocast)
        assert float(((attacked - x).abs() - epsilon).max()) < 1e-6
        return attacked

    monkeypatch.setattr(hgd, "signed_gradient", record)
    for seed in range(12):
        made.loss(made.dataset.test.pixels, torch.Generator().manual_seed(seed))
    assert {steps for _, steps in calls} == {1, hgd.BIM_STEPS}
    levels = torch.cat([epsilon.flatten() for epsilon, _ in calls]) * 255
    assert set(levels.round().int().tolist()) == set(range(1, EPSILON + 1))


def test_training_learns_to_undo_attacks(trained: HGDTrainer) -> None:
    """On test images, more predictions are as if clean than without the network, and the guided loss falls."""
    reports: list[Any] = trained.reports  # type: ignore[attr-defined]
    before = trainer(1)
    assert [report.step for report in reports if report.measured is not None] == [40, 80]
    assert trained.measure(16) > before.measure(16)
    generator = torch.Generator
    losses = [float(made.loss(made.dataset.test.pixels, generator().manual_seed(1)).detach()) for made in (before, _evaluating(trained))]
    assert losses[1] < 0.5 * losses[0]


def _evaluating(made: HGDTrainer) -> HGDTrainer:
    made.model.eval()
    return made


def test_the_classifier_stays_as_it_is() -> None:
    """Neither values, running statistics nor gradients of the guide change, though its parameters could be trained."""
    model = nn.Sequential(nn.BatchNorm2d(3), classifier()).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    list(trainer(3, model=model).run())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_the_seed_decides_the_weights() -> None:
    """Initial weights, batches and attacks come from it alone."""
    first, again, other = (_weights(trainer(3, seed=seed)) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def _weights(made: HGDTrainer) -> dict[str, Tensor]:
    list(made.run())
    return made.model.state_dict()


def test_mixed_precision_trains_alike() -> None:
    """In bfloat16 the losses are near those in float32, and the weights stay float32."""
    runs = [trainer(4, precision=precision) for precision in ("float32", "bfloat16")]
    losses = [[report.loss for report in made.run()] for made in runs]
    assert losses[0] == pytest.approx(losses[1], rel=0.15) and losses[0] != losses[1]
    assert all(parameter.dtype == torch.float32 for parameter in runs[1].model.parameters())


def test_a_weight_file_gives_the_defence(weight_file: Path, trained: HGDTrainer) -> None:
    """It purifies as the trained network does, is differentiable itself, and names the classifier that it was trained with."""
    defence = make_defence(f"hgd:weights={weight_file}", device="cpu")
    x = trained.dataset.test.pixels.float() / 255
    trained.model.eval()
    assert torch.allclose(defence(x), trained.model(x), atol=1e-5)
    assert not torch.equal(defence(x), x)
    assert not defence.stochastic and defence.gradients == ("straight-through",)
    assert defence.settings["classifier"] == {"name": "tiny", "sha256": "0" * 64}
    assert json.loads(json.dumps(defence.settings)) == defence.settings and len(defence.settings["sha256"]) == 64
    probe = x[:2].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(Defended(defence, trained.classifier)(probe)[:, 0].sum(), probe)
    assert float(gradient.abs().amax((1, 2, 3)).min()) > 0
    with pytest.raises(UsageError, match="3 channels, the images have 1"):
        defence(x[:, :1])


def test_the_record_says_how_it_was_trained(weight_file: Path) -> None:
    """Settings, attacks, classifier and what was measured."""
    record = hgd.load(weight_file).training
    assert record["attacks"] == "fgsm and bim of 4 steps, epsilon 1 to 16"
    assert (record["steps"], record["batch_size"], record["test_images"], record["classifier"]["name"]) == (80, 16, 16, "tiny")
    assert 0 <= record["measured"] <= 100 and record["unit"].startswith("%")


@pytest.mark.parametrize("widths", [[], [0], [1000], ["8"], [1] * 7, 8, "88"])
def test_architectures_out_of_range_are_refused(widths: Any, tmp_path: Path) -> None:
    """A header that asks for something else than a network of a sensible size is an error on one line."""
    model = HGD(HGDArchitecture(3, (4,)))
    object.__setattr__(model.architecture, "widths", widths)
    save_network(tmp_path / "h.safetensors", "hgd", model, {})
    with pytest.raises(WeightsError, match="not a weight file for hgd") as caught:
        hgd.load(tmp_path / "h.safetensors")
    assert "\n" not in str(caught.value)


def test_a_pixelcnn_is_no_hgd(tmp_path: Path) -> None:
    """Files of the other kind are told apart."""
    save_network(tmp_path / "p.safetensors", "pixelcnn", PixelCNN(PixelCNNArchitecture(3, 4, 1, 1)), {})
    with pytest.raises(WeightsError, match="holds the weights of 'pixelcnn'"):
        make_defence(f"hgd:weights={tmp_path / 'p.safetensors'}")
