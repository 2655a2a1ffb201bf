"""The purifier as a preprocessing defence in ART: `python examples/attack_with_art.py` (needs `comdefend-cli[evaluate]`)."""

from art.attacks.evasion import ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from tiny import PHOTOGRAPHS, held_out_images, train_classifier
from torch import nn

from comdefend_cli import Purifier
from comdefend_cli.integrations.art import ComDefendPreprocessor


def main() -> None:
    """Attack the classifier alone, and with the purifier in front, whose straight-through gradient ART then follows."""
    classifier = train_classifier()
    x, y = (values.numpy() for values in held_out_images(12))
    purifier = Purifier.from_pretrained(device="cpu")
    for name, defences in (("undefended", []), ("defended", [ComDefendPreprocessor(purifier)])):
        estimator = PyTorchClassifier(
            classifier,
            nn.CrossEntropyLoss(),
            input_shape=x.shape[1:],
            nb_classes=len(PHOTOGRAPHS),
            clip_values=(0.0, 1.0),
            preprocessing_defences=defences,
            device_type="cpu",
        )
        attack = ProjectedGradientDescent(estimator, eps=8 / 255, eps_step=2 / 255, max_iter=4, verbose=False)
        for what, images in (("clean", x), ("under PGD at 8/255", attack.generate(x, y))):
            right = (estimator.predict(images).argmax(1) == y).mean()
            print(f"{name:10} {what:18} {right:4.0%} of {len(x)} images")


if __name__ == "__main__":
    main()
