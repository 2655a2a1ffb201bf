"""Attacks find what they say, within their ball, alike in both libraries, and leave everything else as it was."""

from __future__ import annotations

import json
import math
import random
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comdefend_cli.errors import UsageError

pytest.importorskip("foolbox")
pytest.importorskip("art")

from comdefend_cli.evaluate.attacks import with_art
from comdefend_cli.evaluate.attacks.catalogue import Attack, find_versions, make_attack
from comdefend_cli.evaluate.attacks.recipes import NAMES
from comdefend_cli.evaluate.attacks.victim import Expectation, Guarded, Victim, Worst, clip_to_ball, gradient_is_zero

EPSILON = 14 / 255
#: So little work that every attack runs in a moment.
QUICK: dict[str, dict[str, Any]] = {
    "pgd": {"steps": 4, "restarts": 2},
    "deepfool": {"steps": 10},
    "cw": {"search_steps": 2, "steps": 15},
    "apgd-fmn-square": {"steps": 8, "targets": 2, "fmn_steps": 8, "queries": 30},
    "apgd-rand": {"steps": 8},
    "square": {"queries": 60},
}


def quick(name: str) -> Attack:
    return make_attack(name, **QUICK.get(name, {}))


def gratings(n: int, seed: int, channels: int = 3, height: int = 16, width: int = 16) -> tuple[Tensor, Tensor]:
    """Faint waves in one of four directions, at a random phase, under noise, and which direction."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (n,), generator=generator)
    angle, phase = labels[:, None, None] * math.pi / 4, 2 * math.pi * torch.rand(n, 1, 1, generator=generator)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    waves = torch.sin(math.pi / 3 * (angle.cos() * columns + angle.sin() * rows) + phase)
    noise = 0.08 * torch.randn(n, channels, height, width, generator=generator)
    return (0.5 + 0.1 * waves[:, None] + noise).clamp(0, 1), labels


class Shifted(nn.Module):
    """Moves images to have a mean of 0, as classifiers do."""

    def forward(self, x: Tensor) -> Tensor:
        return x - 0.5


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    """A small convolutional network that tells all gratings apart."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = nn.Sequential(
            Shifted(),
            nn.Conv2d(3, 12, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(12, 24, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(96, 4),
        )
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for step in range(60):
            x, y = gratings(48, step)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images(classifier: nn.Module) -> tuple[Tensor, Tensor]:
    """Forty images that the classifier gets right."""
    x, y = gratings(60, 999)
    right = classifier(x).argmax(1) == y
    assert right.sum() >= 50
    return x[right][:40], y[right][:40]


class Linear(nn.Module):
    """Two classes with known weights: logits (0, w . x + b)."""

    def __init__(self, weights: Tensor, bias: float) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        score = (x * self.weights).flatten(1).sum(1) + self.bias
        return torch.stack([torch.zeros_like(score), score], 1)


def linear_problem() -> tuple[Linear, Tensor, Tensor]:
    """A linear model, images away from 0 and 1, and their labels by it."""
    generator = torch.Generator().manual_seed(3)
    model = Linear(torch.randn(1, 5, 6, generator=generator), 0.1)
    x = 0.35 + 0.3 * torch.rand(7, 1, 5, 6, generator=generator)
    return model, x, model(x).argmax(1)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def through_art(model: nn.Module, x: Tensor) -> Any:
    """The model in ART's own wrapper."""
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), model(x[:1]).shape[1], clip_values=(0.0, 1.0), device_type="cpu"
    )


# What every attack keeps to.


@pytest.mark.parametrize("name", NAMES)
def test_within_the_ball(name: str, classifier: nn.Module, images: tuple[Tensor, Tensor], capfd: pytest.CaptureFixture[str]) -> None:
    """Results are float32 in [0, 1] and within epsilon, the last batch may be partial, nothing is printed and nothing warned."""
    x, y = images[0][:9].clone(), images[1][:9]
    x[:, :, :3], x[:, :, 3:5] = 0.0, 1.0  # Where a step leaves [0, 1].
    given, done = x.clone(), []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = quick(name).run(classifier, x, y, EPSILON, seed=1, batch=4, progress=done.append)
    assert found.shape == x.shape and found.dtype == torch.float32
    assert found.min() >= 0 and found.max() <= 1
    assert (found - x).abs().max() <= EPSILON + 1e-6
    assert torch.equal(x, given)
    assert done == [4, 4, 1]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", NAMES)
def test_breaks_more_the_further_it_may_go(name: str, classifier: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """Accuracy falls from epsilon 2 levels to 30, and at 30 the classifier is mostly wrong."""
    x, y = images[0][:16], images[1][:16]
    near, far = (accuracy(classifier, quick(name).run(classifier, x, y, levels / 255, seed=0), y) for levels in (2, 30))
    assert far < 0.5 < near


@pytest.mark.parametrize("name", NAMES)
def test_repeatable_and_leaves_no_trace(name: str, classifier: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """The same seed gives the same images, whatever the global generators hold, and they go on as if nothing had happened."""
    x, y = images[0][:6], images[1][:6]
    results = []
    for state in (10, 20):
        torch.manual_seed(state)
        np.random.seed(state)
        random.seed(state)
        expected = torch.rand(3), np.random.rand(), random.random()
        torch.manual_seed(state)
        np.random.seed(state)
        random.seed(state)
        results.append(quick(name).run(classifier, x, y, EPSILON, seed=5))
        assert torch.equal(torch.rand(3), expected[0])
        assert (np.random.rand(), random.random()) == expected[1:]
    assert torch.equal(*results)


@pytest.mark.parametrize("name", ["pgd", "apgd-rand", "square"])
def test_seed_matters(name: str, classifier: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """Another seed gives other images where starts or squares are random."""
    x, y = images[0][:4], images[1][:4]
    one, two = (quick(name).run(classifier, x, y, 4 / 255, seed=seed) for seed in (1, 2**40))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 4, 9), (3, 7, 5)])
def test_any_shape_and_two_classes(name: str, shape: tuple[int, int, int]) -> None:
    """Grey and colour images of any size go through every attack, with as few classes as there can be."""
    generator = torch.Generator().manual_seed(0)
    model = Linear(torch.randn(shape, generator=generator), 0.0)
    x = torch.rand(3, *shape, generator=generator)
    model.bias = -float((x * model.weights.detach()).flatten(1).sum(1).median())
    y = model(x).argmax(1)
    found = quick(name).run(model, x, y, 0.2, seed=0)
    assert found.shape == x.shape and found.isfinite().all()
    assert accuracy(model, found, y) < 1


class Masked(nn.Module):
    """Hides its gradient on images whose first pixel is bright, in one of several ways."""

    def __init__(self, model: nn.Module, how: str) -> None:
        super().__init__()
        self.model = model
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        hidden = x[:, :1, :1, :1] > 0.6
        if self.how == "rounded":
            x = torch.where(hidden, (x * 15).round() / 15, x)
        elif self.how == "detached":
            return self.model(x.detach())
        elif self.how == "infinite":
            zero = torch.where(hidden, x - x, torch.ones_like(x))
            x = x + zero.sqrt() - zero.detach().sqrt()
        return self.model(x)


@pytest.mark.parametrize(("how", "share"), [("open", 0.0), ("rounded", 0.5), ("infinite", 0.5), ("detached", 1.0)])
def test_share_of_zero_gradients(how: str, share: float, classifier: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """The share of images without a gradient is counted exactly, over partial batches, also under no_grad."""
    x, y = images[0][:10].clone(), images[1][:10]
    x[:5, :, :1, :1], x[5:, :, :1, :1] = 0.9, 0.2
    with torch.no_grad():
        assert gradient_is_zero(Masked(classifier, how), x, y, batch=4) == share
        assert gradient_is_zero(Expectation(Masked(classifier, how), 3), x, y) == share


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["infinite", "detached"])
def test_survives_broken_gradients(name: str, how: str, classifier: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """Gradients that are infinite or absent end no attack, and no NaN comes out."""
    x, y = images[0][:4].clone(), images[1][:4]
    x[:2, :, :1, :1], x[2:, :, :1, :1] = 0.9, 0.2
    found = quick(name).run(Masked(classifier, how), x, y, EPSILON, seed=0)
    assert found.isfinite().all() and (found - x).abs().max() <= EPSILON + 1e-6


def test_model_comes_back_as_it_was(classifier: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """Training mode, gradients wanted and gradients held are kept, after success and after failure; attacks see evaluation mode."""
    model = nn.Sequential(classifier[1:4], nn.Dropout(0.9), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 4)).train()
    model[0].eval()
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    assert True in wanted and False in wanted
    x, y = images[0][:3], images[1][:3]
    # With dropout at work two runs would differ.
    assert torch.equal(*(make_attack("bim").run(model, x, y, EPSILON, seed=seed) for seed in (0, 1)))
    with pytest.raises(RuntimeError):
        make_attack("fgsm").run(model, x[:, :1], y, EPSILON, seed=0)
    assert model.training and model[1].training and not model[0].training
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["fgsm", "deepfool", "apgd-rand", "square"])
def test_works_without_gradients_around(name: str, classifier: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """A caller in inference mode gets the same images."""
    x, y = images[0][:4], images[1][:4]
    expected = quick(name).run(classifier, x, y, EPSILON, seed=0)
    with torch.inference_mode():
        assert torch.equal(quick(name).run(classifier, x.clone(), y.clone(), EPSILON, seed=0), expected)


@pytest.mark.parametrize("name", ["fgsm", "square"])
def test_nothing_to_do(name: str, classifier: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """An epsilon of 0 gives the images back, and no images give none."""
    x, y = images
    assert torch.equal(quick(name).run(classifier, x, y, 0.0, seed=0), x)
    assert quick(name).run(classifier, x[:0], y[:0], 0.1, seed=0).shape == (0, 3, 16, 16)


def test_refuses_nonsense(classifier: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """Images out of range, labels of the wrong kind and answers that are no logits are errors at once."""
    x, y = images[0][:2], images[1][:2]
    attack = make_attack("fgsm")
    for arguments in [(x * 255, y, 0.1), (x[0], y, 0.1), (x, y[:1], 0.1), (x, y.float(), 0.1), (x, y, 8.0), (x * torch.nan, y, 0.1)]:
        with pytest.raises(ValueError):
            attack.run(classifier, *arguments, seed=0)
    with pytest.raises(ValueError, match="logits"):
        attack.run(classifier[:3], x, y, 0.1, seed=0)


# What each attack finds.


def test_fgsm_on_a_linear_model_is_its_closed_form() -> None:
    """FGSM moves every pixel by epsilon along the sign of the weights, against the true class."""
    model, x, y = linear_problem()
    expected = x + 0.1 * model.weights.sign() * (1 - 2 * y).view(-1, 1, 1, 1)
    torch.testing.assert_close(make_attack("fgsm").run(model, x, y, 0.1, seed=0), expected.detach(), rtol=0, atol=1e-6)


def test_deepfool_on_a_linear_model_is_its_closed_form() -> None:
    """DeepFool finds the L-infinity distance to the border, |z_1 - z_0| / |w|_1, to its overshoot of 2 %."""
    model, x, y = linear_problem()
    found = make_attack("deepfool").run(model, x, y, 1.0, seed=0)
    distance = (model(x)[:, 1].abs() / model.weights.abs().sum()).detach()
    torch.testing.assert_close((found - x).abs().flatten(1).amax(1), 1.02 * (distance + 1e-4), rtol=1e-3, atol=0)
    assert accuracy(model, found, y) == 0


def test_cw_on_a_linear_model_is_its_closed_form() -> None:
    """C&W finds the Euclidean distance to the border, |z_1 - z_0| / |w|_2, to a few percent."""
    model, x, y = linear_problem()
    found = make_attack("cw", search_steps=9, steps=100).run(model, x, y, 1.0, seed=0)
    distance = (model(x)[:, 1].abs() / model.weights.norm()).detach()
    assert accuracy(model, found, y) == 0
    torch.testing.assert_close((found - x).flatten(1).norm(dim=1), distance, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("name", ["deepfool", "cw"])
def test_minimum_norm_attacks_are_clipped(name: str, classifier: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """DeepFool and C&W at any epsilon are their find for epsilon 1, clipped to the ball."""
    x, y = images[0][:6], images[1][:6]
    assert quick(name).minimum_norm
    whole = quick(name).run(classifier, x, y, 1.0, seed=0)
    assert torch.equal(quick(name).run(classifier, x, y, 5 / 255, seed=0), clip_to_ball(whole, x, 5 / 255))
    assert (whole - x).abs().max() > 5 / 255


def test_cw_that_fails_returns_its_best_try(classifier: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """Where C&W finds nothing its lowest margin comes back, where foolbox has a black image."""
    x, y = images[0][:5], images[1][:5]
    found = make_attack("cw", search_steps=1, steps=3).run(classifier, x, y, 1.0, seed=0)
    assert accuracy(classifier, found, y) == 1
    confidence = [F.cross_entropy(classifier(shown), y, reduction="none") for shown in (found, x)]
    assert (confidence[0] > confidence[1]).all()
    assert (found - x).abs().max() < 0.1


def test_restarts_keep_what_the_first_found(classifier: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """Images that PGD's first start broke stay; the rest comes back no more right than before."""
    x, y = images
    one, four = (make_attack("pgd", steps=3, restarts=n).run(classifier, x, y, EPSILON, seed=0) for n in (1, 4))
    broken = classifier(one).argmax(1) != y
    assert 0 < broken.sum() < len(x)
    assert torch.equal(one[broken], four[broken])
    assert not torch.equal(one[~broken], four[~broken])
    own = F.one_hot(y, 4).bool()
    margins = [(z[own] - z.masked_fill(own, -torch.inf).amax(1))[~broken] for z in (classifier(one), classifier(four))]
    assert (margins[1] <= margins[0]).all()


def test_square_asks_once_a_try(classifier: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """Square asks about an image once a try, and no more once it is misclassified, or was from the start."""
    asked: list[Tensor] = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert not x.requires_grad
            asked.append(x.clone())
            return classifier(x)

    x, y = images[0][:6], images[1][:6].clone()
    y[0] = (y[0] + 1) % 4
    found = make_attack("square", queries=50).run(Counting(), x, y, 4 / 255, seed=0)
    assert torch.equal(found[0], x[0])
    assert accuracy(classifier, found[1:], y[1:]) == 1
    # Apart from the tries: all images before, one to count classes, those not broken clean and with stripes, and after.
    assert sum(map(len, asked)) <= 6 + 1 + 5 + 5 + 5 * 50 + 5
    assert not any(torch.equal(image, x[0]) for shown in asked[2:] for image in shown)
    asked.clear()
    make_attack("square", queries=50).run(Counting(), x[1:], y[1:], 60 / 255, seed=0)
    assert sum(map(len, asked)) < 5 * 30


def test_apgd_counts_every_iterate(classifier: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """A misclassified image that APGD only passes through is what comes back."""
    x, y = images[0][:3], images[1][:3]
    seen: list[Tensor] = []

    class Window(nn.Module):
        """Mistakes one class for the next only where the fourth question lies."""

        def forward(self, x: Tensor) -> Tensor:
            logits = classifier(x)
            if torch.is_grad_enabled():
                seen.append(x.detach().clone())
            passing = len(seen) > 3 and torch.equal(x, seen[3])
            return logits.roll(1, 1) if passing else logits

    def blind(logits: Tensor, rows: Tensor) -> Tensor:
        """A loss that does not tell classes apart, so that APGD goes on."""
        return -logits.square().sum(1)

    worst = Worst(x, y)
    with_art.apgd({"restarts": 1, "steps": 10}, Victim.of(Window()), x, worst, 2 / 255, blind)
    assert len(seen) > 6 and not torch.equal(seen[-1], seen[3])
    assert worst.wrong.all() and torch.equal(worst.images, seen[3])


def test_each_target_reaches_the_loss(classifier: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """ART hands the loss each image's true class and target, also where images before were broken and dropped."""
    x, y = images[0][:6], images[1][:6]
    targets, asked = (y + torch.arange(6) % 3 + 1) % 4, []

    def loss(logits: Tensor, rows: Tensor) -> Tensor:
        asked.append(rows)
        return with_art.targeted_dlr(logits, rows)

    worst = Worst(x, y)
    worst.wrong[1:3] = True
    with_art.apgd({"restarts": 1, "steps": 3}, Victim.of(classifier), x, worst, 1 / 255, loss, targets)
    expected = (F.one_hot(y, 4) + 0.5 * F.one_hot(targets, 4))[[0, 3, 4, 5]]
    assert len(asked) > 2 and all(torch.equal(rows, expected) for rows in asked)
    assert torch.equal(worst.images[1:3], x[1:3])


def test_dlr_losses_are_the_papers() -> None:
    """DLR and targeted DLR equal equations 6 and 7 of Croce and Hein on logits worked by hand."""
    logits = torch.tensor([[5.0, 1.0, 3.0, 2.0]])
    rows = torch.tensor([[1.0, 0.0, 0.0, 0.5]])
    torch.testing.assert_close(with_art.dlr(logits, rows), torch.tensor([-(5.0 - 3.0) / (5.0 - 2.0)]))
    torch.testing.assert_close(with_art.targeted_dlr(logits, rows), torch.tensor([-(5.0 - 2.0) / (5.0 - (2.0 + 1.0) / 2)]))
    missed = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    torch.testing.assert_close(with_art.dlr(logits, missed), torch.tensor([-(3.0 - 5.0) / (5.0 - 2.0)]))


# The same attack in both libraries.


def test_fgsm_is_the_same_in_art(classifier: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """FGSM by foolbox and by ART agrees pixel by pixel."""
    from art.attacks.evasion import FastGradientMethod

    x, y = images
    other = FastGradientMethod(through_art(classifier, x), norm=np.inf, eps=EPSILON).generate(x.numpy(), y.numpy())
    np.testing.assert_allclose(make_attack("fgsm").run(classifier, x, y, EPSILON, seed=0).numpy(), other, rtol=0, atol=1e-6)


def test_iterative_attacks_are_the_same_in_art(classifier: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """BIM and MI-FGSM with ART's classes for them and our step sizes give the same images, but for signs at rounding."""
    from art.attacks.evasion import BasicIterativeMethod, MomentumIterativeMethod

    x, y = images
    estimator = through_art(classifier, x)
    bim = BasicIterativeMethod(estimator, eps=EPSILON, eps_step=EPSILON / 4, max_iter=10, verbose=False)
    momentum = MomentumIterativeMethod(estimator, np.inf, eps=EPSILON, eps_step=EPSILON / 10, decay=1.0, max_iter=10, verbose=False)
    for name, other in (("bim", bim), ("mi-fgsm", momentum)):
        theirs = torch.from_numpy(other.generate(x.numpy(), y.numpy()))
        ours = make_attack(name).run(classifier, x, y, EPSILON, seed=0)
        assert ((ours - theirs).abs() < 1e-5).float().mean() > 0.99
        assert abs(accuracy(classifier, ours, y) - accuracy(classifier, theirs, y)) <= 1 / len(x)
        assert accuracy(classifier, ours, y) < 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning:art")
def test_pgd_breaks_as_many_in_art(classifier: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """PGD from random starts leaves as many images standing in both libraries, give or take two."""
    from art.attacks.evasion import ProjectedGradientDescent

    x, y = images
    other = ProjectedGradientDescent(
        through_art(classifier, x), np.inf, eps=EPSILON, eps_step=EPSILON / 4, max_iter=10, num_random_init=2, verbose=False
    )
    theirs = torch.from_numpy(other.generate(x.numpy(), y.numpy()))
    ours = make_attack("pgd", steps=10, restarts=2).run(classifier, x, y, EPSILON, seed=0)
    assert abs(accuracy(classifier, ours, y) - accuracy(classifier, theirs, y)) <= 2 / len(x)
    assert accuracy(classifier, ours, y) < 0.9


def test_cw_is_as_near_in_art(classifier: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """C&W breaks every image in both libraries, and foolbox's mean L2 distance is within a tenth of ART's or lower."""
    from art.attacks.evasion import CarliniL2Method

    x, y = images[0][:4], images[1][:4]
    other = CarliniL2Method(
        through_art(classifier, x), binary_search_steps=4, max_iter=20, initial_const=0.1, learning_rate=0.01, batch_size=4, verbose=False
    )
    theirs = torch.from_numpy(other.generate(x.numpy(), y.numpy()))
    ours = make_attack("cw", search_steps=5, steps=100).run(classifier, x, y, 1.0, seed=0)
    assert accuracy(classifier, ours, y) == accuracy(classifier, theirs, y) == 0
    distances = [float((found - x).flatten(1).norm(dim=1).mean()) for found in (ours, theirs)]
    assert 0.5 * distances[1] < distances[0] < 1.1 * distances[1]


def test_square_is_arts(classifier: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """Remembering answers changes nothing: ART's Square through ART's own wrapper finds the same images."""
    from art.attacks.evasion import SquareAttack

    x, y = images[0][:8], images[1][:8]
    np.random.seed(3)
    other = SquareAttack(through_art(classifier, x), norm=np.inf, max_iter=40, eps=20 / 255, p_init=0.8, verbose=False)
    theirs = other.generate(x.numpy(), y.numpy())
    ours = make_attack("square", queries=40).run(classifier, x, y, 20 / 255, seed=3)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_ensemble_is_no_weaker_than_arts(classifier: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """Our ensemble leaves no more images standing than ART's class with its default ensemble, or than PGD."""
    pytest.importorskip("multiprocess")
    from art.attacks.evasion import AutoAttack

    x, y = images[0][:20], images[1][:20]
    theirs = AutoAttack(through_art(classifier, x), norm=np.inf, eps=9 / 255, eps_step=2 * 9 / 255, batch_size=40)
    for part in theirs.attacks:
        part.set_params(verbose=False)
    theirs.attacks[-1].set_params(max_iter=200, nb_restarts=1)
    left = accuracy(classifier, torch.from_numpy(theirs.generate(x.numpy(), y.numpy())), y)
    ours = accuracy(classifier, make_attack("apgd-fmn-square", queries=200).run(classifier, x, y, 9 / 255, seed=0), y)
    assert ours <= left
    assert ours <= accuracy(classifier, make_attack("pgd").run(classifier, x, y, 9 / 255, seed=0), y)


# Stochastic models.


class Alternating(nn.Module):
    """Answers in turn with one and with another model: noise whose expectation is known."""

    def __init__(self, *models: nn.Module) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.models[self.calls % len(self.models)](x)


def test_expectation_is_a_vote(classifier: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """Forward gives the logarithm of the mean probability over the samples."""
    x, _ = images
    other = nn.Sequential(nn.Hardtanh(0, 0.6), classifier)
    found = Expectation(Alternating(classifier, other), 4)(x)
    torch.testing.assert_close(found.exp(), (classifier(x).softmax(1) + other(x).softmax(1)) / 2)
    with pytest.raises(ValueError):
        Expectation(classifier, 0)


def test_attacks_follow_the_expected_loss(classifier: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """FGSM and ART's attacks step along the gradient of the mean of the samples' losses, not of one sample's, or of the vote's."""
    x, y = images[0][:5], images[1][:5]
    other = nn.Sequential(nn.Hardtanh(0.4, 0.6), classifier, nn.Hardtanh(-3, 3))
    point = x.clone().requires_grad_()
    loss = (F.cross_entropy(classifier(point), y, reduction="sum") + F.cross_entropy(other(point), y, reduction="sum")) / 2
    expected = torch.autograd.grad(loss, point)[0]
    model = Expectation(Alternating(classifier, other), 2)
    found = make_attack("fgsm").run(model, x, y, 0.01, seed=0)
    clear = expected.abs() > 1e-5 * expected.abs().amax()
    torch.testing.assert_close(found[clear], (x + 0.01 * expected.sign()).clamp(0, 1)[clear], rtol=0, atol=1e-6)
    estimator = with_art.Estimator(Victim.of(model), x, with_art.cross_entropy)
    np.testing.assert_allclose(estimator.loss_gradient(x.numpy(), F.one_hot(y, 4).numpy()), expected, rtol=1e-4, atol=1e-7)


class Noisy(nn.Module):
    """Gaussian noise on the image, from the global generator."""

    def __init__(self, model: nn.Module, std: float) -> None:
        super().__init__()
        self.model = model
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x + self.std * torch.randn_like(x))


@pytest.mark.parametrize("name", NAMES)
def test_stochastic_models(name: str, classifier: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """Every attack gets through a noisy model's expectation, repeatably, and lowers accuracy at a large epsilon."""
    x, y = images[0][:8], images[1][:8]
    model = Expectation(Noisy(classifier, 0.05), 3)
    one, two = (quick(name).run(model, x, y, 40 / 255, seed=0) for _ in range(2))
    assert torch.equal(one, two)
    assert accuracy(classifier, one, y) < accuracy(classifier, x, y)


def test_expected_gradient_frees_each_sample(classifier: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """One sample's graph is alive at a time, however many samples."""
    alive, most = [0], [0]

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor) -> Tensor:
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            return x.clone()

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            alive[0] -= 1
            return gradient

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return classifier(Counted.apply(x) if x.requires_grad else x)

    for name in ("bim", "apgd-rand"):
        quick(name).run(Expectation(Model(), 5), images[0][:2], images[1][:2], 0.01, seed=0)
    assert most == [1] and alive == [0]


# Making attacks.


def test_settings_say_all() -> None:
    """Every attack has a title, a library whose version is known, and settings fit for JSON that overrides show in."""
    for name in NAMES:
        attack = make_attack(name)
        assert attack.name == name and attack.title and attack.library in find_versions()
        assert json.loads(json.dumps(attack.settings)) == attack.settings
    assert find_versions()["foolbox"].startswith("3.")
    pgd = make_attack("pgd", steps=20, restarts=3)
    assert (pgd.settings["steps"], pgd.settings["restarts"], pgd.settings["relative_step"]) == (20, 3, 2.5 / 20)
    assert make_attack("bim").settings["relative_step"] == 0.25
    assert make_attack("mi-fgsm").settings["relative_step"] == 0.1
    assert make_attack("bim", relative_step=0.5).settings["relative_step"] == 0.5
    assert make_attack("ifgsm") == make_attack("bim") and make_attack("BIM").title == "BIM"


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("gauss", {}, "unknown attack 'gauss': use some of fgsm, bim"),
        ("pgd", {"speed": 1}, "pgd has no setting 'speed': it has steps, restarts"),
        ("fgsm", {"steps": 2}, "fgsm has no setting 'steps': it has none"),
        ("pgd", {"steps": 0}, "pgd: steps must be a whole number of 1 or more, not 0"),
        ("pgd", {"steps": 2.5}, "pgd: steps must be a whole number of 1 or more, not 2.5"),
        ("pgd", {"random_start": 1}, "pgd: random_start must be true or false, not 1"),
        ("cw", {"step_size": -1.0}, "cw: step_size must be a number of 0 or more, not -1.0"),
        ("bim", {"relative_step": math.nan}, "bim: relative_step must be a number of 0 or more, not nan"),
    ],
)
def test_unknown_names_and_settings(name: str, overrides: dict[str, Any], message: str) -> None:
    """What is wrong with a request is said in one line."""
    with pytest.raises(UsageError) as caught:
        make_attack(name, **overrides)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "library"), [("fgsm", "foolbox"), ("square", "art"), *(("apgd-fmn-square", each) for each in ("foolbox", "art"))]
)
def test_missing_library(name: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a library, one line says how to install it, before any work."""
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=r"pip install 'comdefend-cli\[evaluate\]'"):
        make_attack(name)


def test_guard_shields_the_caller_from_changes_in_place() -> None:
    """A model that normalizes its input in place does not change what the attack holds."""

    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sub_(0.5).flatten(1)[:, :2]

    x = torch.rand(2, 1, 2, 2, requires_grad=True)
    given = x.detach().clone()
    Guarded(InPlace())(x).sum().backward()
    assert torch.equal(x.detach(), given) and x.grad is not None
