"""Defend a classifier of your own, before and after: `python examples/defend_classifier.py`, about a minute on one core.

A small network is trained on made images (`shapes.py`), attacked, and attacked again behind the purifier, also by an attacker who knows
the purifier. The numbers are of these images; for yours, `comdefend evaluate` measures them.
"""

import torch
from shapes import make_images, train_classifier
from torch import Tensor, nn

from comdefend_cli import Purifier
from comdefend_cli.integrations import Defended

EPSILON = 8 / 255
STEPS = 10


def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Projected gradient descent (Madry et al., ICLR 2018) within `EPSILON` of x, rounded to 8 bits as a saved file is."""
    attacked = x.clone()
    for _ in range(STEPS):
        attacked.requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(attacked), y), attacked)
        attacked = attacked.detach() + EPSILON / 4 * gradient.sign()
        attacked = attacked.clamp(x - EPSILON, x + EPSILON).clamp(0, 1)
    return (attacked * 255).round() / 255


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """How many of the images are classified right, in percent."""
    with torch.no_grad():
        return 100 * float((model(x).argmax(1) == y).float().mean())


def main() -> None:
    """Train, defend, attack, print."""
    classifier = train_classifier()
    x, y = make_images(200, seed=2)

    # The purifier goes before the normalization: for a classifier with one, Defended(purifier, classifier, normalize=(mean, std)).
    defended = Defended(Purifier(device="cpu"), classifier).eval()

    attacked, adaptive = attack(classifier, x, y), attack(defended, x, y)
    print(f"{f'accuracy in % of {len(x)} images':44} alone  purified")
    for name, images in (
        ("clean", x),
        ("PGD at 8/255 on the classifier", attacked),
        ("PGD at 8/255 through purifier and classifier", adaptive),
    ):
        print(f"{name:44} {accuracy(classifier, images, y):5.1f} {accuracy(defended, images, y):9.1f}")


if __name__ == "__main__":
    main()
