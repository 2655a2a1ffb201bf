"""`comdefend purify-dir`: what is done, kept, done again, refused and survived; by the engine and as real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from PIL import Image

from comdefend_cli import Purifier, Settings
from comdefend_cli.batch.engine import Result
from comdefend_cli.batch.journal import STATE
from comdefend_cli.batch.local import open_local
from comdefend_cli.batch.networks import Networks
from comdefend_cli.batch.options import Options
from comdefend_cli.batch.request import Request
from comdefend_cli.batch.storage.folder import Folder
from comdefend_cli.cli.naming import name_outputs
from comdefend_cli.errors import UsageError


@pytest.fixture
def images(tmp_path: Path, astronaut: np.ndarray) -> Path:
    """A folder of photographs of several sizes and formats, with a subfolder and what is no image."""
    source = tmp_path / "images"
    (source / "sub").mkdir(parents=True)
    for index in range(5):
        Image.fromarray(astronaut[40 * index : 40 * index + 32, 200:232]).save(source / f"small{index}.png")
    Image.fromarray(astronaut[:50, :70]).save(source / "large.jpg", quality=90)
    Image.fromarray(astronaut[:30, :40, 0]).save(source / "sub" / "gray.bmp")
    (source / "notes.txt").write_text("no image")
    (source / ".hidden.png").write_bytes(b"")
    return source


def purified(source: Path, out: Path, weights: Path, settings: Settings | None = None, **options: object) -> dict[str, Result]:
    """Run the engine to its end; results by the input's name."""
    networks = Networks(Request(str(weights), "cpu", "float32", settings=settings or Settings()))
    with open_local(Folder(source), Folder(out), networks, Options(**{"recursive": True, **options})) as work:  # type: ignore[arg-type]
        return {str(Path(result.input).relative_to(source)): result for result in work.results()}


def statuses(results: dict[str, Result]) -> Counter[str]:
    """How many results of each status."""
    return Counter(result.status for result in results.values())


def pixels(path: Path) -> np.ndarray:
    """A file's pixels."""
    return np.array(Image.open(path))


def test_every_image_is_purified_as_if_alone(images: Path, tmp_path: Path, small_weights: Path) -> None:
    """Whatever is batched together, each output holds the pixels of the API on that image, mirrored below the output folder."""
    out = tmp_path / "out"
    for settings in (Settings(), Settings(noise_std=1.0, seed=3), Settings(input_noise=20.0, samples=2)):
        results = purified(images, out, small_weights, settings)
        assert statuses(results) == {"done": 7}
        purifier = Purifier.from_pretrained(str(small_weights), device="cpu", precision="float32", settings=settings)
        for name in ("small0.png", "small3.png", "sub/gray.bmp"):
            assert np.array_equal(pixels(out / name), purifier(pixels(images / name))), name
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.*") if path.name[0] != ".") == sorted(results)


def test_finished_files_are_kept_and_changed_ones_redone(images: Path, tmp_path: Path, small_weights: Path) -> None:
    """A second run keeps all; a changed input, a lost or changed output, and other settings are done anew; --overwrite redoes all."""
    out = tmp_path / "out"
    purified(images, out, small_weights)
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert statuses(purified(images, out, small_weights)) == {"kept": 7}
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    shutil.copy(images / "small1.png", images / "small0.png")
    (out / "small2.png").unlink()
    (out / "small3.png").write_bytes(b"cut")
    results = purified(images, out, small_weights)
    assert {name for name, result in results.items() if result.status == "done"} == {"small0.png", "small2.png", "small3.png"}
    assert np.array_equal(pixels(out / "small0.png"), pixels(out / "small1.png"))
    assert statuses(purified(images, out, small_weights, Settings("paper"))) == {"done": 7}
    assert statuses(purified(images, out, small_weights, Settings("paper"), overwrite=True)) == {"done": 7}


def test_one_bad_file_does_not_stop_the_rest(images: Path, tmp_path: Path, small_weights: Path) -> None:
    """Broken images fail with a reason, the others are done; once mended, only they are done."""
    whole = (images / "large.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "text.png").write_text("not an image")
    results = purified(images, tmp_path / "out", small_weights)
    assert statuses(results) == {"done": 7, "failed": 2}
    assert "truncated" in results["cut.jpg"].reason
    assert "not an image" in results["text.png"].reason
    assert not (tmp_path / "out" / "cut.jpg").exists()
    (images / "cut.jpg").write_bytes(whole)
    (images / "text.png").unlink()
    assert statuses(purified(images, tmp_path / "out", small_weights)) == {"kept": 7, "done": 1}


def test_what_its_format_cannot_hold_fails_alone(images: Path, tmp_path: Path, small_weights: Path, astronaut: np.ndarray) -> None:
    """An image with alpha fails where all go into JPEG, before the network, and the others are done."""
    Image.fromarray(astronaut[:32, :32]).convert("RGBA").save(images / "alpha.png")
    results = purified(images, tmp_path / "out", small_weights, format="jpg")
    assert statuses(results) == {"done": 7, "failed": 1}
    assert "transparency" in results["alpha.png"].reason


def test_collisions_are_refused_before_starting(images: Path, tmp_path: Path, small_weights: Path, astronaut: np.ndarray) -> None:
    """Two inputs that would become one output are named, and nothing is written."""
    Image.fromarray(astronaut[:8, :8]).save(images / "large.png")
    with pytest.raises(UsageError, match=r"large\.jpg.*large\.png"):
        purified(images, tmp_path / "out", small_weights, format="png")
    assert not (tmp_path / "out").exists()
    assert statuses(purified(images, tmp_path / "out", small_weights)) == {"done": 8}


def test_the_later_of_two_names_is_numbered_if_asked(images: Path, tmp_path: Path, small_weights: Path, astronaut: np.ndarray) -> None:
    """Each image gets a name that no other has, the same when run again; it is said, and what is not an answer is refused."""
    for number, name in enumerate(("large.png", "large-2.png", "large.bmp")):
        Image.fromarray(astronaut[: 8 + number, :8]).save(images / name)
    options = {"format": "png", "on_collision": "number"}
    results = purified(images, tmp_path / "out", small_weights, **options)
    assert statuses(results) == {"done": 10}
    outputs = {Path(result.output).name: Image.open(result.output).size for result in results.values()}
    assert len(outputs) == 10
    assert {outputs[name] for name in ("large.png", "large-3.png", "large-4.png")} == {(70, 50), (8, 8), (8, 10)}
    assert outputs["large-2.png"] == (8, 9)
    assert sum("numbered" in " ".join(result.notices) for result in results.values()) == 2
    assert statuses(purified(images, tmp_path / "out", small_weights, **options)) == {"kept": 10}
    with pytest.raises(UsageError, match="error or number"):
        Options(on_collision="skip")


def test_transparency_that_a_format_cannot_hold_goes_into_png(tmp_path: Path, small_weights: Path, astronaut: np.ndarray) -> None:
    """A transparent GIF and BMP become PNG with the same alpha, and it is said; opaque ones stay what they are; the next run keeps all."""
    source = tmp_path / "in"
    source.mkdir()
    colors = Image.fromarray(astronaut[:16, :16]).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    colors.save(source / "clear.gif", transparency=3)
    colors.save(source / "whole.gif")
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    pixels = np.concatenate([astronaut[:16, :16], astronaut[100:116, :16, :1]], 2)
    head = struct.pack("<2sIIIIiiHHIIiiII", b"BM", 122 + 1024, 0, 122, 108, 16, -16, 1, 32, 3, 1024, 0, 0, 0, 0)
    (source / "masked.bmp").write_bytes(head + masks + bytes(52) + pixels.tobytes())
    Image.fromarray(astronaut[:16, :16]).save(source / "whole.ico", sizes=[(16, 16)])
    out = tmp_path / "out"
    results = purified(source, out, small_weights)
    assert {name: result.notices for name, result in results.items()} == {
        "clear.gif": ("written as PNG: GIF is written without transparency",),
        "masked.bmp": ("written as PNG: BMP is written without transparency",),
        "whole.gif": (),
        "whole.ico": ("written as PNG: ICO is not written",),
    }
    names = ["clear.png", "masked.png", "whole.gif", "whole.png"]
    assert sorted(path.name for path in out.iterdir() if path.name[0] != ".") == names
    for name, alpha in (("clear.png", (np.array(colors) != 3) * 255), ("masked.png", pixels[..., 3])):
        assert np.array_equal(np.array(Image.open(out / name).getchannel("A")), alpha)
    assert statuses(purified(source, out, small_weights)) == {"kept": 4}
    pairs = name_outputs([str(source / "clear.gif"), str(source / "whole.gif")], str(tmp_path), None, overwrite=False)
    assert [(pair.target.name, len(pair.notices)) for pair in pairs] == [("clear.png", 1), ("whole.gif", 0)]


def test_files_of_others_are_not_replaced(images: Path, tmp_path: Path, small_weights: Path) -> None:
    """An output that exists and is not ours is refused before starting, unless --overwrite; inputs are never outputs."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "small4.png").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"small4\.png.*--overwrite"):
        purified(images, out, small_weights)
    assert (out / "small4.png").read_bytes() == b"mine"
    assert sorted(path.name for path in out.iterdir() if path.suffix == ".png") == ["small4.png"]
    assert statuses(purified(images, out, small_weights, overwrite=True)) == {"done": 7}
    with pytest.raises(UsageError):
        purified(images, images, small_weights, overwrite=True)


def test_links_do_not_lead_out_of_the_output_folder(images: Path, tmp_path: Path, small_weights: Path) -> None:
    """An output subfolder that is a link to elsewhere is refused, and nothing lands there."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (out / "sub").symlink_to(elsewhere)
    with pytest.raises(UsageError, match="link"):
        purified(images, out, small_weights)
    assert not list(elsewhere.iterdir())


def test_an_output_folder_inside_is_not_an_input(images: Path, small_weights: Path) -> None:
    """With the output below DIR, a second run does not purify the first run's results."""
    out = images / "purified"
    assert statuses(purified(images, out, small_weights)) == {"done": 7}
    assert statuses(purified(images, out, small_weights)) == {"kept": 7}


def test_two_runs_on_one_output_are_refused(images: Path, tmp_path: Path, small_weights: Path) -> None:
    """While a run holds an output folder, another is refused; afterwards it is not."""
    networks = Networks(Request(str(small_weights), "cpu", backend="torch"))
    with open_local(Folder(images), Folder(tmp_path / "out"), networks), pytest.raises(UsageError):
        purified(images, tmp_path / "out", small_weights)
    assert statuses(purified(images, tmp_path / "out", small_weights)) == {"done": 7}


def test_the_command_from_start_to_report(images: Path, run: Run, small_weights: Path) -> None:
    """Exit 0 with a summary; with a bad file exit 1, the file named on standard error and in the report; JSON counts agree."""
    first = run("purify-dir", "images", "--weights", small_weights, cwd=images.parent)
    assert first.returncode == 0, first.stderr
    assert b"6 purified" in first.stderr
    assert b"1 skipped" in first.stderr
    assert b"--recursive" in first.stderr
    out = images.parent / "images-purified"
    assert sorted(path.name for path in out.iterdir() if path.name[0] != ".") == ["large.jpg", *(f"small{i}.png" for i in range(5))]
    (images / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    arguments = ("purify-dir", images, "--recursive", "--weights", small_weights, "--report", images.parent / "results.jsonl", "--json")
    second = run(*arguments)
    assert second.returncode == 1
    assert b"bad.png" in second.stderr
    summary = json.loads(second.stdout)
    assert (summary["done"], summary["kept"], summary["failed"], summary["skipped"]) == (1, 6, 1, 1)
    records = [json.loads(line) for line in (images.parent / "results.jsonl").read_text().splitlines()]
    assert Counter(record["status"] for record in records) == {"done": 1, "kept": 6, "failed": 1}
    (bad,) = (record for record in records if record["status"] == "failed")
    assert bad["input"].endswith("bad.png")
    assert bad["reason"]
    assert run(*arguments).returncode == 1, "a report of ours may be replaced"
    (images.parent / "results.jsonl").write_text("a letter\n")
    assert run(*arguments).returncode == 2
    assert (images.parent / "results.jsonl").read_text() == "a letter\n"


def test_wrong_usage_is_exit_2(images: Path, run: Run, tmp_path: Path, small_weights: Path) -> None:
    """A missing folder, a file, an unknown format or weights, an option of the other engine: one line, no output folder."""
    ray = ("--cpus-per-worker", 1)
    for more in ((tmp_path / "absent",), (images / "large.jpg",), *((images, "--format", name) for name in ("xyz", "x.png", ""))):
        one_line(run("purify-dir", *more, "--out", tmp_path / "out"))
    for more in (("--weights", "nothing"), ray, ("--engine", "dask")):
        one_line(run("purify-dir", images, *more, "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def one_line(result: subprocess.CompletedProcess[bytes]) -> None:
    assert result.returncode == 2, result.stderr
    assert result.stderr.count(b"\n") == 1, result.stderr
    assert result.stderr.startswith(b"error: ")


def test_a_name_that_moves_the_cursor_is_shown_as_what_it_is(run: Run, tmp_path: Path) -> None:
    """An error is text, whatever a file is called."""
    result = run("purify", tmp_path / "\x1b[2Jgone.png", tmp_path / "out.png")
    assert result.returncode == 2
    assert b"\x1b" not in result.stderr
    assert b"\\x1b[2Jgone.png" in result.stderr


def test_long_names_in_any_script_are_written(run: Run, tmp_path: Path, astronaut: np.ndarray, small_weights: Path) -> None:
    """255 bytes are what a file system takes, which are fewer letters than 255 in most scripts."""
    name = "あ" * 82 + ".png"
    Image.fromarray(astronaut[:8, :8]).save(tmp_path / "in.png")
    assert run("purify", tmp_path / "in.png", tmp_path / name, "--weights", small_weights).returncode == 0
    assert (tmp_path / name).stat().st_size > 50


def many(folder: Path, astronaut: np.ndarray, count: int) -> None:
    """Images of different sizes, none of which is computed in a batch with another, so that a run takes a while."""
    folder.mkdir()
    for index in range(count):
        Image.fromarray(astronaut[: 60 + index, :80]).save(folder / f"{index:03}.png", compress_level=1)


def begun(command: list[str], out: Path, least: int) -> subprocess.Popen[bytes]:
    """Start a run and wait until it has finished some files."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(list(out.glob("*.png"))) < least:
        assert process.poll() is None, process.stderr.read() if process.stderr else b""
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, astronaut: np.ndarray, small_weights: Path) -> Path:
    """A folder of images, `in`, and beside it what comes of it, `out`."""
    folder = tmp_path_factory.mktemp("undisturbed")
    many(folder / "in", astronaut, 110)
    purified(folder / "in", folder / "out", small_weights)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_that_was_stopped_resumes(tmp_path: Path, undisturbed: Path, small_weights: Path, number: signal.Signals) -> None:
    """Killed or interrupted half-way, every output that is there is whole; the next run keeps those and does the rest, byte for byte.

    Interrupted, the exit code is 130 and the summary is printed.
    """
    source, out, whole = undisturbed / "in", tmp_path / "out", undisturbed / "out"
    options = ["--out", str(out), "--weights", str(small_weights), "--precision", "float32"]
    command = [sys.executable, "-m", "comdefend_cli", "purify-dir", str(source), *options]
    process = begun(command, out, 3)
    process.send_signal(number)
    assert process.stderr is not None
    said = process.stderr.read()
    process.wait(120)
    if number != signal.SIGKILL:
        assert process.returncode == 130, said
        assert b"interrupted: " in said
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert 3 <= len(finished) < 110
    assert all(path.read_bytes() == (whole / path.name).read_bytes() for path in finished)
    result = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "NO_COLOR": "1"})
    assert result.returncode == 0, result.stderr
    assert f"{len(finished)} kept".encode() in result.stderr or number == signal.SIGKILL
    assert {path.name: path.read_bytes() for path in out.glob("*.png")} == {path.name: path.read_bytes() for path in whole.glob("*.png")}
    redone = [path for path, stamp in finished.items() if path.stat().st_mtime_ns != stamp]
    # A file that was renamed into place but not yet noted as done when the process was killed is done again.
    assert len(redone) <= (4 if number == signal.SIGKILL else 0)
    assert sorted(path.name for path in out.iterdir() if path.suffix != ".png") == [STATE]


def test_a_folder_without_images_says_so(run: Run, tmp_path: Path) -> None:
    """Exit code 2 and one line, with what is in the folder and the option that may be missing; nothing is made."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "notes.txt").write_text("x")
    result = run("purify-dir", tmp_path / "in")
    assert result.returncode == 2 and result.stdout == b""
    said = "holds no images (1 other file); 1 subfolder was not looked into: add --recursive"
    assert result.stderr.decode() == f"error: {tmp_path / 'in'}: {said}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
