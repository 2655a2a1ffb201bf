"""Randomized smoothing: exact noise, sound certificates, predictions that abstain, attack libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from comdefend_cli import Purifier
from comdefend_cli.errors import UsageError
from comdefend_cli.evaluate.certification import InPrecision
from comdefend_cli.inference.settings import Settings
from comdefend_cli.integrations import Smoothed
from comdefend_cli.integrations.grid_noise import GridNoise, bound_share, find_radius, make_stream
from comdefend_cli.integrations.smoothed import ABSTAIN
from tests.conftest import small_model

stats = pytest.importorskip("scipy.stats")
SIDE = 8


class Linear(nn.Module):
    """Class 1 where the mean of the image's values, along a direction of unit length, is above a threshold: its exact radius is known."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        direction = torch.randn(3 * SIDE * SIDE, generator=torch.Generator().manual_seed(3))
        self.direction = direction / direction.norm()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.direction - self.threshold
        return torch.stack([-score, score], 1)


def image(level: int = 128) -> Tensor:
    """In the middle of the range, so that under little noise nothing is cut off."""
    return torch.full((3, SIDE, SIDE), level, dtype=torch.uint8)


@settings(max_examples=25, deadline=None)
@given(sigma=st.floats(0.004, 1.0), seed=st.integers(0, 2**32))
def test_noise_is_rounded_normal_noise(sigma: float, seed: int) -> None:
    """Whole levels with the probabilities of a rounded normal variable (chi square), within the table's reach; its error bound is tiny."""
    noise = GridNoise(sigma)
    drawn = noise.draw((20_000,), make_stream(seed)).astype(int)
    assert abs(drawn).max() <= noise.most
    std = 255 * sigma
    edges = np.unique(np.round(stats.norm.ppf(np.linspace(0.02, 0.98, 13)) * std).astype(int))
    shares = np.diff(np.concatenate([[0.0], stats.norm.cdf((edges + 0.5) / std), [1.0]]))
    counts = np.bincount(np.searchsorted(edges, drawn, side="left"), minlength=len(shares))
    assert stats.chisquare(counts, shares * len(drawn)).pvalue > 1e-6
    assert 0 < noise.bound_error(3 * 224 * 224) < 1e-6


def test_noise_is_fresh_and_repeats_by_seed_alone() -> None:
    """Two draws differ; the same seed and place give the same; without a seed no two streams agree."""
    noise = GridNoise(0.25)
    one, other = (noise.add(image(), 4, make_stream(5, 1)) for _ in range(2))
    assert torch.equal(one, other) and len({copy.numpy().tobytes() for copy in one}) == 4
    assert not torch.equal(one, noise.add(image(), 4, make_stream(5, 2)))
    assert not torch.equal(*(noise.add(image(), 1, make_stream(None)) for _ in range(2)))


def test_certificates_of_a_linear_classifier_approach_its_radius_from_below() -> None:
    """The exact radius is the distance to its plane: a certificate never exceeds it, and comes nearer with more draws."""
    x = image()
    score = float((x.float() / 255).flatten() @ Linear(0).direction)
    distance = 0.05
    model, radii = Linear(score - distance), []
    for n in (100, 1000, 10_000):
        found = Smoothed(None, model, sigma=0.05, n=n, alpha=0.001, seed=n, batch=5000).certify(x[None])[0]
        assert found.label == 1 and found.radius <= distance
        radii.append(found.radius)
    assert radii == sorted(radii) and radii[-1] > 0.9 * distance
    assert Smoothed(None, Linear(score), sigma=0.05, seed=1).certify(x[None])[0].label == ABSTAIN


def test_an_attack_within_the_radius_changes_nothing() -> None:
    """SmoothAdv's gradient, over 64 draws, points where the answer changes: not within the certified radius, soon after the true one."""
    x = image()
    score = float((x.float() / 255).flatten() @ Linear(0).direction)
    smoothed = Smoothed(None, Linear(score - 0.06), sigma=0.05, n=2000, draws=64, seed=4)
    certificate = smoothed.certify(x[None])[0]
    start = (x.float() / 255)[None].requires_grad_()
    (gradient,) = torch.autograd.grad(smoothed(start)[0, 1], start)
    step = -gradient / gradient.norm()
    for factor, wanted in ((0.9, {1}), (1.6, {0})):
        attacked = ((start.detach() + step * factor * certificate.radius) * 255).round() / 255
        within = float((attacked - start.detach()).norm())
        assert (within < certificate.radius) == (factor < 1)
        assert {int(smoothed.predict(attacked)) for _ in range(3)} == wanted


def test_certificates_are_wrong_no_more_often_than_alpha() -> None:
    """Of 10,000 bounds on a known probability at alpha 0.05, at most 5 % and a little are above it."""
    rng, n, alpha, share = np.random.default_rng(0), 100, 0.05, 0.8
    bounds = {count: bound_share(count, n, alpha) for count in range(n + 1)}
    wrong = sum(bounds[count] > share for count in rng.binomial(n, share, 10_000))
    assert stats.binomtest(wrong, 10_000, alpha, alternative="greater").pvalue > 1e-3 and wrong > 100
    assert bound_share(0, n, alpha) == 0 and bound_share(n, n, alpha) == pytest.approx(alpha ** (1 / n))


def test_radius_and_agreement_with_art() -> None:
    """Theorem 1 of Cohen et al., and what ART's own certificate says of the same counts; ART adds its noise before its preprocessors."""
    assert find_radius(0.25, 0.5) == find_radius(0.25, 0.1) == 0.0
    assert find_radius(0.5, stats.norm.cdf(2.0)) == pytest.approx(1.0)
    estimator = pytest.importorskip("art.estimators.certification.randomized_smoothing.pytorch").PyTorchRandomizedSmoothing
    model = Linear(0.0)
    theirs = estimator(model, loss=nn.CrossEntropyLoss(), input_shape=(3, SIDE, SIDE), nb_classes=2, scale=0.25, alpha=0.01)
    counts = np.array([37, 463])
    theirs._prediction_counts = lambda *_, n=None, **__: counts  # type: ignore[assignment]
    label, radius = (found[0] for found in theirs.certify(np.zeros((1, 3, SIDE, SIDE), np.float32), n=500))
    least = bound_share(463, 500, 0.01)
    assert int(label) == 1 and float(radius) == pytest.approx(find_radius(0.25, least), abs=1e-6)


def test_prediction_abstains_where_classes_are_near() -> None:
    """A class that is clearly ahead is the answer; of two alike none is."""
    x = image()
    score = float((x.float() / 255).flatten() @ Linear(0).direction)
    smoothed = Smoothed(None, Linear(score + 0.1), sigma=0.05, n=200, seed=0)
    assert smoothed.predict(torch.stack([x, x])).tolist() == [0, 0]
    assert Smoothed(None, Linear(score), sigma=0.05, n=200, seed=0).predict(x[None]).tolist() == [ABSTAIN]


def test_purifier_has_no_noise_of_its_own() -> None:
    """Its fixed noise would certify nothing and is left out, in a copy; noise on the code, and noise inside other modules, are refused."""
    model = small_model(family="residual-2")
    model.input_noise = 30.0
    purifier = Purifier(model)
    smoothed = Smoothed(purifier, nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2)), sigma=0.1, n=8, n0=4, seed=0)
    assert isinstance(smoothed.purifier, Purifier) and smoothed.purifier.input_noise(3) == 0 and purifier.input_noise(3) == 30
    x = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rng = make_stream(0, 1)
    noisy = smoothed.noise.add(x[0], 4, rng)
    assert torch.equal(smoothed._classify(noisy), smoothed.classifier(smoothed.purifier(noisy).float() / 255))
    assert len(smoothed.certify(x)) == 2 and smoothed(x.float() / 255).shape == (2, 2)
    with pytest.raises(UsageError, match="noise_std=0"):
        Smoothed(Purifier(model, settings=Settings(noise_std=1.0)), nn.Identity(), sigma=0.1)
    with pytest.raises(UsageError, match="input_noise=0"):
        Smoothed(nn.Sequential(purifier), nn.Identity(), sigma=0.1)
    Smoothed(nn.Sequential(Purifier(model, settings=Settings(input_noise=0.0))), nn.Identity(), sigma=0.1)


def test_what_is_refused() -> None:
    """Numbers out of range, images out of range, and parts in training mode, whose answers depend on chance."""
    for wrong in (
        {"sigma": 0.0},
        {"sigma": 64.0},
        {"sigma": "a"},
        {"alpha": 0.6},
        {"n": 0},
        {"n": 2.5},
        {"n0": 0},
        {"batch": 0},
        {"seed": -1},
    ):
        with pytest.raises(UsageError):
            Smoothed(None, Linear(0), **{"sigma": 0.25, **wrong})  # type: ignore[arg-type]
    smoothed = Smoothed(None, nn.Sequential(nn.Dropout(), Linear(0)), sigma=0.25, n=4, n0=4)
    with pytest.raises(UsageError, match=r"in \[0, 1\]"):
        smoothed.certify(torch.full((1, 3, SIDE, SIDE), 1.5))
    for wrong_images in (image(), [image()], np.zeros((1, 3, SIDE, SIDE), np.uint8)):
        with pytest.raises(UsageError, match="expected a tensor of images"):
            smoothed.predict(wrong_images)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="divide by 255"):
        smoothed(torch.full((1, 3, SIDE, SIDE), 128.0))
    with pytest.raises(UsageError, match="the classifier must be"):
        Smoothed(None, None, sigma=0.25)  # type: ignore[arg-type]
    broken = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 2))
    nn.init.constant_(broken[1].weight, float("nan"))
    for ask in (Smoothed(None, broken, sigma=0.25, n=4).certify, Smoothed(None, broken, sigma=0.25, n=4).predict):
        with pytest.raises(UsageError, match="not finite"):
            ask(image()[None])
    smoothed.classifier[0].train()  # One part is enough.
    with pytest.raises(UsageError, match="training mode"):
        smoothed.certify(image()[None])


def test_attack_libraries_take_it() -> None:
    """ART and foolbox attack the smoothed classifier through the mean over its draws, and see its log probabilities."""
    x = image()
    score = float((x.float() / 255).flatten() @ Linear(0).direction)
    smoothed = Smoothed(None, Linear(score - 0.02), sigma=0.02, draws=8, n=200, seed=2)
    start = (x.float() / 255)[None]
    assert math.isclose(float(smoothed(start).exp().sum()), 1.0, rel_tol=1e-5)
    foolbox = pytest.importorskip("foolbox")
    model = foolbox.PyTorchModel(smoothed, bounds=(0, 1), device="cpu")
    _, attacked, success = foolbox.attacks.L2PGD(steps=5)(model, start, torch.tensor([1]), epsilons=0.3)
    assert bool(success) and smoothed.predict(attacked).tolist() == [0]
    classifier = pytest.importorskip("art.estimators.classification").PyTorchClassifier
    art = classifier(smoothed, loss=nn.NLLLoss(), input_shape=(3, SIDE, SIDE), nb_classes=2, clip_values=(0, 1))
    assert art.predict(start.numpy()).argmax(1).tolist() == [1]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_classifier_in_another_precision_says_the_same(precision: str) -> None:
    """Its logits are float32 and near those of the classifier itself, which stays in float32."""
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3)).eval()
    x = torch.rand(6, 3, 8, 8)
    found, wanted = InPrecision(classifier, precision)(x), classifier(x)
    assert found.dtype == torch.float32 and {parameter.dtype for parameter in classifier.parameters()} == {torch.float32}
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6 if precision == "float32" else 0.02)
