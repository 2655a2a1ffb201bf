"""ComDefend trained against attacks, in front of classifiers that stay as they are.

Outside of the paper, whose networks learn from clean images alone. Attacks are made through both networks and a classifier, so that the
attacker whom they learn from is one who knows of them (adversarial training; Madry et al., ICLR 2018).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from comdefend_cli.classifiers.signed_gradient import input_gradient
from comdefend_cli.network.model import Gradient
from comdefend_cli.training.distributed import average
from comdefend_cli.training.labelled import Exposed, LabelledTrainer, count_right

#: How far the random start of FGSM reaches, in units of epsilon (de Jorge et al., NeurIPS 2022), and all steps of PGD together.
FGSM_START, PGD_REACH = 2.0, 2.5
#: Of the rounding, see :func:`comdefend_cli.network.model.binarize`, in turns: networks that met one alone stood it and fell to the other
#: (docs/results/tried.md).
GRADIENTS: tuple[Gradient, ...] = ("soft", "straight-through")


class AdversarialTrainer(LabelledTrainer):
    """Trains ComDefend so that the classifiers behind it are right on clean and attacked images.

    The loss is that of :class:`.Objective`, plus a classifier's cross-entropy of what is rebuilt; a share of each batch is attacked.

    Args:
        config: the run's settings, with `adversarial`.
        dataset, device, classifiers, names, start: as of :class:`.LabelledTrainer`.
    """

    def losses(self) -> dict[str, Tensor]:
        """The loss on this process's part of the batch, some of it attacked; the root mean square of all logits; who is still right."""
        clean, labels, start, noise = self.draw_labelled()
        count, system = self.config.count_attacked(len(clean)), self.choose_system()
        system.gradient = GRADIENTS[self.step_done // len(self.systems) % len(GRADIENTS)]
        attacked = self._attack(system, clean[:count], labels[:count], start[:count])
        x = torch.cat([attacked, clean[count:]]).contiguous(memory_format=torch.channels_last)
        with self.autocast():
            loss, mean_square, rebuilt = self._objective.rebuild(x, clean, self.choose_noise(noise))
            logits = system.classify(rebuilt).float()
        loss = loss + self.config.label_weight * cross_entropy(logits, labels)
        average([mean_square])
        return {"loss": loss, "logit_rms": mean_square.sqrt(), "attacked_right": count_right(logits[:count], labels[:count])}

    def _attack(self, system: Exposed, x: Tensor, y: Tensor, start: Tensor) -> Tensor:
        """FGSM or PGD from a random start, through what `GRADIENTS` has in place of the rounding's slope.

        FGSM starts from more noise than epsilon and is not brought back, else training on a single step ends in networks that only
        a single step cannot break (de Jorge et al., NeurIPS 2022).
        """
        epsilon = self.config.adversarial_epsilon / 255
        if self.config.adversarial == "fgsm":
            moved = x + FGSM_START * epsilon * start
            return (moved + epsilon * input_gradient(system, moved, y, self.autocast).sign()).clamp(0, 1)
        steps = self.config.adversarial_steps
        moved = (x + epsilon * start).clamp(0, 1)
        for _ in range(steps):
            moved = moved + PGD_REACH / steps * epsilon * input_gradient(system, moved, y, self.autocast).sign()
            moved = torch.min(torch.max(moved, x - epsilon), x + epsilon).clamp(0, 1)
        return moved
