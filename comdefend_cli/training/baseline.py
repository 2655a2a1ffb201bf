"""The loop that trains the networks of other defences, for comparison: settings, reports, the optimizers."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from comdefend_cli.data.sources import Dataset
from comdefend_cli.errors import TrainingError
from comdefend_cli.runtime.device import flush_subnormals
from comdefend_cli.training.config import BaselineConfig
from comdefend_cli.training.optim import Muon

#: Adam's peak rate for what Muon does not take, as a share of Muon's.
ADAM_SHARE = 0.1


@dataclass(frozen=True)
class BaselineReport:
    """What one step showed.

    Attributes:
        step: steps done.
        loss: of the step's batch.
        measured: on test images, in the trainer's `unit`; None where it was not measured.
        images_per_second: since the run began.
    """

    step: int
    loss: float
    measured: float | None
    images_per_second: float


class BaselineTrainer:
    """A training run, one step at a time; the same seed on the same machine gives the same weights.

    Args:
        model: with new weights.
        kernels: those of its parameters that Muon takes.
        config: the run's settings.
        dataset: images to learn from and to measure on.
        device: where to train.

    Attributes:
        kind: "pixelcnn" or "hgd".
        unit: of what `measure` returns.
        model: the network, float32, on the device.
        step_done: steps done.

    Subclasses override `loss` and `measure`.
    """

    kind: ClassVar[str]
    unit: ClassVar[str]
    #: Test images that `run` measures on, and that `record` measures on at the end.
    quick, thorough = 64, 512

    def __init__(
        self, model: nn.Module, kernels: list[nn.Parameter], config: BaselineConfig, dataset: Dataset, device: torch.device
    ) -> None:
        self.config, self.dataset, self.device = config, dataset, device
        self.model = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        chosen = {id(kernel) for kernel in kernels}
        rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
        beside = ADAM_SHARE * config.lr
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = [
            (Muon(kernels, config.lr), config.lr),
            (torch.optim.Adam(rest, beside, betas=(0.9, 0.99)), beside),
        ]
        self.step_done = 0

    def loss(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """The loss, a scalar with gradient.

        Args:
            pixels: the step's images, uint8 (N, C, H, W), on the CPU.
            generator: of all that is random in it.
        """
        raise NotImplementedError

    def measure(self, count: int) -> float:
        """How good the network is on the first `count` test images, in `unit`."""
        raise NotImplementedError

    @flush_subnormals()
    def step(self) -> float:
        """One optimizer step; returns the loss.

        Raises:
            TrainingError: the loss is not finite.
        """
        generator = self._generator(self.step_done)
        self.model.train()
        loss = self.loss(self.dataset.train.batch(self.config.batch_size, generator), generator)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(f"collapsed at step {self.step_done + 1}: the loss is not finite; train again with a lower --lr")
        parameters = list(self.model.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        for optimizer, peak in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * self.config.lr_factor(self.step_done)
            optimizer.step()
        self.step_done += 1
        return value

    def run(self, *, measure_every: int = 100) -> Iterator[BaselineReport]:
        """Train to the end, yielding a report a step; every `measure_every` steps and at the end it measures.

        Raises:
            TrainingError: as `step` does.
        """
        began, first = time.perf_counter(), self.step_done
        while self.step_done < self.config.steps:
            loss = self.step()
            rate = (self.step_done - first) * self.config.batch_size / (time.perf_counter() - began)
            due = self.step_done % measure_every == 0 or self.step_done == self.config.steps
            yield BaselineReport(self.step_done, loss, self.measure(self.quick) if due else None, rate)

    def record(self) -> dict[str, Any]:
        """How the network came to be and how good it is, for its file's header."""
        from comdefend_cli import __version__

        count = min(self.thorough, len(self.dataset.test))
        return {
            **asdict(self.config),
            "train_images": len(self.dataset.train),
            "comdefend_version": __version__,
            "torch_version": torch.__version__,
            "measured": round(self.measure(count), 4),
            "unit": self.unit,
            "test_images": count,
        }

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that networks compute in."""
        return nullcontext() if self.config.precision == "float32" else torch.autocast(self.device.type, torch.bfloat16)

    def _generator(self, step: int) -> torch.Generator:
        # The CPU's generator takes 32 bits; a large odd factor keeps the seeds' streams apart.
        return torch.Generator().manual_seed((self.config.seed * 2_654_435_761 + step + 1) % 2**32)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let PyTorch draw a network's initial weights by a seed, and leave its global stream as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
