"""Training ComDefend on clean images (sections 3.4 to 3.6): the loss of eq. 3 on noisy codes, and signs of a collapse.

Under torchrun every process computes its share of each batch, and gradients are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from comdefend_cli.data.mixture import Mixture, Variation
from comdefend_cli.data.sources import Dataset
from comdefend_cli.errors import UsageError
from comdefend_cli.inference.purifier import Purifier
from comdefend_cli.network.metrics import mean_psnr, ssim
from comdefend_cli.network.model import ComDefend
from comdefend_cli.training.config import DEFAULT_LR, TrainConfig
from comdefend_cli.training.distributed import average, find_place, take_first
from comdefend_cli.training.loop import Trainer
from comdefend_cli.training.objective import START_RMS, FeatureDistance, Objective, hold_logits, initialize, top_rms
from comdefend_cli.training.optim import pair_with_muon

#: Adam's rate for what Muon does not take: biases, first and last layers.
ADAM_BESIDE_MUON = 3e-3
#: Healthy logits stay under 1.2 times `TOP_RMS`, Adam at 0.01 passes 24 times (and rebuilds one constant image).
RUNAWAY = 20.0
#: A collapsed run's reconstructions differ less from each other than this share of what the images do;
#: healthy ones measure 0.45 before the first step and 0.6 to 1.1 after ten.
COLLAPSED = 0.05
#: Test images that PSNR is measured on for the weight file's header.
FINAL_IMAGES = 5000


class PurifierTrainer(Trainer):
    """Trains the two networks; any number of processes share one global batch.

    Reports have the logits' root mean square as "logit_rms".

    Args:
        config: the run's settings.
        dataset: images to learn from and to measure on.
        device: where to train.
        start: networks to go on from, see :func:`.objective.initialize`, or None to draw new weights.
        features: the classifiers that `config.features` names, those of each part of the data set, which take turns; empty for none.
        validation_images: how many test images `validate` measures.

    Attributes:
        test_images: those of the data set, as the networks take them.

    Raises:
        UsageError: the batch does not divide among the processes, or is too small for its share of attacked images; the images or
            `start` do not fit the settings.
    """

    command: ClassVar[str] = "comdefend train"
    unit: ClassVar[str] = "dB PSNR"
    measure_name: ClassVar[str] = "psnr"
    config: TrainConfig
    model: ComDefend

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        device: torch.device,
        *,
        start: ComDefend | None = None,
        features: Sequence[Sequence[nn.Module]] = (),
        validation_images: int = 64,
    ) -> None:
        processes = find_place()[1]
        if config.batch_size % processes:
            raise UsageError(f"a batch of {config.batch_size} images does not divide among {processes} processes")
        if config.adversarial and not config.count_attacked(config.batch_size // processes):
            share = f"a share of {config.adversarial_share} of what each process takes"
            raise UsageError(f"a batch of {config.batch_size} is too small: {share} is less than one image to attack")
        parts = dataset.train.parts if isinstance(dataset.train, Mixture) else (dataset.train,)
        if config.listed_parts not in (0, len(parts)):
            raise UsageError(f"settings of each part of the data have {config.listed_parts} values for {len(parts)} parts")
        self._images = Mixture(parts, Variation(config.jitter, config.small, config.gray))
        if self._images.channels != config.channels:
            raise UsageError(f"{config.data} has {self._images.channels} channels, not {config.channels}")
        self.config = config  # The generators read its seed.
        self.most_norm = config.clip or math.inf
        model = ComDefend(config.architecture)
        sample = Mixture(parts, Variation(gray=config.gray)).batch(64, self.generator(1))
        if start is not None and replace(start.architecture, channels=config.channels, bits=config.bits) != model.architecture:
            raise UsageError(
                f"the weights to start from are for {start.architecture}, not {model.architecture}: match their family and sizes"
            )
        initialize(model, sample, self.generator(0), start)
        model.input_noise = config.inference_noise
        # Weights to go on from may have logits of any scale; `hold_logits` brings them down with time.
        start_rms = START_RMS if start is None else _logit_rms(model, sample)
        self._runaway_rms = RUNAWAY * max(top_rms(config.noise_std), start_rms)
        optimizers = make_optimizers(model, config)
        super().__init__(config, dataset, device, model, optimizers, steps=config.steps, schedule=config.lr_factor)
        # A classifier of several parts is looked at once.
        distances = {each: FeatureDistance(each.to(device)) for each in dict.fromkeys(chain(*features))}
        self._objective = Objective(
            self.model,
            config.penalty,
            config.noise_std,
            rooted=config.loss == "rmse",
            features=[[distances[each] for each in seeing] for seeing in features],
            feature_weights=[config.of_part("feature_weight", place) for place in range(len(features))],
            stability=config.stability_weight,
        )
        self.test_images = Variation(gray=config.gray).apply(dataset.test.pixels, self.generator(1))
        self._test = self.test_images[:validation_images]

    def losses(self) -> dict[str, Tensor]:
        """Eq. 3 on this process's share of the batch, and the root mean square of the logits of all of it."""
        place, *drawn = self._draw(self.step_done)
        clean, x, noise = (part.to(self.device) for part in drawn)
        with self.autocast():
            loss, mean_square = self._objective(x, clean, self.choose_noise(noise), place, self.step_done)
        average([mean_square])
        return {"loss": loss, "logit_rms": mean_square.sqrt()}

    def choose_noise(self, noise: Tensor) -> Tensor | None:
        """The noise for the logits of this step, or None where RecCNN learns from the rounded code."""
        return None if self.config.rounds(self.step_done) else noise

    def check(self, figures: dict[str, float]) -> None:
        """Refuse logits that ran away, too."""
        super().check(figures)
        rms = figures["logit_rms"]
        if rms > self._runaway_rms:
            where = f"collapsed at step {self.step_done + 1}"
            self.fail(f"{where}: the logits ran away to {rms:.3g}, far above the noise; {self.advice()}")

    def after_step(self, figures: dict[str, float]) -> None:
        """Keep the logits within reach of the noise."""
        hold_logits(self.model, figures["logit_rms"], self.config.noise_std)

    def advice(self) -> str:
        """What to do about a collapse."""
        adam = self.config.optimizer == "adam"
        return f"train again with a lower --lr (such as {self.config.peak_lr / 3:.2g}), a longer --warmup" + ", or --optimizer muon" * adam

    def validate(self) -> float:
        """Mean PSNR in dB of the binarized 8-bit reconstructions of the first test images.

        From `warmup` + 50 steps on, and at the end of a shorter run, it also looks for a collapse.

        Raises:
            TrainingError: every reconstruction is the same image.
        """
        # All processes hold the same weights; the first one's verdict counts, lest they part over a rounding.
        result = self._purify(self._test)
        constant = _variation(result) < COLLAPSED * _variation(self._test)
        verdict = torch.tensor([mean_psnr(self._test, result), constant], dtype=torch.float64)
        if self.processes > 1:
            verdict = verdict.to(self.device)
            take_first(verdict)
        measured, constant = verdict.tolist()
        if constant and self.step_done >= min(self.config.warmup + 50, self.config.steps):
            image = "black" if result.float().mean() < 1 else "constant"
            self.fail(f"collapsed at step {self.step_done}: every image is rebuilt as one {image} image; {self.advice()}")
        return float(measured)

    def measure(self, count: int, progress: Callable[[int], None] | None = None) -> dict[str, Any]:
        """Mean PSNR in dB ("psnr_db") and SSIM ("ssim") of the binarized 8-bit reconstructions of the first test images.

        Args:
            count: how many of them at most; "test_images" in the result says how many there were.
            progress: called with the images measured since the last call.
        """
        test = self.test_images[:count]
        parts, similarity = [], 0.0
        for part in torch.split(test, 256):
            parts.append(self._purify(part))
            similarity += sum(ssim(a[None], b[None]) for a, b in zip(part, parts[-1], strict=True))
            if progress:
                progress(len(part))
        result, similarity = torch.cat(parts), similarity / len(test)
        return {"psnr_db": round(mean_psnr(test, result), 4), "ssim": round(similarity, 5), "test_images": len(test)}

    def record(self, count: int = FINAL_IMAGES, progress: Callable[[int], None] | None = None) -> dict[str, Any]:
        """As every trainer's, with what is measured on `count` test images; `progress` as of :meth:`measure`."""
        return {**super().record(), "lr": self.config.peak_lr, **self.measure(count, progress)}

    def _draw(self, step: int) -> tuple[int, Tensor, Tensor, Tensor]:
        """The place of the step's source; this process's share of its batch: clean images, noisy ones, noise for the logits."""
        config, generator = self.config, self.generator(step + 2)
        place, pixels = self._images.draw(config.batch_size, generator)
        share = slice(*(len(pixels) // self.processes * (self.rank + i) for i in (0, 1)))
        if self.device.type == "cuda":
            # A CPU takes longer to draw the noise than a GPU takes for the step.
            pixels, generator = pixels.to(self.device), torch.Generator(self.device).manual_seed(generator.initial_seed())
        clean = pixels.float().div_(255)
        draw = partial(torch.randn, generator=generator, device=clean.device)
        noise = draw((len(clean), config.bits, *clean.shape[2:])).mul_(config.noise_std)
        x = clean
        least, most = (config.of_part(name, place) for name in ("input_noise_min", "input_noise"))
        if most:
            std = torch.rand((len(clean), 1, 1, 1), generator=generator, device=clean.device) * (most - least) + least
            x = (clean + std / 255 * draw(clean.shape)).clamp_(0, 1)
        first, second, third = (part[share].contiguous(memory_format=torch.channels_last) for part in (clean, x, noise))
        return place, first, second, third

    def _purify(self, images: Tensor) -> Tensor:
        color, gray = (self.model, None) if self.config.channels == 3 else (None, self.model)
        return Purifier(color, gray).purify(images)


def _variation(images: Tensor) -> float:
    """How much images (N, C, H, W) differ from each other, in 8-bit levels; a single one, its pixels."""
    values = images.float()
    return float(values.std(dim=0).mean() if len(values) > 1 else values.std())


@torch.no_grad()
def _logit_rms(model: ComDefend, images: Tensor) -> float:
    return float(model.com(images.float().div(255)).square().mean().sqrt())


def make_optimizers(model: ComDefend, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Optimizers at their peak learning rates.

    Muon takes the kernels between each network's first and last layer: on those two, it lets the logits run away.
    """
    if config.optimizer == "adam":
        return [torch.optim.Adam(model.parameters(), config.peak_lr)]
    inner = [cast(nn.Parameter, layer.weight) for network in (model.com, model.rec) for layer in network.find_convolutions()[1:-1]]
    beside = ADAM_BESIDE_MUON * config.peak_lr / DEFAULT_LR["muon"]
    return pair_with_muon(partial(torch.optim.Adam, lr=beside, betas=(0.9, 0.99)), model, inner, config.peak_lr)
