"""The settings of training runs: their schedules, and that the command line reads their defaults without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from comdefend_cli.training.classifier_config import BaselineConfig, ClassifierConfig


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20, 100])
def test_the_rate_stays_within_its_peak(steps: int) -> None:
    """Of classifiers and baselines it is above zero and at most its peak at every step, however few there are."""
    for factor in (lambda step: ClassifierConfig().lr_factor(step, steps), BaselineConfig(steps=steps).lr_factor):
        factors = [factor(step) for step in range(steps)]
        assert min(factors) > 0 and max(factors) <= 1


def test_defaults_are_read_without_torch() -> None:
    """`comdefend --help` shows them, and is to answer at once."""
    code = "import sys; from comdefend_cli.training.config import TrainConfig; print(TrainConfig.steps, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3200", "False"]
