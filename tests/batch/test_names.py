"""Small parts by themselves: names of outputs, room for images in work, threads, and time."""

from __future__ import annotations

import io
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from comdefend_cli.batch import local, rows_file
from comdefend_cli.batch.budget import Budget
from comdefend_cli.batch.options import Options
from comdefend_cli.batch.pipeline import _measure_time
from comdefend_cli.batch.plan import explain_output, find_images, name_output
from comdefend_cli.batch.storage.folder import Folder


@pytest.mark.parametrize(
    ("name", "ending", "alpha", "output", "why"),
    [
        ("a/x.jpg", None, False, "a/x.jpg", []),
        ("a/x.JPEG", ".jpg", False, "a/x.JPEG", []),
        ("a/x.jpg", ".png", False, "a/x.png", []),
        ("x.png", None, True, "x.png", []),
        ("x.psd", None, False, "x.png", ["written as PNG: PSD is not written"]),
        ("x.gif", None, False, "x.gif", []),
        ("x.gif", None, True, "x.png", ["written as PNG: GIF is written without transparency"]),
        ("x.y.ico", ".webp", True, "x.y.webp", []),
    ],
)
def test_outputs_are_called_as_their_inputs(name: str, ending: str | None, alpha: bool, output: str, why: list[str]) -> None:
    """Unless their format cannot be written, would lose transparency, or is not the one wanted; a reason is told where nobody asked."""
    assert name_output(name, ending, lambda: alpha) == output
    assert explain_output(name, output, ending) == why


def test_a_numbered_output_is_explained() -> None:
    assert explain_output("x.jpg", "x-2.jpg", None) == ["its output is numbered: another image's has its name"]


@pytest.mark.timeout(20)
def test_room_is_given_up_to_the_limit() -> None:
    """To the last bit of it, beside what others hold."""
    budget = Budget(10.0)
    budget.acquire(2.0)
    budget.acquire(2.0)
    budget.grow(2.0, 6.0)
    budget.give_back(8.0)
    budget.give_back(2.0)
    budget.acquire(10.0)


def test_threads_are_from_two_to_sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are cores, within that, for a GPU; few where the CPU is the network's."""
    for cores, threads in ((1, 2), (2, 2), (8, 8), (16, 16), (64, 16)):
        monkeypatch.setattr(local, "count_cores", lambda cores=cores: cores)
        assert local._count_threads(torch.device("cuda")) == (threads, threads)
    assert local._count_threads(torch.device("cpu")) == (2, 4)


def test_time_is_shared_by_those_it_was_spent_on() -> None:
    """Added to what each took before, also where the work failed."""
    items = [SimpleNamespace(seconds=1.0), SimpleNamespace(seconds=2.0)]
    with pytest.raises(ValueError), _measure_time(items):  # type: ignore[type-var]
        time.sleep(0.02)
        raise ValueError
    assert 1.01 <= items[0].seconds < 2 and items[1].seconds == pytest.approx(items[0].seconds + 1)


def test_what_can_be_read_is_found_whether_it_can_be_written_or_not(tmp_path: Path) -> None:
    """By the ending alone, in any case; each is given the name of its output."""
    for name in ("b.psd", "a.JPG", "c.txt", "d"):
        (tmp_path / name).write_bytes(b"")
    found, outputs = find_images(Folder(tmp_path), Folder(tmp_path / "out"), Options())
    assert dict(zip(found.names, outputs, strict=True)) == {"a.JPG": "a.JPG", "b.psd": "b.png"} and found.skipped == 2


def test_images_go_together_by_their_shape() -> None:
    """As many of them as have the pixels of a batch, and at least one."""
    engine = SimpleNamespace(_networks=SimpleNamespace(device=torch.device("cpu")))
    for shape in ((3, 2, 3), (10, 20, 1), (10**5, 10**5, 3)):
        group = local.LocalEngine.group(engine, SimpleNamespace(shape=shape))  # type: ignore[arg-type]
        assert group == (shape, max(1, local.BATCH_PIXELS["cpu"] // (shape[0] * shape[1])))


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
@pytest.mark.parametrize("strip", [1, 40, 2**20])
def test_decoded_rows_are_a_tiff(bands: int, strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands before them says all that a reader needs, for grey and colours, with alpha and without, in one strip or many."""
    monkeypatch.setattr(rows_file, "_TIFF_STRIP", strip)
    pixels = np.arange(7 * 5 * bands, dtype=np.uint8).reshape(7, 5, bands)
    image = Image.open(io.BytesIO(rows_file._make_tiff_head(5, 7, bands) + pixels.tobytes()), formats=["TIFF"])
    assert image.mode == {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[bands]
    assert np.array_equal(np.array(image).reshape(pixels.shape), pixels)
