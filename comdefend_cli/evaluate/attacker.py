"""Adversarial images: made for a classifier or a whole system, brought within epsilon, and rounded to 8 bits as saved files are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from comdefend_cli import __version__
from comdefend_cli.classifiers.loading import Classifier
from comdefend_cli.data.labelled import Labelled
from comdefend_cli.evaluate.attacks.catalogue import Attack, find_versions
from comdefend_cli.evaluate.attacks.victim import clip_to_ball
from comdefend_cli.evaluate.cache import Cache, hash_identity
from comdefend_cli.evaluate.cells import GRAY_BOX, say_epsilon
from comdefend_cli.evaluate.protocol import Protocol
from comdefend_cli.evaluate.systems import System

#: By what the smallest perturbations are multiplied until they outlast rounding to 8 bits.
LENGTHS = (1.0, 1.1, 1.2, 1.35, 1.5, 2.0, 3.0, 4.0, 8.0)
#: Called with what is being measured, and how many images of how many are done.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Attacker:
    """Makes adversarial images, float32 (N, C, H, W) in [0, 1] on the CPU.

    Attributes:
        protocol: its settings.
        data: the images to attack; each threat model takes the first ones, as many as its limit says.
        cache: of grey-box images, which many cells share.
        device: where the classifiers are.
        progress: called as attacks go on.
    """

    protocol: Protocol
    data: Labelled
    cache: Cache
    device: torch.device
    progress: Progress

    def identify(self, attack: Attack | None, epsilon: float | None, n: int) -> dict[str, Any]:
        """What decides adversarial images beside the model: data, attack, libraries, seed."""
        return {
            "data": self.data.sha256,
            "n": n,
            "attack": attack and {"name": attack.name, "settings": attack.settings, "version": find_versions()[attack.library]},
            "epsilon": epsilon if epsilon is None else float(epsilon),  # 2 and 2.0 are the same distance.
            "float": self.protocol.float_pixels,
            **({"lengths": LENGTHS} if self.lengthens(attack) else {}),
            "seed": self.protocol.seed,
            "batch": self.protocol.batch,
            "device": self.device.type,
            "versions": {"torch": torch.__version__, "comdefend": __version__},
        }

    def make_gray_box(self, classifier: Classifier, attack: Attack, epsilon: float) -> Tensor:
        """For the classifier alone; from the cache where they are there."""
        # An attack that seeks the smallest perturbation needs to be run once for all epsilons.
        reach = 255.0 if attack.minimum_norm else epsilon
        key = hash_identity({"pictures": GRAY_BOX, "classifier": classifier.sha256, **self.identify(attack, reach, len(self.data))})
        made = self.cache.read_images(key, self.data.pixels.shape)
        if made is None:
            made = self._run(attack, classifier.model, self.data, reach, f"{attack.title} on {classifier.name}")
            if self.lengthens(attack):
                made = self._lengthen(classifier.model, made)
            # Bytes hold all of it where it will be rounded anyway, but not before it is brought within epsilon.
            exact = self.protocol.float_pixels or attack.minimum_norm
            self.cache.write_images(key, made if exact else self._round(made, self.data, epsilon).mul(255).round().byte())
        if made.dtype == torch.uint8:
            return made.float() / 255
        return self._round(clip_to_ball(made, self.data.floats(), epsilon / 255), self.data, epsilon)

    def make_adaptive(self, system: System, attack: Attack, gradient: str, epsilon: float, data: Labelled) -> Tensor:
        """For the system, whose defence is known to the attacker, through one of its gradients."""
        system.seed(self.protocol.seed, attacker=True)
        model = system.expose(gradient, self.protocol.eot)
        label = f"{attack.title} through {system.defence.name}, {gradient} gradient"
        return self._round(self._run(attack, model, data, epsilon, label), data, epsilon)

    def make_black_box(self, system: System, attack: Attack, epsilon: float, data: Labelled) -> Tensor:
        """For the system, by its answers alone."""
        label = f"{attack.title} on {system.defence.name}"
        return self._round(self._run(attack, system.deploy(), data, epsilon, label), data, epsilon)

    def lengthens(self, attack: Attack | None) -> bool:
        """Whether what the attack finds is made longer until it outlasts rounding."""
        return attack is not None and attack.minimum_norm and not self.protocol.float_pixels

    def _run(self, attack: Attack, model: nn.Module, data: Labelled, epsilon: float, label: str) -> Tensor:
        """Adversarial images for `model`, as the attack leaves them."""
        x, y, done = data.floats().to(self.device), data.labels.to(self.device), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self.progress(label if attack.minimum_norm else f"{label}, {say_epsilon(epsilon)}", done, len(data))

        advance(0)
        return attack.run(model, x, y, epsilon / 255, seed=self.protocol.seed, batch=self.protocol.batch, progress=advance).cpu()

    @torch.no_grad()
    def _lengthen(self, model: nn.Module, made: Tensor) -> Tensor:
        """Smallest perturbations, each by the first of `LENGTHS` at which it still fools the classifier after rounding to 8 bits.

        They end just beyond a class border, and rounding alone would undo half of them: an attacker who saves files looks to that.
        """
        clean = self.data.floats()
        result = made.clone()
        standing = torch.arange(len(made))
        for length in LENGTHS:
            tried = (clean + length * (made - clean)).clamp(0, 1)[standing]
            result[standing] = tried
            parts = torch.split((tried * 255).round() / 255, self.protocol.batch)
            predicted = torch.cat([model(part.to(self.device)).argmax(1).cpu() for part in parts])
            standing = standing[predicted == self.data.labels[standing]]
            if len(standing) == 0:
                break
        result[standing] = made[standing]  # Nothing helped these.
        return result

    def _round(self, images: Tensor, data: Labelled, epsilon: float) -> Tensor:
        """The nearest 8-bit levels within epsilon, as saved files have them, unless the protocol wants floats."""
        if self.protocol.float_pixels:
            return images
        # Rounding alone could step out of the ball where epsilon is no whole number.
        clean, reach = data.pixels.float(), math.floor(epsilon)
        levels = torch.max(torch.min((images * 255).round(), clean + reach), clean - reach)
        return levels.clamp(0, 255) / 255
