"""Training of reference classifiers: it learns, resumes exactly, and attacks within bounds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import formats
import pytest
import torch
from torch import Tensor, nn

from comdefend_cli.classifiers.loading import load_classifier_file, save_classifier
from comdefend_cli.classifiers.networks import ARCHITECTURES, Whitening
from comdefend_cli.data.sources import Dataset, ImageArray
from comdefend_cli.errors import TrainingError, UsageError
from comdefend_cli.training.augmentation import add_noise, augment, purify_images
from comdefend_cli.training.classifier import ClassifierTrainer
from comdefend_cli.training.classifier_config import ClassifierConfig

CPU = torch.device("cpu")


def gratings(count: int, seed: int) -> ImageArray:
    """Noisy stripes, lying (0) or standing (1): two classes that a few steps tell apart."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    wave = (torch.arange(16) // 2 % 2).float() * 120 + 60
    lying = wave.view(1, 1, 16, 1).expand(1, 1, 16, 16)
    images = torch.where(labels.view(-1, 1, 1, 1) == 0, lying, lying.transpose(2, 3))
    noise = 25 * torch.randn((count, 1, 16, 16), generator=generator)
    return ImageArray((images + noise).clamp(0, 255).byte(), labels)


DATA = Dataset("gratings", gratings(64, 0), gratings(32, 1))


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """An architecture of two convolutions, so that a step takes a millisecond."""

    def build(channels: int, classes: int) -> nn.Module:
        layers = [nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))

    monkeypatch.setitem(ARCHITECTURES, "tiny", build)


def trainer(dataset: Dataset = DATA, **settings: Any) -> ClassifierTrainer:
    config = ClassifierConfig(**{"data": "gratings", "arch": "tiny", "epochs": 8.0, "batch_size": 16, **settings})
    return ClassifierTrainer(config, dataset, ("lying", "standing"), CPU)


def test_it_learns() -> None:
    """Two classes of stripes are told apart in a few steps, and the record says how."""
    run = trainer()
    reports = list(run.run())
    assert len(reports) == run.steps == 32
    assert reports[-1].measured is not None and reports[-1].measured > 90
    assert reports[-1].loss < reports[0].loss
    assert run.record()["steps"] == 32 and run.header.classes == ("lying", "standing")


def test_weight_decay_keeps_kernels_small() -> None:
    """Those after the first, which Muon moves, end the smaller the more of it there is."""
    sizes = []
    for decay in (0.0, 0.5, 5.0):
        run = trainer(weight_decay=decay)
        list(run.run())
        sizes.append(float([part for part in run.model.modules() if isinstance(part, nn.Conv2d)][1].weight.norm()))
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3


@pytest.mark.parametrize("settings", [{}, {"adversarial": "bim", "adversarial_steps": 2}, {"label_smoothing": 0.1}])
def test_resuming_changes_nothing(settings: dict[str, Any]) -> None:
    """A run that is put back half-way ends with the weights of an uninterrupted one, bit for bit."""
    whole = trainer(**settings)
    list(whole.run())
    half = trainer(**settings)
    for _ in range(7):
        half.step()
    resumed = trainer(**settings)
    resumed.load_state({name: tensor.clone() for name, tensor in half.state().items()}, 7)
    list(resumed.run())
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_a_run_goes_on_from_another_classifier(tmp_path: Path) -> None:
    """It begins with the weights, running statistics and normalization of the file, whatever its own images' are, and trains on."""
    first = trainer()
    list(first.run())
    save_classifier(tmp_path / "first.safetensors", first.model, first.header)
    start = load_classifier_file(tmp_path / "first.safetensors")
    brighter = Dataset("gratings", ImageArray(DATA.train.pixels // 2 + 100, DATA.train.labels), DATA.test)  # type: ignore[attr-defined]
    config = ClassifierConfig(data="gratings", arch="tiny", epochs=1.0, batch_size=16, init=start.sha256)
    second = ClassifierTrainer(config, brighter, ("lying", "standing"), CPU, start)
    assert second.measure() == first.measure() and second.header.mean == first.header.mean
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    before = second.model.state_dict()["body.0.weight"].clone()
    second.step()
    assert not torch.equal(before, second.model.state_dict()["body.0.weight"])
    with pytest.raises(UsageError, match="first: not a small for cifar10"):
        ClassifierTrainer(replace(config, data="cifar10", arch="small"), DATA, ("lying", "standing"), CPU, start)


def test_every_image_once_an_epoch() -> None:
    """An epoch shows each image once, in an order of its own, also where the batch does not divide."""
    run = trainer(batch_size=24)
    seen: list[int] = []
    plain = run._train.pixels.float().sum((1, 2, 3))
    for run.step_done in range(8):  # 192 images: three epochs.
        first = run.step_done * 24
        seen += [int(run._order((first + i) // 64)[(first + i) % 64]) for i in range(24)]
    epochs = [seen[i : i + 64] for i in range(0, 192, 64)]
    assert all(sorted(epoch) == list(range(64)) for epoch in epochs) and epochs[0] != epochs[1]
    assert len(plain) == 64


def test_augmentation_only_moves() -> None:
    """Each image comes back shifted by at most four pixels, and mirrored or not; the draw is the generator's alone."""
    x = torch.from_numpy(formats.cuts(6, 32)).permute(0, 3, 1, 2).float()
    moved = augment(x, torch.Generator().manual_seed(3))
    assert torch.equal(moved, augment(x, torch.Generator().manual_seed(3)))
    padded = nn.functional.pad(x, (4,) * 4, mode="reflect")
    for index, image in enumerate(moved):
        windows = [padded[index, :, top : top + 32, left : left + 32] for top in range(9) for left in range(9)]
        assert any(torch.equal(image, window) or torch.equal(image, window.flip(2)) for window in windows)


def test_a_square_is_hidden() -> None:
    """Each image keeps what augmentation alone makes of it, but for a square, cut off at most by the border, of one colour for all."""
    x = torch.from_numpy(formats.cuts(6, 32)).permute(0, 3, 1, 2).float()
    plain, cut = augment(x, torch.Generator().manual_seed(3)), augment(x, torch.Generator().manual_seed(3), cutout=8)
    changed = (plain != cut).any(1)
    color = plain.mean((0, 2, 3))
    places = set()
    for index, hidden in enumerate(changed):
        rows, columns = hidden.any(1).nonzero().flatten(), hidden.any(0).nonzero().flatten()
        assert 4 <= len(rows) <= 8 and 4 <= len(columns) <= 8
        square = cut[index, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert torch.equal(square, color.view(3, 1, 1).expand_as(square))
        places.add((int(rows[0]), int(columns[0])))
    assert len(places) > 3


def test_digits_are_not_mirrored() -> None:
    """Without mirroring the columns keep their order."""
    ramp = torch.arange(32.0).expand(4, 1, 32, 32)
    moved = augment(ramp, torch.Generator().manual_seed(0), mirror=False)
    assert bool((moved[..., 5:-4].diff(dim=3) > 0).all())


def test_purified_before_training() -> None:
    """All images go through the purifier once, in order, in batches."""

    class Halves(nn.Module):
        def purify(self, x: Tensor) -> Tensor:
            return x // 2

    pixels, counted = DATA.train.pixels, []  # type: ignore[attr-defined]
    assert torch.equal(purify_images(Halves(), pixels, counted.append, batch=24), pixels // 2)  # type: ignore[arg-type]
    assert counted == [24, 24, 16]


def test_noisy_images() -> None:
    """Noise of standard deviations spread from 0 to the most, the seed's alone, whatever the batch."""
    gray = torch.full((400, 1, 16, 16), 128, dtype=torch.uint8)
    found = add_noise(gray, 30.0, seed=1)
    assert (
        found.dtype == torch.uint8
        and torch.equal(found, add_noise(gray, 30.0, seed=1))
        and not torch.equal(found, add_noise(gray, 30.0, seed=2))
    )
    spread = (found.float() - 128).std((1, 2, 3))
    assert 27 < float(spread.max()) < 33 and float(spread.min()) < 3 and 13 < float(spread.mean()) < 17
    assert torch.equal(add_noise(gray, 0.0, seed=1), gray)


def test_whitened_from_the_training_images() -> None:
    """The first layer of medium comes from the images, as normalized; a start's replaces it."""
    run = trainer(arch="medium")
    layer = next(module for module in run.model.modules() if isinstance(module, Whitening))
    x = run._train.pixels.float().div(255)
    with torch.no_grad():
        values = layer(run.model.normalize(x)).movedim(1, 3).reshape(-1, 8)[:, :4]
    assert torch.allclose(values.T.cov(), torch.eye(4), atol=0.05)


def test_subnormals_are_zero_within_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the other trainings; a CPU computes them many times slower."""
    run, seen = trainer(), []
    losses = run.losses
    monkeypatch.setattr(run, "losses", lambda: (seen.append(float(torch.tensor(1e-39).mul(1))), losses())[1])
    run.step()
    assert seen == [0.0] and float(torch.tensor(1e-39).mul(1)) > 0


def test_collapse_is_an_error() -> None:
    """A loss that is not finite stops the run and says what to change."""
    run = trainer()
    with torch.no_grad():
        next(run.model.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match="collapsed at step 1: the loss is not finite; train again with a lower --lr"):
        run.step()


def test_labels_are_needed() -> None:
    """Images without labels cannot train a classifier."""
    bare = ImageArray(torch.zeros(8, 1, 16, 16, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))
    with pytest.raises(UsageError, match="no labels"):
        trainer(replace(DATA, train=bare))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arch": "vgg"}, "unknown architecture"),
        ({"adversarial": "cw"}, "use fgsm or bim"),
        ({"epochs": 0.0}, "epochs must be above 0"),
        ({"batch_size": 1}, "batch-size must be at least 2"),
        ({"seed": 2**32}, "seed"),
        ({"label_smoothing": 1.0}, "label-smoothing"),
        ({"weight_decay": -0.1}, "weight-decay must be from 0"),
        ({"weight_decay": 50.0}, "below 1 / lr"),
        ({"cutout": -1}, "cutout must be from 0"),
        ({"input_noise": 256.0}, "input-noise must be from 0 to 255"),
        ({"precision": "float16"}, "float32 and bfloat16"),
        ({"lr": float("nan")}, "lr must be above 0"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    """Settings out of range are said before anything is trained."""
    with pytest.raises(UsageError, match=message):
        ClassifierConfig(**settings)
