"""Defend a classifier of your own, and see what an attacker gains who knows the purifier: `python examples/defend_classifier.py`."""

import torch
from tiny import accuracy, held_out_images, train_classifier
from torch import Tensor, nn

from comdefend_cli import Purifier
from comdefend_cli.integrations import Defended

EPSILON = 8 / 255


def fgsm(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """One step along the sign of the gradient (Goodfellow et al., 2015), within [0, 1]."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), x)
    return (x.detach() + EPSILON * gradient.sign()).clamp(0, 1)


def main() -> None:
    """Train, defend, attack, print."""
    classifier = train_classifier()
    x, y = held_out_images()
    purifier = Purifier.from_pretrained(device="cpu")
    # A classifier that wants normalized images: Defended(purifier, classifier, normalize=(mean, std)).
    defended = Defended(purifier, classifier)

    images = {"clean": x, "FGSM that knows the classifier": fgsm(classifier, x, y)}
    for gradient in ("straight-through", "identity"):
        images[f"FGSM that knows both, {gradient}"] = fgsm(Defended(purifier, classifier, gradient=gradient), x, y)
    print(f"{f'accuracy in % of {len(x)} images':40} undefended  defended")
    for name, attacked in images.items():
        print(f"{name:40} {accuracy(classifier, attacked, y):10.1f}{accuracy(defended, attacked, y):10.1f}")


if __name__ == "__main__":
    main()
