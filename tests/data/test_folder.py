"""Folders of images as training data, and batches drawn from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from formats import cuts
from PIL import Image
from refusals import refused

from comdefend_cli.data.datasets import load_dataset
from comdefend_cli.data.sources import Crops, ImageArray

pytestmark = pytest.mark.usefixtures("no_network")
COLOR = torch.from_numpy(cuts(18, 32)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", ["no-such-set", "", "x" * 300])
def test_unknown_names_are_refused(name: str, tmp_path: Path) -> None:
    """A name that is neither a data set nor a folder lists the data sets."""
    refused(name, tmp_path, "no such data set or folder; use cifar10, fashion-mnist, mnist")


def save(path: Path, pixels: np.ndarray) -> None:
    """Write an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_a_folder_of_images_gives_crops(tmp_path: Path, astronaut: np.ndarray, camera: np.ndarray) -> None:
    """Images in folders give crops of their own pixels, grey ones as colour among colour, one in twenty for tests; others are counted."""
    for index in range(40):
        save(tmp_path / f"{index % 3}" / f"{index:02d}.png", (camera if index == 7 else astronaut)[: 40 + index, :50])
    save(tmp_path / "small.png", astronaut[:31, :100])
    (tmp_path / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (tmp_path / "notes.txt").write_text("no image")
    dataset = load_dataset(str(tmp_path), tmp_path / "unused")
    assert isinstance(dataset.train, Crops)
    assert (dataset.name, len(dataset.train), dataset.train.channels, dataset.skipped) == (f"folder:{tmp_path.name}", 38, 3, 2)
    assert dataset.test.pixels.shape == (64, 3, 32, 32) and dataset.test.pixels.dtype == torch.uint8
    assert torch.equal(dataset.test.pixels, load_dataset(str(tmp_path), tmp_path).test.pixels)
    train, test = {id(image) for image in dataset.train.images}, dataset.test.pixels
    assert len(train) == 38 and not test.eq(test[:1]).all()


def windows(image: torch.Tensor) -> set[bytes]:
    """All 32x32 squares of an image (C, H, W), and their mirror images."""
    squares = image.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    return {square.contiguous().numpy().tobytes() for both in (squares, squares.flip(3)) for square in both}


def test_crops_are_windows_drawn_by_the_generator(astronaut: np.ndarray) -> None:
    """Every crop is a window of an image or its mirror image, corners are reached, and equal generators give equal batches."""
    images = [
        torch.from_numpy(astronaut[:34, :33].copy()).permute(2, 0, 1),
        torch.from_numpy(astronaut[100:132, 50:90].copy()).permute(2, 0, 1),
    ]
    source: Any = Crops(images)
    batch = source.batch(300, torch.Generator().manual_seed(3))
    seen = {crop.contiguous().numpy().tobytes() for crop in batch}
    possible = windows(images[0]) | windows(images[1])
    assert seen <= possible and len(seen) > 0.95 * len(possible)
    assert torch.equal(batch, source.batch(300, torch.Generator().manual_seed(3)))
    assert not torch.equal(batch, source.batch(300, torch.Generator().manual_seed(4)))


def test_batches_are_images_or_their_mirror(astronaut: np.ndarray) -> None:
    """A batch of images of one size holds them or their mirror image, about half of each, drawn by the generator."""
    source = ImageArray(COLOR, torch.zeros(18, dtype=torch.int64))
    batch = source.batch(400, torch.Generator().manual_seed(0))
    straight = (batch[:, None] == COLOR).flatten(2).all(2).any(1)
    mirrored = (batch[:, None] == COLOR.flip(3)).flatten(2).all(2).any(1)
    assert bool((straight | mirrored).all()) and 140 < int(straight.sum()) < 260
    assert torch.equal(batch, source.batch(400, torch.Generator().manual_seed(0)))


def test_folders_without_enough_images_are_refused(tmp_path: Path, astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder needs two images that can be cropped, which fit into memory."""
    save(tmp_path / "a.png", astronaut[:32, :32])
    save(tmp_path / "b.png", astronaut[:20, :32])
    refused(str(tmp_path), tmp_path, "needs at least 2 readable images of 32x32 pixels or more, found 1")
    save(tmp_path / "c.png", astronaut[:32, :32])
    assert len(load_dataset(str(tmp_path), tmp_path).train) == 1
    monkeypatch.setattr("comdefend_cli.data.folder.MAX_IMAGE_BYTES", 5000)
    refused(str(tmp_path), tmp_path, "take more than .* of memory; use fewer or smaller ones")
