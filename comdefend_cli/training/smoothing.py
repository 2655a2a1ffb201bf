"""Training a classifier for randomized smoothing: on fresh noise, through the purifier, so that it answers alike whatever the noise is."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from comdefend_cli.classifiers.loading import Classifier
from comdefend_cli.data.sources import Dataset
from comdefend_cli.inference.purifier import Purifier
from comdefend_cli.training.classifier import ClassifierTrainer
from comdefend_cli.training.classifier_config import ClassifierConfig

#: Weight of the mean answer's entropy beside the consistency loss (Jeong and Shin, 2020, section 3.2).
ENTROPY = 0.5
#: Test images that accuracy under noise is measured on while training.
MEASURED = 2000


class SmoothedClassifierTrainer(ClassifierTrainer):
    """Trains a classifier on noisy copies of each image, denoised by a purifier where there is one.

    The loss is the cross-entropy of `config.draws` copies of each image (Cohen et al., ICML 2019), plus `config.consistency` times how far
    their answers are from the mean answer (consistency regularization; Jeong and Shin, NeurIPS 2020, eq. 8).

    Args:
        config: the run's settings, with `sigma`.
        dataset, classes, device, start: as of :class:`.ClassifierTrainer`; images as they are, neither noisy nor purified.
        purifier: what removes the noise, without noise of its own; it stays as it is. None for a classifier of noisy images.
    """

    unit: ClassVar[str] = "% of noisy test images right"

    def __init__(
        self,
        config: ClassifierConfig,
        dataset: Dataset,
        classes: tuple[str, ...],
        device: torch.device,
        start: Classifier | None = None,
        *,
        purifier: Purifier | None,
    ) -> None:
        super().__init__(config, dataset, classes, device, start)
        self._purifier = purifier

    def losses(self) -> dict[str, Tensor]:
        """The loss, and of it the part of consistency before its weight."""
        x, y = self._batch()
        draws = self.config.draws
        noisy = self._add_noise(x.repeat(draws, 1, 1, 1), self._stream(self.step_done, 0))
        self.model.train()
        with self.autocast():
            logits = self.model(noisy)
        answers = logits.float().log_softmax(1).view(draws, len(x), -1)
        right = cross_entropy(logits.float(), y.repeat(draws), label_smoothing=self.config.label_smoothing)
        mean = answers.logsumexp(0) - math.log(draws)
        apart = (mean.exp() * (mean - answers)).sum(2).mean()
        entropy = -(mean.exp() * mean).sum(1).mean()
        weight = self.config.consistency
        return {"loss": right + weight * apart + (ENTROPY * entropy if weight else 0.0), "consistency": apart}

    @torch.no_grad()
    def measure(self, count: int = MEASURED) -> float:
        """Accuracy on the first test images under one draw of noise, always the same, in percent."""
        self.model.eval()
        test, generator = self.dataset.test, self.generator(1)
        right = 0
        for pixels, labels in zip(torch.split(test.pixels[:count], 250), torch.split(test.labels[:count], 250), strict=True):
            x = self._add_noise(pixels.to(self.device).float().div(255), generator)
            with self.autocast():
                right += int((self.model(x).argmax(1).cpu() == labels).sum())
        return 100 * right / min(count, len(test))

    def _add_noise(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Float32 images in [0, 1] in 8 bits with normal noise, as `Smoothed` sees them, and then purified."""
        noise = torch.randn(x.shape, generator=generator).to(x)
        noisy = x.add(noise, alpha=self.config.sigma).mul(255).round().clamp(0, 255).to(torch.uint8)
        if self._purifier is not None:
            noisy = self._purifier.purify(noisy)
        return noisy.to(x).div(255).contiguous(memory_format=torch.channels_last)
