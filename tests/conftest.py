"""What the tests share: real images, small weights, and the real command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image

from comdefend_cli.network.architecture import PaperArchitecture, ResidualArchitecture
from comdefend_cli.network.model import ComDefend
from comdefend_cli.network.weight_file import save_weights

#: Wide enough for codes that differ from pixel to pixel, small enough for hundreds of runs.
SMALL = (8,) * 8
#: The paper's networks, and those that see squares of so many pixels a side.
FAMILIES = ("paper", "residual-2", "residual-4")
#: Pixels each way that a result depends on: one a 3x3 layer, of which there are 18.
HALO = 18

#: Most tests compare with PyTorch's pixels; `auto` would take OpenVINO where it is installed.
os.environ["COMDEFEND_BACKEND"] = "torch"

#: As `comdefend_cli.runtime.extras.require` does: tests that import ONNX Runtime and OpenVINO themselves report nothing either.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


def photo(name: str) -> np.ndarray:
    """A public-domain image that scikit-image ships, uint8 (H, W, 3) or (H, W)."""
    return np.array(Image.open(Path(skimage.__file__).parent / "data" / name))


def small_model(channels: int = 3, bits: int = 12, seed: int = 0, family: str = "paper") -> ComDefend:
    """A narrow network whose random weights make codes of both values; `family` is one of `FAMILIES`."""
    torch.manual_seed(seed)
    if family == "paper":
        model = ComDefend(PaperArchitecture(channels, bits, SMALL))
    else:
        model = ComDefend(ResidualArchitecture(channels, bits, int(family[-1]), 16, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.5)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """A colour photograph, uint8 (512, 512, 3)."""
    return photo("astronaut.png")


@pytest.fixture(scope="session")
def camera() -> np.ndarray:
    """A grey photograph, uint8 (512, 512)."""
    return photo("camera.png")


@pytest.fixture(scope="session")
def family_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A weight file of a narrow three-channel network of each of `FAMILIES`."""
    folder = tmp_path_factory.mktemp("weights")
    paths = {family: folder / ("small.safetensors" if family == "paper" else f"{family}.safetensors") for family in FAMILIES}
    for family, path in paths.items():
        save_weights(path, small_model(family=family), {"data": "none"})
    return paths


@pytest.fixture(scope="session")
def small_weights(family_weights: dict[str, Path]) -> Path:
    """That of the paper's family."""
    return family_weights["paper"]


@pytest.fixture(scope="session")
def run() -> Run:
    """Run the real command in a process of its own; `stdin` is bytes, `cwd` and further variables as wanted, one that is None unset."""

    def run(*arguments: object, stdin: bytes = b"", cwd: Path | None = None, **variables: str | None) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "comdefend_cli", *map(str, arguments)]
        given = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **variables}
        environment = {name: value for name, value in given.items() if value is not None}
        return subprocess.run(command, input=stdin, capture_output=True, cwd=cwd, env=environment, check=False, timeout=300)

    return run


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing within may ask a server."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
