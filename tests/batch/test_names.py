"""Small parts by themselves: names of outputs and what is said of them, sizes by headers, threads, and time."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from comdefend_cli.batch import local, plan, rows_file
from comdefend_cli.batch.journal import open_journal
from comdefend_cli.batch.options import Options
from comdefend_cli.batch.pipeline import _measure_time
from comdefend_cli.batch.plan import explain_output, find_images, make_plan, name_output
from comdefend_cli.batch.storage.folder import Folder
from comdefend_cli.errors import ImageError, UsageError


@pytest.mark.parametrize(
    ("name", "ending", "alpha", "output", "why"),
    [
        ("a/x.jpg", None, False, "a/x.jpg", []),
        ("a/x.JPEG", ".jpg", False, "a/x.JPEG", []),
        ("a/x.jpg", ".png", False, "a/x.png", []),
        ("x.png", None, True, "x.png", []),
        ("x.webp", None, True, "x.webp", []),
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


def test_a_numbered_output_is_explained(tmp_path: Path) -> None:
    """The later of two has a 2, or the next number that nobody has."""
    assert explain_output("x.jpg", "x-2.jpg", None) == ["its output is numbered: another image's has its name"]
    for name in ("x.bmp", "x.jpg", "x.png", "y-2.jpg", "y.jpg", "y.webp"):
        (tmp_path / name).write_bytes(b"")
    options = Options(format="png", on_collision="number")
    found, outputs = find_images(Folder(tmp_path), Folder(tmp_path / "out"), options)
    assert dict(zip(found.names, outputs, strict=True)) == {
        **{"x.bmp": "x.png", "x.jpg": "x-2.png", "x.png": "x-3.png"},
        **{"y-2.jpg": "y-2.png", "y.jpg": "y.png", "y.webp": "y-3.png"},
    }


def test_names_that_differ_in_case_are_two_where_files_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The output folder is asked, once, where two outputs differ in case alone; on macOS, both ways to write an accent are one anyhow."""
    found = SimpleNamespace(show=lambda name: name)
    names = ["A.png", "a.png", "\u00e9.png", "e\u0301.png"]
    asked: list[bool] = []

    def name_outputs(names: list[str], folds: bool, **options: str) -> list[str]:
        out = SimpleNamespace(folds_case=lambda: asked.append(folds) or folds)
        return plan._name_outputs(found, names, out, Options(**options))  # type: ignore[arg-type]

    monkeypatch.setattr(sys, "platform", "linux")
    assert name_outputs(["A.png", "b.png"], True) == ["A.png", "b.png"] and not asked
    assert name_outputs(names, False) == names and asked == [False]
    with pytest.raises(UsageError, match=r"A\.png and a\.png would both become a\.png"):
        name_outputs(names, True)
    assert name_outputs(names, True, on_collision="number") == ["A.png", "a-2.png", "\u00e9.png", "e\u0301-2.png"]
    assert name_outputs(["a-2.png", "A.bmp", "a.jpg"], True, on_collision="number", format="png") == ["a-2.png", "A.png", "a-3.png"]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert name_outputs(names, False, on_collision="number") == [*names[:3], "e\u0301-2.png"]


@pytest.mark.parametrize("name", ["psd", ".PSD", "png.", "", "x"])
def test_a_format_that_cannot_be_written_is_refused(name: str) -> None:
    """Also one that can be read."""
    with pytest.raises(UsageError, match="cannot write images of the format"):
        Options(format=name)
    assert Options(format=".PNG").ending == ".png" and Options(format="jpg", quality=3).ending == ".jpg"


@pytest.mark.parametrize(("count", "said"), [(1, ""), (2, r" \(and 1 more\)"), (3, r" \(and 2 more\)")])
def test_files_of_others_are_counted(tmp_path: Path, count: int, said: str) -> None:
    """The first is named; what was begun by a run of ours is not among them."""
    source, out = Folder(tmp_path / "in"), Folder(tmp_path / "out")
    for place in (source, out):
        place.root.mkdir()
        for name in ("a.png", "b.png", "c.png", "d.png")[: count + 1]:
            (place.root / name).write_bytes(b"")
    found, outputs = find_images(source, out, Options())
    with open_journal(out) as state:
        state.begin(["a.png"])
        with pytest.raises(UsageError, match=rf"b\.png: exists and is not from purify-dir{said}; use --overwrite"):
            make_plan(source, out, found, outputs, state, set(), Options())
        made = make_plan(source, out, found, outputs, state, set(), Options(overwrite=True))
    assert [(job.output, job.replaces) for job in made.jobs] == [(output, True) for output in outputs]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "; name a folder of images"),
        (["a.txt"], " (1 other file); name a folder of images"),
        (["a.txt", "b.txt"], " (2 other files); name a folder of images"),
        (["sub/a.png"], "; 1 subfolder was not looked into: add --recursive"),
        (["a", "sub/a.png", "other/b.png"], " (1 other file); 2 subfolders were not looked into: add --recursive"),
    ],
)
def test_what_a_folder_without_images_holds_is_told(tmp_path: Path, names: list[str], said: str) -> None:
    """Nothing, one, or several, of files and of folders."""
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError) as raised:
        find_images(Folder(tmp_path), Folder(tmp_path / "out"), Options())
    assert str(raised.value) == f"{tmp_path}: holds no images{said}"


def test_a_reason_does_not_begin_with_the_path() -> None:
    """Of input or output, however many spaces are in it."""
    assert local._cut_path("in/a b.png: cannot read: c", "in/a \n b.png", Path("out/a.png")) == "cannot read: c"
    assert local._cut_path("out/a.png: full", "in/a.png", Path("out/a.png")) == "full"


def test_images_are_measured_by_their_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In megapixels; nothing where the header says none or more than allowed; a large file that is no image is not read at all."""
    place = Folder(tmp_path)
    engine = SimpleNamespace(_source=place, _options=Options(max_megapixels=0.0006))
    Image.new("L", (30, 20)).save(tmp_path / "a.png")
    Image.new("L", (30, 21)).save(tmp_path / "larger.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()

    def measure(name: str) -> tuple[float, bool]:
        item = SimpleNamespace(job=SimpleNamespace(source=name), before=place.stamp(name), data=None)
        return local.LocalEngine.measure(engine, item), item.data is not None  # type: ignore[arg-type]

    found = {name: measure(name) for name in ("a.png", "larger.png", "text.png", "empty.png")}
    assert found == {"a.png": (0.0006, True), "larger.png": (0.0, True), "text.png": (0.0, True), "empty.png": (0.0, True)}
    monkeypatch.setattr(local, "_LARGE_FILE", (tmp_path / "a.png").stat().st_size)
    assert measure("a.png")[1]
    monkeypatch.setattr(local, "_LARGE_FILE", len("no image"))
    assert measure("text.png") == (0.0, True)
    monkeypatch.setattr(local, "_LARGE_FILE", len("no image") - 1)
    assert measure("a.png") == (0.0006, False)
    with pytest.raises(ImageError, match="not an image, or of an unknown format"):
        measure("text.png")
    with pytest.raises(ImageError, match="cannot read"):
        measure("absent.png")
    for name, weight in (("text.png", 1e-6), ("absent.png", 0.0)):
        item = SimpleNamespace(job=SimpleNamespace(source=name))
        assert local.LocalEngine.weigh(engine, item) == weight and item.before == place.stamp(name)  # type: ignore[arg-type]


def test_threads_are_from_two_to_sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are cores, within that, for a GPU; few where the CPU is the network's."""
    for cores, threads in ((1, 2), (2, 2), (8, 8), (16, 16), (64, 16)):
        monkeypatch.setattr(local, "count_cores", lambda cores=cores: cores)
        assert local._count_threads(torch.device("cuda")) == (threads, threads)
    assert local._count_threads(torch.device("cpu")) == (2, 4)


def test_time_is_shared_by_those_it_was_spent_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Added to what each took before, also where the work failed."""
    items = [SimpleNamespace(seconds=1.0), SimpleNamespace(seconds=2.0)]
    with monkeypatch.context() as patch, pytest.raises(ValueError):
        patch.setattr(time, "perf_counter", iter((5.0, 11.0)).__next__)
        with _measure_time(items):  # type: ignore[type-var]
            raise ValueError
    assert [item.seconds for item in items] == [4.0, 5.0]


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
    tags = image.tag_v2  # type: ignore[attr-defined]
    rows = tags[278]
    assert sum(tags[279]) == pixels.nbytes and tags.get(338) == ((2,) if bands in (2, 4) else None)
    assert rows * 5 * bands <= strip < (rows + 1) * 5 * bands or (rows == 1 and strip < 5 * bands)
