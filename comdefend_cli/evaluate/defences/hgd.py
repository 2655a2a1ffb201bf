"""HGD, the high-level representation guided denoiser (Liao et al., CVPR 2018): a U-Net that predicts the noise of an attack.

    x (N, C, H, W) in [0, 1]
      |  per level: two 3x3 convolutions with BatchNorm and ReLU; all but the first level halve the size
      v
    features at 1, 1/2, 1/4 of the size
      |  from the smallest up: enlarge, join with the level above, two 3x3 convolutions
      v
    1x1 convolution: dx, the negative noise;  result x + dx

This is their DUNET, narrower so that a CPU trains it. It is trained with their LGD loss: the L1
distance between a classifier's logits on the clean image and on the denoised adversarial one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, l1_loss

from comdefend_cli.classifiers.signed_gradient import signed_gradient
from comdefend_cli.data.sources import Dataset
from comdefend_cli.errors import UsageError
from comdefend_cli.evaluate.defences.base import Defence
from comdefend_cli.evaluate.defences.network_files import StoredNetwork, load_network
from comdefend_cli.training.baseline import BaselineTrainer
from comdefend_cli.training.classifier_config import BaselineConfig
from comdefend_cli.training.loop import fix_seed

KIND = "hgd"
#: Most L-infinity distance of the attacks it is trained on, in 8-bit levels, and steps of the iterative one.
EPSILON, BIM_STEPS = 16, 4
#: Of the FGSM attack that progress is measured on.
MEASURED_EPSILON = 8

#: From images (N, C, H, W) in [0, 1] and labels (N,) to adversarial images.
Attack = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class HGDArchitecture:
    """What a weight file must say to rebuild its network.

    Attributes:
        channels: of the images, 1 or 3.
        widths: features at each level, from the full size down.

    Raises:
        ValueError: a value out of range, or no whole number.
    """

    channels: int = 3
    widths: tuple[int, ...] = (32, 48, 64)

    def __post_init__(self) -> None:
        if type(self.channels) is not int or self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, not {self.channels}")
        if not 1 <= len(self.widths) <= 6 or not all(type(width) is int and 1 <= width <= 512 for width in self.widths):
            raise ValueError(f"widths must be 1 to 6 whole numbers from 1 to 512, not {self.widths}")


def _two_layers(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for into, step in ((inputs, stride), (outputs, 1)):
        layers += [nn.Conv2d(into, outputs, 3, step, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class HGD(nn.Module):
    """The network; it takes images of any size."""

    def __init__(self, architecture: HGDArchitecture | None = None) -> None:
        super().__init__()
        self.architecture = shape = architecture or HGDArchitecture()
        widths = shape.widths
        self.down = nn.ModuleList(
            _two_layers(inputs, outputs, 2 if level else 1)
            for level, (inputs, outputs) in enumerate(zip((shape.channels, *widths), widths, strict=False))
        )
        self.up = nn.ModuleList(_two_layers(below + own, own) for own, below in pairwise(widths))
        self.leave = nn.Conv2d(widths[0], shape.channels, 1)
        # Nothing is changed before something is learnt.
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(cast(Tensor, self.leave.bias))

    def forward(self, x: Tensor) -> Tensor:
        """The denoised images, float32 (N, C, H, W) in [0, 1], of x, the same."""
        features = []
        h = x - 0.5
        for level in self.down:
            h = level(h)
            features.append(h)
        for own, level in reversed(list(zip(features, self.up, strict=False))):
            larger = interpolate(h, size=own.shape[2:], mode="bilinear", align_corners=False)
            h = level(torch.cat([larger, own], dim=1))
        noise: Tensor = self.leave(h).float()
        return (x + noise).clamp(0, 1)


class HGDDefence(Defence):
    """HGD as a defence at test time; it knows the classifier that it was trained with.

    Args:
        name: canonical spec.
        path: weight file of `comdefend train-baseline hgd`.
        device: where to compute, in float32.

    Raises:
        UsageError, WeightsError: the file is not there or cannot be read.
    """

    gradients: ClassVar[tuple[str, ...]] = ("straight-through",)

    def __init__(self, name: str, path: Path, device: torch.device) -> None:
        loaded = load(path)
        record = {"defence": KIND, "weights": path.name, "sha256": loaded.sha256, "classifier": loaded.training.get("classifier")}
        super().__init__(name, record)
        self.model = loaded.model.to(device)

    def purify(self, x: Tensor) -> Tensor:
        """The denoised images, differentiable.

        Raises:
            UsageError: images of another number of channels than the network's.
        """
        channels = self.model.architecture.channels
        if x.shape[1] != channels:
            raise UsageError(f"{self.name}: its network is for {channels} channels, the images have {x.shape[1]}")
        result: Tensor = self.model(x.to(self.model.leave.weight.device, torch.float32))
        return result.to(x)


class HGDTrainer(BaselineTrainer):
    """Trains HGD on adversarial images of a classifier.

    Args:
        config: the run's settings.
        dataset: clean images; their labels are not read, the classifier's own predictions stand for them.
        device: where to train.
        classifier: in evaluation mode, from (N, C, H, W) in [0, 1] to logits; it is not changed.
        classifier_record: what the weight file should say of it: name and SHA-256.
        attack: makes the images to train on; None for FGSM and BIM, a batch each at random, with every image's
            epsilon drawn from 1 to `EPSILON` levels.
        architecture: of the network.
    """

    command: ClassVar[str] = f"comdefend train-baseline {KIND}"
    kind: ClassVar[str] = KIND
    model: HGD
    unit: ClassVar[str] = f"% predicted as if clean under FGSM {MEASURED_EPSILON}/255"

    def __init__(
        self,
        config: BaselineConfig,
        dataset: Dataset,
        device: torch.device,
        classifier: nn.Module,
        *,
        classifier_record: dict[str, str] | None = None,
        attack: Attack | None = None,
        architecture: HGDArchitecture | None = None,
    ) -> None:
        with fix_seed(config.seed):
            model = HGD(architecture or HGDArchitecture(dataset.train.channels))
        kernels = [cast(nn.Parameter, module.weight) for module in model.modules() if isinstance(module, nn.Conv2d)][1:-1]
        super().__init__(model, kernels, config, dataset, device)
        self.classifier = classifier.to(device)
        self._classifier_record = classifier_record or {}
        self._attack = attack

    @property
    def settings(self) -> dict[str, Any]:
        """With the classifier that it is trained on."""
        return {**super().settings, "classifier": self._classifier_record.get("sha256") or self._classifier_record.get("name", "")}

    def loss(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """L1 distance of the logits (their LGD loss)."""
        clean = self._on_device(pixels)
        with torch.no_grad(), self.autocast():
            wanted = self.classifier(clean).float()
        attacked = (self._attack or partial(self._signed, generator))(clean, wanted.argmax(1))
        with self.autocast():
            return l1_loss(self.classifier(self.model(attacked)).float(), wanted)

    def _on_device(self, pixels: Tensor) -> Tensor:
        return pixels.to(self.device).float().div(255).contiguous(memory_format=torch.channels_last)

    def _signed(self, generator: torch.Generator, x: Tensor, y: Tensor) -> Tensor:
        levels = torch.randint(1, EPSILON + 1, (len(x), 1, 1, 1), generator=generator)
        steps = BIM_STEPS if torch.rand((), generator=generator) < 0.5 else 1
        return signed_gradient(self.classifier, x, y, levels.to(x) / 255, steps, self.autocast)

    def measure(self, count: int) -> float:
        """Share of attacked and denoised test images that the classifier sees as it sees the clean ones, in percent."""
        self.model.eval()
        test = self.dataset.test.pixels[:count]
        alike = 0
        for pixels in torch.split(test, 64):
            clean = self._on_device(pixels)
            with torch.no_grad(), self.autocast():
                wanted = self.classifier(clean).argmax(1)
            epsilon = torch.full((len(clean), 1, 1, 1), MEASURED_EPSILON / 255, device=self.device)
            attacked = signed_gradient(self.classifier, clean, wanted, epsilon, 1, self.autocast)
            with torch.no_grad(), self.autocast():
                alike += int((self.classifier(self.model(attacked)).argmax(1) == wanted).sum())
        return 100 * alike / len(test)

    def record(self) -> dict[str, Any]:
        """As every trainer's, with the classifier and the attacks."""
        attacks = "given" if self._attack else f"fgsm and bim of {BIM_STEPS} steps, epsilon 1 to {EPSILON}"
        return {**super().record(), "classifier": self._classifier_record, "attacks": attacks}


def load(path: Path) -> StoredNetwork[HGD]:
    """Read a weight file; raises as :func:`.network_files.load_network`."""
    return load_network(path, KIND, lambda fields: HGD(HGDArchitecture(**{**fields, "widths": tuple(fields["widths"])})))
