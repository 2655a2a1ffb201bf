"""Attack a defended classifier with foolbox: `python examples/attack_with_foolbox.py` (needs `comdefend-cli[evaluate]`)."""

import foolbox
import torch
from tiny import held_out_images, train_classifier
from torch import nn

from comdefend_cli import Purifier
from comdefend_cli.integrations import Defended


def main() -> None:
    """Projected gradient descent on the classifier alone, and through the purifier by each of its gradients."""
    classifier = train_classifier()
    x, y = held_out_images(12)
    purifier = Purifier.from_pretrained(device="cpu")
    models: dict[str, nn.Module] = {"undefended": classifier}
    for gradient in ("straight-through", "identity", "soft"):
        models[gradient] = Defended(purifier, classifier, gradient=gradient)

    attack = foolbox.attacks.LinfPGD(steps=4, rel_stepsize=0.3)
    for name, model in models.items():
        torch.manual_seed(0)  # The attack starts at a random point.
        attacked = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device="cpu")
        clean = foolbox.utils.accuracy(attacked, x, y)
        _, _, success = attack(attacked, x, y, epsilons=8 / 255)
        print(f"{name:17} clean {clean:4.0%}, under PGD at 8/255 {1 - success.float().mean().item():4.0%}, of {len(x)} images")


if __name__ == "__main__":
    main()
