"""Training for randomized smoothing, of a classifier or of ComDefend before one that stays as it is: on fresh noise, for like answers."""

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
from comdefend_cli.training.distributed import average
from comdefend_cli.training.labelled import LabelledTrainer, count_right

#: Weight of the mean answer's entropy beside the consistency loss (Jeong and Shin, 2020, section 3.2).
ENTROPY = 0.5
#: Test images that accuracy under noise is measured on while training.
MEASURED = 2000


def regularize(logits: Tensor, draws: int, weight: float) -> tuple[Tensor, Tensor]:
    """Consistency regularization (Jeong and Shin, NeurIPS 2020, eq. 8).

    Args:
        logits: of so many noisy copies of each image, (draws N, classes), all images once before any a second time.
        draws: how many.
        weight: of how far the answers are from each other.

    Returns:
        What it adds to the loss, and how far the answers are from their mean: a Kullback-Leibler divergence; float32 scalars.
    """
    answers = logits.float().log_softmax(1).view(draws, -1, logits.shape[1])
    mean = answers.logsumexp(0) - math.log(draws)
    apart = (mean.exp() * (mean - answers)).sum(2).mean()
    entropy = -(mean.exp() * mean).sum(1).mean()
    return weight * apart + (ENTROPY * entropy if weight else 0.0), apart


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
        right = cross_entropy(logits.float(), y.repeat(draws), label_smoothing=self.config.label_smoothing)
        loss, apart = regularize(logits, draws, self.config.consistency)
        return {"loss": right + loss, "consistency": apart}

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
        """Noisy images, and then purified."""
        noisy = add_normal(x, torch.randn(x.shape, generator=generator).to(x), self.config.sigma)
        if self._purifier is not None:
            noisy = self._purifier.purify(noisy.mul(255).round_().to(torch.uint8)).to(x).div(255)
        return noisy.contiguous(memory_format=torch.channels_last)


class SmoothedPurifierTrainer(LabelledTrainer):
    """Trains ComDefend so that the classifiers behind it answer right, and alike, on noisy copies of an image.

    As :class:`SmoothedClassifierTrainer`, but what learns is the purifier: for a classifier that cannot be trained (denoised smoothing;
    Salman et al., NeurIPS 2020, whose stability loss has the classifier's own answers in place of labels). The loss is that of
    :class:`.Objective`, plus `config.label_weight` times the cross-entropy and consistency regularization.

    Args:
        config: the run's settings, with `sigma`.
        dataset, device, classifiers, names, start: as of :class:`.LabelledTrainer`.
    """

    def losses(self) -> dict[str, Tensor]:
        """The loss on `config.draws` noisy copies of this process's part of the batch; the root mean square of all logits; how far
        the answers are from each other; the share of copies that are answered right.
        """
        config = self.config
        clean, labels, _, noise = self.draw_labelled(config.draws)
        # Of the whole batch, so that any number of processes see the same.
        images = len(clean) * self.processes
        drawn = torch.randn((config.draws, images, *clean.shape[1:]), generator=self.generator(-1 - self.step_done))
        drawn = drawn[:, self.take_share(images)].flatten(0, 1).to(clean)
        clean = clean.repeat(config.draws, 1, 1, 1)
        x = add_normal(clean, drawn, config.sigma).contiguous(memory_format=torch.channels_last)
        system = self.choose_system()
        with self.autocast():
            loss, mean_square, rebuilt = self._objective.rebuild(x, clean, self.choose_noise(noise))
            logits = system.classify(rebuilt).float()
        labels = labels.repeat(config.draws)
        more, apart = regularize(logits, config.draws, config.consistency)
        loss = loss + config.label_weight * (cross_entropy(logits, labels) + more)
        average([mean_square])
        return {"loss": loss, "logit_rms": mean_square.sqrt(), "consistency": apart, "noisy_right": count_right(logits, labels)}


def add_normal(x: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Images (N, C, H, W) in [0, 1], float32, with `sigma` times that noise, in 8 bits, as `Smoothed` sees them."""
    return x.add(noise, alpha=sigma).mul_(255).round_().clamp_(0, 255).div_(255)
