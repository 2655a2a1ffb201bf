"""The same pixels as before: of all weights that ship, and of weights of released versions; and on a GPU nearly the same."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import golden
import numpy as np
import pytest
import torch

from comdefend_cli import Purifier, Settings
from comdefend_cli.network.registry import DEFAULT_COLOR, load_weights, read_registry
from comdefend_cli.runtime.machine import read_cpu

fused = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or "fma" not in read_cpu()[1], reason="the pixels are those of x86-64 with fused sums"
)
#: What version 0.1.0 itself made of `golden.make_image` with the weights of tests/kept, which it wrote.
RELEASED = {"0.1": "ee64669c7a2ed30e54c10dda6950778dff2bb17a2efcc55b260a3fabb37f58e6"}


@fused
@pytest.mark.exactness
def test_shipped_weights_make_the_pixels_that_they_made() -> None:
    """Hash by hash; a change that is meant is written down by `python tests/golden.py --renew`."""
    assert golden.list_shipped() == json.loads(golden.PIXELS.read_text())


@fused
@pytest.mark.exactness
@pytest.mark.parametrize("version", RELEASED)
def test_weights_of_released_versions_load_and_make_their_pixels(version: str) -> None:
    """A small file that the version wrote, checked by the hash in it, makes what it made there."""
    path = golden.KEPT / f"weights-{version}.safetensors"
    loaded = load_weights(str(path))
    assert loaded.header.training == {"data": "none"}
    assert golden.hash_pixels(str(path))["41x29"] == RELEASED[version]


@pytest.mark.exactness
@pytest.mark.parametrize("family", ["shipped", "paper"])
def test_pixels_do_not_depend_on_threads_tiles_or_company(family: str, small_weights: Path, request: pytest.FixtureRequest) -> None:
    """In float32, alone or in a batch, whole or in tiles, by one thread or three: byte for byte the same, with noise."""
    count = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(count))
    weights = small_weights if family == "paper" else DEFAULT_COLOR
    image = golden.make_image(70, 90, 3)
    batch = np.stack([image[::-1], image, image[:, ::-1]])
    expected = None
    for threads, tile in ((1, None), (1, 32), (3, None), (3, 40)):
        torch.set_num_threads(threads)
        settings = Settings(tile=tile, input_noise=20)
        purifier = Purifier.from_pretrained(weights, device="cpu", precision="float32", settings=settings)
        expected = purifier(image) if expected is None else expected
        assert np.array_equal(purifier(image), expected), (threads, tile)
        assert np.array_equal(purifier(batch)[1], expected), (threads, tile)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", sorted(read_registry()))
def test_cuda_makes_nearly_the_pixels_of_a_cpu(name: str) -> None:
    """In float32, one value in a hundred at most differs by more than one level: around bits of the code that fell the other way."""
    image = golden.make_image(256, 256, load_weights(name).header.architecture.channels)
    cpu, cuda = (Purifier(weights=name, device=device, precision="float32")(image).astype(int) for device in ("cpu", "cuda"))
    assert (abs(cpu - cuda) > 1).mean() <= 1e-2
