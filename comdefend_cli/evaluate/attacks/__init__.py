"""Attacks on classifiers, from foolbox and ART, on one footing.

Every attack takes a model from float32 (N, C, H, W) in [0, 1] to logits, true labels and an L-infinity radius epsilon, and
gives images within it. :func:`make` makes one by name; its `settings` say all that decides what it finds.
The libraries are of the extra `evaluate`, and are imported when an attack is made.
"""

from comdefend_cli.evaluate.attacks.catalogue import NAMES, Attack, canonical, make, versions
from comdefend_cli.evaluate.attacks.victim import Expectation, gradient_is_zero, within

__all__ = ["NAMES", "Attack", "Expectation", "canonical", "gradient_is_zero", "make", "versions", "within"]
