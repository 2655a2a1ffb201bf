"""Training ComDefend on clean images (sections 3.4 to 3.6): the loss of eq. 3, the loop, the checkpoints.

Under torchrun every process computes its share of each batch, and gradients are averaged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from comdefend_cli.data.sources import Dataset
from comdefend_cli.errors import TrainingError, UsageError, reason
from comdefend_cli.inference.purifier import Purifier
from comdefend_cli.network.metrics import mean_psnr, ssim
from comdefend_cli.network.model import Architecture, ComDefend
from comdefend_cli.runtime.device import flush_subnormals
from comdefend_cli.training import checkpoint
from comdefend_cli.training.config import DEFAULT_LR, TrainConfig
from comdefend_cli.training.distributed import peer_error
from comdefend_cli.training.objective import START_RMS, FeatureDistance, Objective, hold_logits, initialize, top_rms
from comdefend_cli.training.optim import Muon

#: Adam's rate for what Muon does not take: biases, first and last layers.
ADAM_BESIDE_MUON = 3e-3
#: Healthy logits stay under 1.2 times `TOP_RMS`, Adam at 0.01 passes 24 times (and rebuilds one constant image).
RUNAWAY = 20.0
#: A collapsed run's reconstructions differ less from each other than this share of what the images do;
#: healthy ones measure 0.45 before the first step and 0.6 to 1.1 after ten.
COLLAPSED = 0.05
#: What writes checkpoints, for messages about them.
COMMAND = "comdefend train"


@dataclass(frozen=True)
class Report:
    """What one step, or one validation, showed.

    Attributes:
        step: steps done.
        loss: eq. 3 on the step's batch.
        logit_rms: root mean square of the logits.
        psnr: mean PSNR in dB of the binarized reconstruction of test images, or None where it was not measured.
        images_per_second: over all processes, since the run or its resumption began.
    """

    step: int
    loss: float
    logit_rms: float
    psnr: float | None
    images_per_second: float


class Trainer:
    """A training run, one step at a time; all that it carries from step to step is in `state()` and `step_done`.

    Every step draws its batch and noise from a generator seeded with (seed, step), so a resumed run
    sees what an uninterrupted one sees, and any number of processes share one global batch.

    Args:
        config: the run's settings.
        dataset: images to learn from and to measure on.
        device: where to train.
        start: networks to go on from, or None to draw new weights.
        features: the classifier that `config.features` names, or None.
        validation_images: how many test images `validate` measures.

    Attributes:
        step_done: steps done.
        model: the networks, float32, on the device.
        stop_asked: set it to end the run after the step in progress.
        stopping: whether some process was asked to stop and all of them know.

    Raises:
        UsageError: the batch does not divide among the processes; the images or `start` do not fit the settings.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        device: torch.device,
        *,
        start: ComDefend | None = None,
        features: nn.Module | None = None,
        validation_images: int = 64,
    ) -> None:
        self.config, self.dataset, self.device = config, dataset, device
        self.rank, self.processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if config.batch_size % self.processes:
            raise UsageError(f"a batch of {config.batch_size} images does not divide among {self.processes} processes")
        if dataset.train.channels != config.channels:
            raise UsageError(f"{config.data} has {dataset.train.channels} channels, not {config.channels}")
        self.step_done = 0
        self.stop_asked = self.stopping = False
        self.model = ComDefend(Architecture(config.channels, config.bits))
        sample = dataset.train.batch(64, self._generator(-1))
        if start is None:
            initialize(self.model, sample, self._generator(-2))
        else:
            self.model = _continued(start, self.model.architecture)
        self.model.input_noise = config.inference_noise
        # Weights to go on from may have logits of any scale; `hold_logits` brings them down with time.
        start_rms = START_RMS if start is None else _logit_rms(self.model, sample)
        self._runaway_rms = RUNAWAY * max(top_rms(config.noise_std), start_rms)
        self.model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        distance = FeatureDistance(features.to(device)) if features is not None else None
        objective = Objective(self.model, config.penalty, config.noise_std, distance, config.feature_weight)
        self._objective = DistributedDataParallel(objective) if self.processes > 1 else objective
        self._optimizers = make_optimizers(self.model, config)
        self._test = dataset.test.pixels[:validation_images]

    def _generator(self, step: int) -> torch.Generator:
        # The CPU's generator takes 32 bits; a large odd factor keeps the seeds' streams apart.
        return torch.Generator().manual_seed((self.config.seed * 2_654_435_761 + step + 2) % 2**32)

    @flush_subnormals()
    def step(self) -> tuple[float, float]:
        """One optimizer step; returns the loss and the root mean square of the logits, over all processes.

        Raises:
            TrainingError: the loss is not finite, the logits ran away, memory ran out, or another process was lost.
        """
        try:
            with self._deterministic():
                loss, rms = self._agree(*self._forward_and_backward())
                self._refuse_runaway(loss, rms)
                for optimizer, _ in self._optimizers:
                    optimizer.step()
                hold_logits(self.model, rms, self.config.noise_std)
        except torch.OutOfMemoryError as error:
            raise TrainingError("out of GPU memory: train with a smaller --batch-size") from error
        except RuntimeError as error:
            if self.processes == 1:
                raise
            self._raise(f"another process was lost, or could not be reached: {reason(error)}")
        self.step_done += 1
        return loss, rms

    def _forward_and_backward(self) -> tuple[Tensor, Tensor]:
        """Loss and root mean square of this process's share; leaves gradients averaged over the processes."""
        clean, x, noise = (part.to(self.device) for part in self._draw(self.step_done))
        with self._autocast():
            loss, rms = self._objective(x, clean, noise)
        factor = self.config.lr_factor(self.step_done)
        for optimizer, peak in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return loss.detach(), rms

    def _agree(self, loss: Tensor, rms: Tensor) -> tuple[float, float]:
        """Both over all processes, which also learn here whether one was asked to stop."""
        if self.processes == 1:
            self.stopping = self.stop_asked
            return float(loss), float(rms)
        totals = torch.stack([loss, rms.square(), rms.new_tensor(self.stop_asked)])
        dist.all_reduce(totals)
        mean_loss, mean_square, stop = (totals / self.processes).tolist()
        self.stopping = stop > 0
        return mean_loss, math.sqrt(mean_square)

    def _refuse_runaway(self, loss: float, rms: float) -> None:
        number = self.step_done + 1
        if not (math.isfinite(loss) and math.isfinite(rms)):
            self._raise(f"collapsed at step {number}: the loss is not finite; {self._advice()}")
        if rms > self._runaway_rms:
            self._raise(f"collapsed at step {number}: the logits ran away to {rms:.3g}, far above the noise; {self._advice()}")

    def _raise(self, message: str) -> NoReturn:
        """Raise what all processes found: the first one says it."""
        raise TrainingError(message) if self.rank == 0 else peer_error(TrainingError.exit_code)

    def _draw(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """The step's batch, of which this process takes its share: clean and noisy images in [0, 1], noise for the logits."""
        config, generator = self.config, self._generator(step)
        share = slice(*(config.batch_size // self.processes * (self.rank + i) for i in (0, 1)))
        pixels = self.dataset.train.batch(config.batch_size, generator)
        if self.device.type == "cuda":
            # A CPU takes longer to draw the noise than a GPU takes for the step.
            pixels, generator = pixels.to(self.device), torch.Generator(self.device).manual_seed(generator.initial_seed())
        clean = pixels.float().div_(255)
        draw = partial(torch.randn, generator=generator, device=clean.device)
        noise = draw((len(clean), config.bits, *clean.shape[2:])).mul_(config.noise_std)
        x = clean
        if config.input_noise:
            spread = config.input_noise - config.input_noise_least
            std = torch.rand((len(clean), 1, 1, 1), generator=generator, device=clean.device) * spread + config.input_noise_least
            x = (clean + std / 255 * draw(clean.shape)).clamp_(0, 1)
        first, second, third = (part[share].contiguous(memory_format=torch.channels_last) for part in (clean, x, noise))
        return first, second, third

    def _deterministic(self) -> AbstractContextManager[Any]:
        """On CUDA, the same losses for the same seed: cuDNN's fastest algorithms sum in any order."""
        if self.device.type != "cuda":
            return nullcontext()
        cudnn = torch.backends.cudnn
        return cast(
            AbstractContextManager[Any],
            cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=cudnn.allow_tf32),
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def validate(self) -> float:
        """Mean PSNR in dB of the binarized 8-bit reconstructions of the first test images.

        From `warmup` + 50 steps on, and at the end of a shorter run, it also looks for a collapse.

        Raises:
            TrainingError: every reconstruction is the same image.
        """
        # All processes hold the same weights; the first one's verdict counts, lest they part over a rounding.
        verdict = torch.zeros(2, dtype=torch.float64)
        result = self._purify(self._test)
        verdict[0] = mean_psnr(self._test, result)
        verdict[1] = _variation(result) < COLLAPSED * _variation(self._test)
        if self.processes > 1:
            verdict = verdict.to(self.device)
            dist.broadcast(verdict, 0)
        measured, constant = verdict.tolist()
        if constant and self.step_done >= min(self.config.warmup + 50, self.config.steps):
            image = "black" if result.float().mean() < 1 else "constant"
            self._raise(f"collapsed at step {self.step_done}: every image is rebuilt as one {image} image; {self._advice()}")
        return float(measured)

    def measure(self, count: int) -> dict[str, Any]:
        """Mean PSNR in dB ("psnr_db") and SSIM ("ssim") of the binarized 8-bit reconstructions of the first test images.

        Args:
            count: how many of them at most; "test_images" in the result says how many there were.
        """
        test = self.dataset.test.pixels[:count]
        result = torch.cat([self._purify(part) for part in torch.split(test, 256)])
        similarity = sum(ssim(a[None], b[None]) for a, b in zip(test, result, strict=True)) / len(test)
        return {"psnr_db": round(mean_psnr(test, result), 4), "ssim": round(similarity, 5), "test_images": len(test)}

    def _purify(self, images: Tensor) -> Tensor:
        color, gray = (self.model, None) if self.config.channels == 3 else (None, self.model)
        return Purifier(color, gray).purify(images)

    def _advice(self) -> str:
        adam = self.config.optimizer == "adam"
        return f"train again with a lower --lr (such as {self.config.peak_lr / 3:.2g}), a longer --warmup" + ", or --optimizer muon" * adam

    def run(self, *, validate_every: int = 100) -> Iterator[Report]:
        """Train to the end, or to the step in which it was asked to stop, yielding a report a step.

        Args:
            validate_every: steps between measurements of PSNR; the last step is always measured.

        Raises:
            TrainingError: as `step` and `validate` do.
        """
        began, first = time.perf_counter(), self.step_done
        while self.step_done < self.config.steps and not self.stopping:
            loss, rms = self.step()
            due = self.step_done % validate_every == 0 or self.step_done == self.config.steps
            measured = self.validate() if due else None
            rate = (self.step_done - first) * self.config.batch_size / (time.perf_counter() - began)
            yield Report(self.step_done, loss, rms, measured, rate)

    def state(self) -> dict[str, Tensor]:
        """Weights and the optimizers' moments, by name."""
        return checkpoint.gather(self.model, [optimizer for optimizer, _ in self._optimizers])

    def load_state(self, state: dict[str, Tensor], step: int) -> None:
        """Continue from what `state()` returned after `step` steps.

        Raises:
            KeyError, RuntimeError: something is missing, or of another shape.
        """
        checkpoint.scatter(state, self.model, [optimizer for optimizer, _ in self._optimizers], moments=step > 0)
        self.step_done = step


def _variation(images: Tensor) -> float:
    """How much images (N, C, H, W) differ from each other, in 8-bit levels; a single one, its pixels."""
    values = images.float()
    return float(values.std(dim=0).mean() if len(values) > 1 else values.std())


@torch.no_grad()
def _logit_rms(model: ComDefend, images: Tensor) -> float:
    return float(model.com(images.float().div(255)).square().mean().sqrt())


def _continued(start: ComDefend, architecture: Architecture) -> ComDefend:
    """A copy of `start` that can be trained."""
    if start.architecture != architecture:
        raise UsageError(f"the weights to start from are for {start.architecture}, not {architecture}: match --bits and the data")
    model = ComDefend(architecture)
    model.load_state_dict(start.state_dict())
    return model


def make_optimizers(model: ComDefend, config: TrainConfig) -> list[tuple[torch.optim.Optimizer, float]]:
    """Optimizers, each with its peak learning rate.

    Muon takes the kernels between each network's first and last layer: on those two, it lets the logits run away.
    """
    if config.optimizer == "adam":
        return [(torch.optim.Adam(model.parameters(), config.peak_lr), config.peak_lr)]
    inner = [
        cast(nn.Parameter, layer.weight)
        for network in (model.com, model.rec)
        for layer in list(network)[2:-1:2]
        if isinstance(layer, nn.Conv2d)
    ]
    chosen = {id(parameter) for parameter in inner}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    beside = ADAM_BESIDE_MUON * config.peak_lr / DEFAULT_LR["muon"]
    return [(Muon(inner, config.peak_lr), config.peak_lr), (torch.optim.Adam(rest, beside, betas=(0.9, 0.99)), beside)]


def save_checkpoint(path: Path, trainer: Trainer, history: list[Report]) -> None:
    """Write all of a run's state to a safetensors file, atomically, replacing the one before.

    Raises:
        ComdefendError: it cannot be written.
    """
    checkpoint.save_checkpoint(path, trainer, history, processes=trainer.processes)


def checkpoint_is_final(path: Path) -> bool:
    """Whether a checkpoint is of a run that has done all its steps, and has only its results left to write.

    Raises:
        TrainingError: there is no checkpoint, or it cannot be read.
    """
    return checkpoint.is_final(path, COMMAND)


def load_checkpoint(path: Path, trainer: Trainer) -> list[Report]:
    """Put a run where its checkpoint left it, and return its history.

    Raises:
        TrainingError: there is no checkpoint, it cannot be read, or it is of a run with other settings.
    """
    return [Report(**report) for report in checkpoint.load_checkpoint(path, trainer, COMMAND)]
