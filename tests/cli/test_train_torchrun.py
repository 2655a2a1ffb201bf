"""`comdefend train` under torchrun: two processes equal one, and an error of one ends both.

In a file of their own, since each takes both cores for a while: CI's other worker goes through the rest of `comdefend train` meanwhile.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_train_cli import RESIDUAL, cifar, list_arguments, narrow, run_process, run_torchrun

__all__ = ["cifar", "narrow"]  # Fixtures.


def expect_alike(one: Path, two: Path, *, losses: float, values: float) -> None:
    """Two runs' losses and weights differ by no more than that."""
    first, second = ([r["loss"] for r in json.loads(path.with_suffix(".json").read_text())["history"]] for path in (one, two))
    assert second == pytest.approx(first, rel=losses)
    expected, found = load_file(one), load_file(two)
    for name, tensor in expected.items():
        assert np.abs(found[name] - tensor).max() < values * max(1.0, np.abs(tensor).max()), name


@pytest.mark.slow
def test_two_processes_equal_one(narrow: Path, cifar: Path, tmp_path: Path) -> None:
    """With two processes of torchrun and the same global batch: the same losses and weights but for rounding; one of them speaks."""
    options = ["--steps", 6, "--batch-size", 4, "--validate-every", 3, "--warmup", 2, "--precision", "float32"]
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    assert run_process(narrow, *list_arguments(cifar, one), *options).returncode == 0
    done = run_torchrun(narrow, *list_arguments(cifar, two), *options)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("step 3/6") == 1
    assert json.loads(two.with_suffix(".json").read_text())["machine"]["processes"] == 2
    expect_alike(one, two, losses=1e-4, values=1e-3)


@pytest.mark.slow
def test_two_processes_share_a_mixture_s_batches(narrow: Path, cifar: Path, tmp_path: Path) -> None:
    """Of several data sets, varied, with residual networks: the same losses and weights as of one process, but for rounding.

    In bfloat16 each process rounds its share of the gradient to 8 bits, so they differ by more.
    """
    options = ["--steps", 6, "--batch-size", 4, "--warmup", 2, *RESIDUAL, "--jitter", 0.5, "--small", 0.3, "--crop", 64]
    options += ["--precision", "bfloat16"]
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    assert run_process(narrow, *list_arguments(cifar, one, ("cifar10", "drawings")), *options).returncode == 0
    done = run_torchrun(narrow, *list_arguments(cifar, two, ("cifar10", "drawings")), *options)
    assert done.returncode == 0, done.stderr
    expect_alike(one, two, losses=1e-2, values=1e-2)


@pytest.mark.slow
def test_an_error_ends_all_processes_and_is_said_once(narrow: Path, cifar: Path, tmp_path: Path) -> None:
    """Under torchrun an output that exists, which only the first process looks for, ends both soon, with one message."""
    (tmp_path / "w.safetensors").write_bytes(b"mine")
    done = run_torchrun(narrow, *list_arguments(cifar, tmp_path / "w.safetensors"), "--steps", 2, "--batch-size", 2)
    assert done.returncode != 0
    assert done.stderr.count("already exists") == 1
    assert (tmp_path / "w.safetensors").read_bytes() == b"mine"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["raise", "exit"])
def test_an_error_of_one_process_is_told_from_its_loss(narrow: Path, cifar: Path, tmp_path: Path, fault: str) -> None:
    """What the second process met in its computation is shown as it is, and the first says that it lost the other."""
    done = run_torchrun(narrow, *list_arguments(cifar, tmp_path / "w.safetensors"), "--steps", 2, "--batch-size", 2, FAULT=fault)
    assert done.returncode != 0
    assert done.stderr.count("error: another process was lost") == 1
    assert ("RuntimeError: a kernel failed" in done.stderr) == (fault == "raise")
    assert [path.name for path in tmp_path.iterdir()] == ["w.checkpoint"]
