"""What a smoothed classifier makes of its counts, and how it counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from comdefend_cli import Purifier
from comdefend_cli.errors import UsageError
from comdefend_cli.inference.settings import Settings
from comdefend_cli.integrations import Smoothed
from comdefend_cli.integrations.grid_noise import GridNoise, bound_share, find_radius, make_stream
from comdefend_cli.integrations.smoothed import ABSTAIN, Certificate
from tests.conftest import small_model

stats = pytest.importorskip("scipy.stats")
STREAM = make_stream(0)


class Parity(nn.Module):
    """Class 0 for an even sum of the levels, 1 for an odd one, 2 never: the noise alone decides."""

    def forward(self, x: Tensor) -> Tensor:
        odd = (x * 255).round().flatten(1).sum(1) % 2
        return torch.stack([1 - odd, odd, torch.full_like(odd, -1)], 1)


class Told(Smoothed):
    """Counts what it is told, and notes how often it is asked to count."""

    def tell(self, *counts: list[int]) -> Told:
        self.counts, self.asked = list(counts), []
        return self

    def count(self, image: Tensor, n: int, rng: np.random.Generator) -> np.ndarray:
        self.asked.append(n)
        return np.array(self.counts.pop(0))


def told(*counts: list[int], **values: Any) -> Told:
    return Told(None, Parity(), **{"sigma": 0.25, **values}).tell(*counts)


def image(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_a_certificate_is_of_the_class_that_the_first_draws_choose() -> None:
    """Its share is bounded by the later draws alone, less what the noise's table may be wrong by; below one half nothing is certified."""
    x = image(3, 4, 4)
    sure = told([2, 8, 0], [900, 990, 5])
    least = bound_share(990, 1000, 0.001) - sure.noise.bound_error(48)
    assert sure.certify_one(x, STREAM) == Certificate(1, find_radius(0.25, least), least) and least > 0.97
    assert sure.asked == [100, 1000]
    abstains = told([1, 9], [501, 499], n0=7, n=1000)
    assert abstains.certify_one(x, STREAM) == Certificate(ABSTAIN, 0.0, bound_share(499, 1000, 0.001) - abstains.noise.bound_error(48))
    assert abstains.asked == [7, 1000] and told([0, 5], [9, 0]).certify_one(x, STREAM) == Certificate(ABSTAIN, 0.0, 0.0)


def test_a_prediction_is_sure_to_alpha_or_none() -> None:
    """By a two-sided sign test of the first two classes, whichever they are; a p-value of alpha itself is enough."""
    x = image(3, 4, 4)
    for counts, alpha, wanted in (
        ([0, 10, 0], 2 * 0.5**10, 1),
        ([0, 10, 0], 2 * 0.5**10 - 1e-12, ABSTAIN),
        ([10], 2 * 0.5**10, 0),
        ([3, 4, 30], 0.001, 2),
        ([20, 4, 30], 0.01, ABSTAIN),
        ([30, 30], 0.4, ABSTAIN),
    ):
        smoothed = told(counts, n=44, alpha=alpha)
        assert smoothed._predict_one(x, STREAM) == wanted, counts
        assert smoothed.asked == [44]


def test_counts_are_of_n_copies_whatever_goes_at_a_time() -> None:
    """All draws count, of one stream, batch by batch; a class that is never chosen has its place."""
    x = image(1, 3, 3)
    noisy = GridNoise(0.25).add(x, 50, make_stream(4)).int()
    odd = int((noisy.flatten(1).sum(1) % 2).sum())
    for batch in (1, 7, 25, 50, 256):
        found = Smoothed(None, Parity(), sigma=0.25, batch=batch).count(x, 50, make_stream(4))
        assert found.tolist() == [50 - odd, odd, 0] and 10 < odd < 40
    sizes: list[int] = []
    smoothed = Smoothed(None, Parity(), sigma=0.25, batch=20)
    smoothed.classifier.register_forward_hook(lambda part, given, result: sizes.append(len(given[0])))
    smoothed.count(x, 50, make_stream(4))
    assert sizes == [20, 20, 10] and not torch.is_inference_mode_enabled()


def test_each_image_has_a_stream_of_its_own_also_in_later_calls() -> None:
    """By the seed and a number that goes up from 1, over all images of all calls; floats are rounded to the levels they stand for."""
    x = image(3, 3, 4, 4)
    smoothed = Smoothed(None, Parity(), sigma=0.1, n=60, n0=9, seed=8)
    found = smoothed.certify(x[:2]) + smoothed.certify((x[2:].double() + 0.4) / 255 * 0.999)
    near = ((x[2].double() + 0.4) * 0.999).round().to(torch.uint8)
    assert found == [smoothed.certify_one(each, make_stream(8, place)) for place, each in enumerate((x[0], x[1], near), 1)]
    assert smoothed.predict(x[:0]).shape == (0,) and smoothed.predict(x).dtype == torch.int64
    assert torch.equal(Smoothed(None, Parity(), sigma=0.1, seed=8)(x), Smoothed(None, Parity(), sigma=0.1, seed=8)(x.float() / 255))


def test_forward_is_the_log_of_the_mean_probability() -> None:
    """Over as many draws as it says, each for all images, cut to the range, by the noise of the stream."""
    x = image(2, 1, 3, 3).float() / 255
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
    normalize = ((0.2,), (0.5,))
    smoothed = Smoothed(None, classifier, normalize, sigma=0.3, draws=5, seed=6)
    rng = make_stream(6, 1)
    chances = [
        classifier(((x + torch.from_numpy(smoothed.noise.draw((2, 1, 3, 3), rng)) / 255).clamp(0, 1) - 0.2) / 0.5).softmax(1)
        for _ in range(5)
    ]
    assert torch.allclose(smoothed(x), torch.stack(chances).mean(0).log())
    assert smoothed(x).requires_grad and not torch.equal(smoothed(x), smoothed(x))


def test_settings_are_as_documented() -> None:
    """Unless said otherwise, and shown by `print`; the least that each may be is taken, what is beyond is refused."""
    smoothed = Smoothed(None, Parity(), sigma=0.25)
    assert (smoothed.n, smoothed.n0, smoothed.alpha, smoothed.draws, smoothed.batch, smoothed.seed) == (1000, 100, 0.001, 16, 256, None)
    assert "sigma=0.25, n=1000, n0=100, alpha=0.001" in repr(smoothed) and smoothed.sigma == 0.25 and not smoothed.training
    least = Smoothed(None, Parity(), sigma=0.25, n=1, n0=1, draws=1, batch=1, seed=0, alpha=0.49)
    assert least.predict(image(1, 1, 2, 2)).tolist() == [-1] == [ABSTAIN] and least.seed == 0
    for wrong in ({"alpha": 0.5}, {"alpha": 0}, {"draws": 0}, {"draws": 1.0}, {"batch": 0}, {"seed": 1.0}, {"n": "8"}):
        with pytest.raises(UsageError, match=f"{next(iter(wrong))} must be|a seed must be"):
            Smoothed(None, Parity(), **{"sigma": 0.25, **wrong})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the purifier must be"):
        Smoothed(len, Parity(), sigma=0.25)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [-0.01, 1.01, math.nan])
def test_images_out_of_range_are_refused(wrong: float) -> None:
    """On either side, and what is no number; the ends of the range are in it."""
    smoothed = Smoothed(None, Parity(), sigma=0.25, n=2, n0=2)
    x = torch.tensor([0.0, 1.0, 0.5, 0.5]).view(1, 1, 2, 2)
    assert len(smoothed.certify(x)) == 1
    x[0, 0, 0, 1] = wrong
    with pytest.raises(UsageError, match=r"images must be in \[0, 1\]"):
        smoothed.certify(x)
    with pytest.raises(UsageError, match="expected a tensor"):
        smoothed.certify(x.int())


class Grey(nn.Module):
    """A purifier of another kind, which gives levels back."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.is_floating_point(), "it is told floats"
        return (x.mean(1, keepdim=True).expand_as(x) * 255).round().to(torch.uint8)


def test_what_is_purified_reaches_the_classifier_in_its_range() -> None:
    """Levels of another module's become floats; a purifier of ours is given levels, with one sample and without its noise."""
    x = image(2, 3, 8, 8)
    found = Smoothed(Grey(), nn.Identity(), sigma=0.1)._classify(x)
    assert torch.allclose(found, (x.float().mean(1, keepdim=True)).round().expand(-1, 3, -1, -1) / 255)
    model = small_model(1)
    model.input_noise = 20.0
    for inside in (Purifier(small_model(), model), Purifier(small_model(), settings=Settings(input_noise=5.0))):
        with pytest.raises(UsageError, match="input_noise=0"):
            Smoothed(nn.Sequential(inside), Parity(), sigma=0.1)
    asked = Settings(input_noise=9.0, samples=3, tile=16)
    smoothed = Smoothed(Purifier(small_model(), settings=asked), nn.Identity(), sigma=0.1)
    assert isinstance(smoothed.purifier, Purifier)
    assert smoothed.purifier.settings == Settings(input_noise=0.0, samples=1, tile=16)
