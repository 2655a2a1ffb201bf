"""Training the networks of other defences, for comparison."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from comdefend_cli.data.sources import Dataset
from comdefend_cli.training.classifier_config import BaselineConfig
from comdefend_cli.training.loop import Trainer
from comdefend_cli.training.optim import pair_with_muon

#: Adam's peak rate for what Muon does not take, as a share of Muon's.
ADAM_SHARE = 0.1


class BaselineTrainer(Trainer):
    """Trains a network by its own `loss`; the same seed on the same machine gives the same weights.

    Args:
        model: with new weights.
        kernels: those of its parameters that Muon takes.
        config: the run's settings.
        dataset: images to learn from and to measure on.
        device: where to train.

    Attributes:
        kind: "pixelcnn" or "hgd".
    """

    kind: ClassVar[str]
    config: BaselineConfig
    #: Test images that are measured on the way, and for the record at the end.
    quick, thorough = 64, 512

    def __init__(
        self, model: nn.Module, kernels: list[nn.Parameter], config: BaselineConfig, dataset: Dataset, device: torch.device
    ) -> None:
        optimizers = pair_with_muon(partial(torch.optim.Adam, lr=ADAM_SHARE * config.lr, betas=(0.9, 0.99)), model, kernels, config.lr)
        super().__init__(config, dataset, device, model, optimizers, steps=config.steps, schedule=config.lr_factor)

    @abstractmethod
    def loss(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """The loss, a scalar with gradient.

        Args:
            pixels: the step's images, uint8 (N, C, H, W), on the CPU.
            generator: of all that is random in it.
        """

    @abstractmethod
    def measure(self, count: int) -> float:
        """How good the network is on the first `count` test images, in `unit`."""

    def losses(self) -> dict[str, Tensor]:
        """That of the step's batch."""
        generator = self.generator(self.step_done + 1)
        self.model.train()
        return {"loss": self.loss(self.dataset.train.batch(self.config.batch_size, generator), generator)}

    def validate(self) -> float:
        """What is measured on the way."""
        return self.measure(self.quick)

    def record(self) -> dict[str, Any]:
        """As every trainer's, with what is measured at the end."""
        count = min(self.thorough, len(self.dataset.test))
        return {**super().record(), "measured": round(self.measure(count), 4), "unit": self.unit, "test_images": count}
