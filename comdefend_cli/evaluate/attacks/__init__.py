"""Attacks on classifiers, from foolbox and ART, on one footing.

Every attack takes a model from float32 (N, C, H, W) in [0, 1] to logits, true labels and an L-infinity radius epsilon, and
gives images within it. `catalogue.make_attack` makes one by name; its `settings` say all that decides what it finds.
The libraries are of the extra `evaluate`, and are imported when an attack is made.
"""
