"""Integrations: defended and smoothed classifiers for attack libraries, and a transform for data loaders.

ART's preprocessor is in :mod:`comdefend_cli.integrations.art`, which alone needs the extra `[evaluate]`.
"""

from comdefend_cli.integrations.defended import Defended
from comdefend_cli.integrations.smoothed import Smoothed
from comdefend_cli.integrations.transform import PurifyTransform

__all__ = ["Defended", "PurifyTransform", "Smoothed"]
