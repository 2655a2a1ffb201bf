"""Images with labels: data sets, a folder a class, labels.csv."""

from __future__ import annotations

from pathlib import Path

import formats
import numpy as np
import pytest
import torch
from conftest import photo
from PIL import Image

from comdefend_cli.data.labelled import load_labelled
from comdefend_cli.errors import DatasetError, UsageError


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Two classes of crops, and a file that is no image."""
    for index, crop in enumerate(formats.cuts(6, 32)):
        save(tmp_path / "data" / ("cup", "astronaut")[index % 2] / f"{index}.png", crop)
    (tmp_path / "data" / "cup" / "notes.txt").write_text("no image")
    (tmp_path / "data" / "cup" / "broken.png").write_bytes(b"\x89PNG")
    return tmp_path / "data"


def test_the_test_split_of_a_data_set(tmp_path: Path) -> None:
    """CIFAR-10's test images come with their labels, in an order that the seed decides."""
    formats.write(tmp_path / "cifar-10-batches-py", formats.cifar_files(8))
    first, again, other = (load_labelled("cifar10", tmp_path, seed=seed) for seed in (0, 0, 1))
    assert first.classes[3] == "cat" and len(first) == 8
    assert torch.equal(first.pixels, again.pixels) and not torch.equal(first.pixels, other.pixels)
    shown = formats.cuts(48, 32)[40:]
    for pixels, label in zip(first.pixels, first.labels, strict=True):
        place = next(i for i, crop in enumerate(shown) if np.array_equal(crop, pixels.permute(1, 2, 0).numpy()))
        assert int(label) == (5 + place) % 10


def test_a_folder_a_class(classes: Path) -> None:
    """Sub-folders are classes by their sorted names; what cannot be read is counted."""
    data = load_labelled(str(classes), Path())
    assert data.classes == ("astronaut", "cup") and len(data) == 6 and data.skipped == 1
    crops = formats.cuts(6, 32)
    for pixels, label in zip(data.pixels, data.labels, strict=True):
        place = next(i for i, crop in enumerate(crops) if np.array_equal(crop, pixels.permute(1, 2, 0).numpy()))
        assert data.classes[int(label)] == ("cup", "astronaut")[place % 2]


def test_labels_in_a_table(classes: Path) -> None:
    """labels.csv goes before sub-folders, with or without a line of heads."""
    for heads in ("", "file,class,name\n"):
        (classes / "labels.csv").write_text(heads + "cup/0.png,7,mug\nastronaut/1.png,2,person\n")
        data = load_labelled(str(classes), Path())
        assert sorted(data.labels.tolist()) == [2, 7] and data.classes[7] == "mug" and data.classes[0] == "0"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("../secret.png,1\n", "outside the folder"),
        ("cup/0.png,-1\n", "label below 0"),
        ("cup/0.png\n", "each line is: file, class index"),
        ("cup/0.png,cat\ncup/2.png,dog\n", "cannot read the labels"),
        ("", "names no images"),
    ],
)
def test_tables_that_are_refused(classes: Path, table: str, message: str) -> None:
    """A table that is no table, or that names files elsewhere, is one line of an error."""
    (classes / "labels.csv").write_text(table)
    with pytest.raises(DatasetError, match=message):
        load_labelled(str(classes), Path())


def test_images_of_several_sizes_need_one(tmp_path: Path) -> None:
    """Without a size they are refused, with one they are scaled and cropped at the centre."""
    save(tmp_path / "a" / "wide.png", photo("coffee.png"))
    save(tmp_path / "b" / "square.png", photo("astronaut.png"))
    with pytest.raises(DatasetError, match="give one --size"):
        load_labelled(str(tmp_path), Path())
    data = load_labelled(str(tmp_path), Path(), size=64)
    assert data.pixels.shape == (2, 3, 64, 64)
    # The mean colour of the centre square survives.
    centre = photo("coffee.png")[:, 100:500].mean((0, 1))
    assert data.pixels[int((data.labels == 0).nonzero())].float().mean((1, 2)).numpy() == pytest.approx(centre, abs=2)


@pytest.mark.parametrize(("options", "message"), [({"limit": 0}, "at least 1"), ({"size": 4}, "at least 8")])
def test_settings_that_cannot_be(tmp_path: Path, options: dict[str, int], message: str) -> None:
    """A limit or size out of range is said before anything is read."""
    with pytest.raises(UsageError, match=message):
        load_labelled("cifar10", tmp_path, **options)  # type: ignore[arg-type]


def test_nothing_there(tmp_path: Path) -> None:
    """A name that is neither a data set nor a folder, or that none can have, and a folder without classes."""
    for name in ("nonsense", "", "x" * 300):
        with pytest.raises(DatasetError, match="no such data set or folder"):
            load_labelled(name, tmp_path)
    with pytest.raises(DatasetError, match=r"neither labels\.csv nor"):
        load_labelled(str(tmp_path), tmp_path)
