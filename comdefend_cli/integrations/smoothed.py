"""`Smoothed`: the class that a purifier and classifier choose under noise, with a proof of how far that holds (randomized smoothing)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from comdefend_cli.classifiers.networks import Numbers
from comdefend_cli.errors import UsageError
from comdefend_cli.inference.purifier import Purifier
from comdefend_cli.inference.ranges import check_range
from comdefend_cli.integrations.defended import Transform, make_normalizer
from comdefend_cli.integrations.grid_noise import GridNoise, bound_share, find_radius, make_stream
from comdefend_cli.runtime.extras import require

#: In place of a class where none is sure enough.
ABSTAIN = -1


@dataclass(frozen=True)
class Certificate:
    """What is certain of one image.

    Attributes:
        label: the class, or `ABSTAIN`.
        radius: no 8-bit image nearer than this, in L2 distance with pixels in [0, 1], is of another class for the smoothed classifier.
            Wrong with a probability of at most alpha, over the noise that was drawn for this image.
        least: the least probability of the class under noise that the draws speak for.
    """

    label: int
    radius: float
    least: float


class Smoothed(nn.Module):
    """A classifier smoothed by noise, behind a purifier that removes it: the class that is chosen most often is the answer.

    Randomized smoothing (Cohen, Rosenfeld and Kolter, ICML 2019) with a denoiser in front of the classifier (Salman et al., NeurIPS 2020).
    Noise is fresh for every draw and image, comes before everything else, and is exact, see :class:`.GridNoise`. A certificate is about
    this object's true answer, the class that noise makes most probable: it holds for 8-bit images, for an attacker who knows all but the
    noise to come.

    Args:
        purifier: a :class:`comdefend_cli.Purifier`, whose own noise is left out (the same for every image, it would certify nothing),
            any module from (N, C, H, W) in [0, 1] to the same that gives equal images equal results, or None.
        classifier: from what `normalize` returns to logits (N, classes); it is put into evaluation mode.
        normalize: as of :class:`.Defended`.
        sigma: standard deviation of the noise, pixels in [0, 1]: 0.25 is 64 levels. Larger radii, and fewer images classified right.
        n: draws that a certificate or a prediction counts.
        n0: further draws by which a certificate chooses the class that it is about.
        alpha: the most probable a certificate is wrong, or a prediction is not the true one; of each image, not of all together.
        draws: of noise whose mean probability `forward` returns, for attacks and gradients.
        batch: noisy copies at a time.
        seed: of the noise, for repeats; an attacker who knows it can look for an image that it fails on, so leave it out in use.

    Raises:
        UsageError: a number out of range; a purifier with noise on the code; no SciPy (the extra [evaluate]).
    """

    def __init__(
        self,
        purifier: nn.Module | None,
        classifier: nn.Module,
        normalize: Transform | tuple[Numbers, Numbers] | None = None,
        *,
        sigma: float,
        n: int = 1000,
        n0: int = 100,
        alpha: float = 0.001,
        draws: int = 16,
        batch: int = 256,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("n", n), ("n0", n0), ("draws", draws), ("batch", batch)):
            if not isinstance(value, int) or value < 1:
                raise UsageError(f"{name} must be a whole number of at least 1, not {value!r}")
        for name, part in (("purifier", purifier), ("classifier", classifier)):
            if not isinstance(part, nn.Module) and not (part is None and name == "purifier"):
                raise UsageError(f"the {name} must be a torch.nn.Module, not {type(part).__name__}")
        if seed is not None and (not isinstance(seed, int) or seed < 0):
            raise UsageError(f"a seed must be a whole number of at least 0, not {seed!r}")
        if not 0 < alpha < 0.5:
            raise UsageError(f"alpha must be above 0 and below 0.5, not {alpha}")
        self.noise = GridNoise(sigma)
        self.purifier = None if purifier is None else _leave_noise_out(purifier)
        self.normalize = make_normalizer(normalize)
        self.classifier = classifier
        self.n, self.n0, self.alpha, self.draws, self.batch, self.seed = n, n0, alpha, draws, batch, seed
        self._calls = 0
        self.eval()

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise, pixels in [0, 1]."""
        return self.noise.sigma

    def forward(self, x: Tensor) -> Tensor:
        """Log of the mean softmax over `draws` of the noise, with a gradient: what attack libraries take.

        Args:
            x: floating point (N, C, H, W) in [0, 1], or uint8.

        Returns:
            (N, classes). The gradient goes through all draws (SmoothAdv; Salman et al., NeurIPS 2019). It is no certificate.
        """
        if x.dtype == torch.uint8:
            x = x.float() / 255
        check_range(x)()
        rng = self._open_stream()
        votes = []
        for _ in range(self.draws):
            noise = torch.from_numpy(self.noise.draw(tuple(x.shape), rng)).to(x) / 255
            votes.append(self._classify((x + noise).clamp(0, 1)).log_softmax(1))
        return torch.stack(votes).logsumexp(0) - math.log(self.draws)

    def predict(self, x: Tensor) -> Tensor:
        """The class that noise makes most probable, or `ABSTAIN` (Cohen et al., PREDICT).

        Args:
            x: (N, C, H, W), uint8, or floating point in [0, 1], which is rounded to 8 bits.

        Returns:
            int64 (N,), on the CPU. A class is not the true one with a probability of at most `alpha`.
        """
        return torch.tensor([self._predict_one(image, rng) for image, rng in self._open_images(x)], dtype=torch.int64)

    def certify(self, x: Tensor) -> list[Certificate]:
        """The class of each image, and how far around it no image has another one (Cohen et al., CERTIFY); x as of :meth:`predict`."""
        return [self.certify_one(image, rng) for image, rng in self._open_images(x)]

    def certify_one(self, image: Tensor, rng: np.random.Generator) -> Certificate:
        """The certificate of one 8-bit image, uint8 (C, H, W), by noise of that stream."""
        chosen = int(self.count(image, self.n0, rng).argmax())
        held = int(self.count(image, self.n, rng)[chosen])
        least = bound_share(held, self.n, self.alpha) - self.noise.bound_error(image.numel())
        radius = find_radius(self.sigma, least)
        return Certificate(chosen if radius else ABSTAIN, radius, max(least, 0.0))

    @torch.no_grad()
    def count(self, image: Tensor, n: int, rng: np.random.Generator) -> np.ndarray:
        """How often each class is chosen for n noisy copies of an image, uint8 (C, H, W): int64 (classes,).

        Raises:
            UsageError: some part is in training mode, where an answer depends on chance or on the other copies; or logits are not finite.
        """
        if any(part.training for part in self.modules()):
            raise UsageError("a part of the smoothed classifier is in training mode: call .eval() on it")
        total: np.ndarray | None = None
        for start in range(0, n, self.batch):
            logits = self._classify(self.noise.add(image.cpu(), min(self.batch, n - start), rng))
            if not bool(logits.isfinite().all()):
                raise UsageError("the classifier answers with numbers that are not finite: look at its weights and its normalization")
            found = np.bincount(logits.argmax(1).cpu().numpy(), minlength=logits.shape[1])
            total = found if total is None else total + found
        return cast(np.ndarray, total)

    def extra_repr(self) -> str:
        """The settings, for `print`."""
        return f"sigma={self.sigma}, n={self.n}, n0={self.n0}, alpha={self.alpha}"

    def _predict_one(self, image: Tensor, rng: np.random.Generator) -> int:
        counts = np.append(self.count(image, self.n, rng), 0)  # Of one class alone, none is the second.
        second, first = np.argsort(counts, kind="stable")[-2:]
        test = require("scipy.stats", extra="evaluate").binomtest(int(counts[first]), int(counts[first] + counts[second]), 0.5)
        return int(first) if test.pvalue <= self.alpha else ABSTAIN

    def _classify(self, x: Tensor) -> Tensor:
        """Logits of noisy images, uint8 or floating point."""
        first = next(self.parameters(), x)
        x = x.to(first.device)
        if x.dtype == torch.uint8 and not isinstance(self.purifier, Purifier):
            x = x.float() / 255
        purified = x if self.purifier is None else self.purifier(x)
        purified = purified.float() / 255 if purified.dtype == torch.uint8 else purified
        return cast(Tensor, self.classifier(self.normalize(purified) if self.normalize is not None else purified))

    def _open_images(self, x: Tensor) -> Iterator[tuple[Tensor, np.random.Generator]]:
        """Each image in 8 bits, and a stream of noise of its own."""
        if not isinstance(x, Tensor) or x.ndim != 4 or not (x.dtype == torch.uint8 or x.is_floating_point()):
            found = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise UsageError(f"expected a tensor of images (N, C, H, W), uint8 or floating point, not {found}")
        if x.is_floating_point() and x.numel() and not (float(x.min()) >= 0 and float(x.max()) <= 1):
            raise UsageError("images must be in [0, 1]: put the smoothing before the normalization, and give `normalize`")
        for image in x if x.dtype == torch.uint8 else (x.detach() * 255).round().to(torch.uint8):
            yield image, self._open_stream()

    def _open_stream(self) -> np.random.Generator:
        self._calls += 1
        return make_stream(self.seed, self._calls)


def _leave_noise_out(purifier: nn.Module) -> nn.Module:
    """The purifier without noise of its own; what is inside another module must have none."""
    inside = [part for part in purifier.modules() if isinstance(part, Purifier)]
    if any(part.settings.noise_std > 0 for part in inside):
        raise UsageError("a smoothed classifier brings its own noise: use a purifier with noise_std=0")
    if isinstance(purifier, Purifier):
        twin = copy.copy(purifier)
        twin.settings = replace(purifier.settings, input_noise=0.0, samples=1)
        return twin
    if any(part.input_noise(channels) for part in inside for channels in (1, 3)):
        raise UsageError("a smoothed classifier brings its own noise: use purifiers with Settings(input_noise=0)")
    return purifier
