"""`comdefend purify` as a person runs it: real processes, real images, exit codes and what is left on the disk."""

from __future__ import annotations

import ctypes
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from conftest import Run, small_model
from formats import png_claiming
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from typer.testing import CliRunner

from comdefend_cli import Purifier
from comdefend_cli.cli import app, options
from comdefend_cli.cli.naming import name_outputs
from comdefend_cli.errors import UsageError
from comdefend_cli.network.registry import DEFAULT_COLOR, DEFAULT_GRAY
from comdefend_cli.network.weight_file import save_weights


@pytest.fixture
def image(tmp_path: Path, astronaut: np.ndarray) -> Path:
    """A small colour photograph in a file."""
    path = tmp_path / "in.png"
    Image.fromarray(astronaut[100:140, 200:250]).save(path)
    return path


def one_line(result: subprocess.CompletedProcess[bytes], code: int, *words: str) -> None:
    """The command failed with this code and one line on standard error that holds these words."""
    text = result.stderr.decode()
    assert result.returncode == code, text
    assert text.count("\n") == 1, text
    assert text.startswith("error: ")
    for word in words:
        assert word in text


def limited_files() -> None:
    """In a child: a file takes 1,000 bytes and no more, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


def test_purify_writes_what_the_api_gives(run: Run, image: Path, small_weights: Path) -> None:
    """OUT holds the purified pixels; --json records sizes, rates, hash, and PSNR and SSIM as scikit-image has them."""
    out, compare = image.with_name("out.png"), image.with_name("compare.png")
    result = run("purify", image, out, "--weights", small_weights, "--json", "--compare", compare, "--device", "cpu")
    assert result.returncode == 0, result.stderr
    before, after = np.array(Image.open(image)), np.array(Image.open(out))
    purifier = Purifier.from_pretrained(str(small_weights), device="cpu")
    assert np.array_equal(after, purifier(before))
    record = json.loads(result.stdout)
    assert (record["width"], record["height"], record["channels"]) == (50, 40, 3)
    assert record["psnr_db"] == pytest.approx(peak_signal_noise_ratio(before, after), abs=1e-3)
    assert record["ssim"] == pytest.approx(structural_similarity(before, after, channel_axis=2), abs=1e-4)
    assert (record["device"], record["weights"]) == ("cpu", "small.safetensors")
    assert len(record["weights_sha256"]) == 64
    assert record["seconds"] > 0
    wide = np.array(Image.open(compare))
    assert wide.shape == (40, 4 * 50 + 3 * 4, 3)
    assert np.array_equal(wide[:, :50], before)
    assert np.array_equal(wide[:, 108:158], after)


def test_the_weights_own_noise_is_put_on_unless_told_otherwise(run: Run, image: Path) -> None:
    """One image and a folder get it, the same in every run; --input-noise 0 leaves it out, --seed draws other noise."""
    model = small_model()
    model.input_noise = 20.0
    path = image.with_name("noisy.safetensors")
    save_weights(path, model, {})
    made = {}
    for name, given in {
        "own": (),
        "again": (),
        "asked": ("--input-noise", 20),
        "none": ("--input-noise", 0),
        "seed": ("--seed", 1),
    }.items():
        done = run("purify", image, image.with_name(f"{name}.png"), "--weights", path, "--device", "cpu", "--json", *given)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["input_noise"] == (0.0 if name == "none" else 20.0)
        made[name] = np.array(Image.open(image.with_name(f"{name}.png")))
    assert np.array_equal(made["own"], made["again"]) and np.array_equal(made["own"], made["asked"])
    assert not np.array_equal(made["own"], made["none"]) and not np.array_equal(made["own"], made["seed"])
    folder = image.parent / "folder"
    folder.mkdir()
    shutil.copy(image, folder / "in.png")
    out = image.parent / "out"
    for given, kept, expected in (((), 0, "own"), ((), 1, "own"), (("--seed", 1), 0, "seed"), (("--input-noise", 0), 0, "none")):
        done = run("purify-dir", folder, "--out", out, "--weights", path, "--device", "cpu", "--json", *given)
        assert json.loads(done.stdout)["kept"] == kept, options
        assert np.array_equal(np.array(Image.open(out / "in.png")), made[expected]), options


def test_shipped_weights_purify_a_real_photo(run: Run, tmp_path: Path, astronaut: np.ndarray) -> None:
    """With nothing but IN and OUT, from another folder, a JPEG photograph comes out near its original and the device is said."""
    Image.fromarray(astronaut[:96, 128:256]).save(tmp_path / "photo.jpg", quality=95)
    result = run("purify", "photo.jpg", "photo.png", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert b"computing on" in result.stderr
    assert peak_signal_noise_ratio(np.array(Image.open(tmp_path / "photo.jpg")), np.array(Image.open(tmp_path / "photo.png"))) > 25


def test_pipes(run: Run, image: Path, small_weights: Path) -> None:
    """- reads standard input and writes standard output, as PNG or by --format, silently when piped and quiet."""
    options = ("--weights", small_weights, "--quiet")
    piped = run("purify", "-", "-", *options, stdin=image.read_bytes())
    assert (piped.returncode, piped.stderr) == (0, b"")
    out = image.with_name("out.png")
    assert run("purify", image, out, *options).returncode == 0
    assert np.array_equal(np.array(Image.open(io.BytesIO(piped.stdout))), np.array(Image.open(out)))
    jpeg = run("purify", image, "-", "--weights", small_weights, "--format", "jpg")
    assert Image.open(io.BytesIO(jpeg.stdout)).format == "JPEG"
    assert b"JPEG compression changes the purified pixels again" in jpeg.stderr


def test_nothing_is_overwritten_unasked(run: Run, image: Path, small_weights: Path) -> None:
    """An existing OUT, also IN itself, stays as it is without --overwrite, exit 2; with it, it is replaced."""
    before = image.read_bytes()
    one_line(run("purify", image, image, "--weights", small_weights), 2, "in.png", "--overwrite")
    assert image.read_bytes() == before
    assert run("purify", image, image, "--weights", small_weights, "--overwrite", "-q").returncode == 0
    assert image.read_bytes() != before
    assert sorted(path.name for path in image.parent.iterdir()) == ["in.png"]


def test_alpha_and_grey_survive(run: Run, tmp_path: Path, astronaut: np.ndarray, small_weights: Path) -> None:
    """Alpha comes out untouched; a grey image comes out grey."""
    image = Image.fromarray(astronaut[:24, :30])
    image.putalpha(Image.fromarray(astronaut[200:224, 200:230, 1]))
    image.save(tmp_path / "alpha.png")
    Image.fromarray(astronaut[:24, :30, 0]).save(tmp_path / "gray.png")
    for name, mode in (("alpha", "RGBA"), ("gray", "L")):
        result = run("purify", tmp_path / f"{name}.png", tmp_path / f"{name}-out.png", "--weights", small_weights)
        assert result.returncode == 0, result.stderr
        assert Image.open(tmp_path / f"{name}-out.png").mode == mode
    kept = np.array(Image.open(tmp_path / "alpha-out.png"))[..., 3]
    assert np.array_equal(kept, astronaut[200:224, 200:230, 1])


def test_what_is_not_there_is_wrong_usage(run: Run, image: Path) -> None:
    """A missing IN is exit code 2 as other missing inputs are; where OUT is there instead, the line says that they may be swapped."""
    missing = image.with_name("missing.png")
    one_line(run("purify", missing, image.with_name("out.png")), 2, "missing.png: no such file")
    one_line(run("purify", missing, image), 2, f"did you mean comdefend purify {image} {missing}?")


def test_several_images_go_beside_their_own_or_into_a_folder(run: Run, image: Path, astronaut: np.ndarray, small_weights: Path) -> None:
    """Without OUT "name.purified.png" beside each, with -o the same names in a folder; a bad one is named and the others are done."""
    folder = image.parent
    Image.fromarray(astronaut[:20, :30]).save(folder / "b.jpg")
    (folder / "bad.png").write_bytes(b"not an image")
    given = ("--weights", small_weights, "--device", "cpu", "--input-noise", "7")
    done = run("purify", image, folder / "b.jpg", folder / "bad.png", *given, "--json")
    origin, *said = done.stderr.decode().splitlines()
    assert done.returncode == 1
    assert origin.startswith("note: weights of unknown origin, SHA-256 ")
    assert said[0].startswith(f"{folder / 'in.purified.png'}  50x40  small.safetensors  noise 7  ") and said[0].endswith(" s")
    assert said[1].startswith(f"{folder / 'b.purified.png'}  30x20  ") and "bad.png: not an image" in said[2]
    assert [Path(json.loads(line)["output"]).name for line in done.stdout.splitlines()] == ["in.purified.png", "b.purified.png"]
    done = run("purify", "*.png", *given, "-o", "new/", "--format", "webp", "--quiet", cwd=folder)
    assert done.returncode == 1 and done.stderr.decode() == "error: bad.png: not an image, or of an unknown format; use " + (
        "PNG, JPEG, WebP, TIFF, BMP, GIF or PPM\n"
    )
    assert [path.name for path in (folder / "new").iterdir()] == ["in.webp"]  # Outputs of the first run are not purified again.
    same = Image.open(folder / "in.purified.png"), Image.open(folder / "new" / "in.webp")
    assert np.array_equal(*map(np.array, same))


def test_one_name_is_enough_for_a_folder_too(run: Run, image: Path, small_weights: Path) -> None:
    """A folder is gone through as by purify-dir, which keeps what is finished; what is for single images is refused."""
    folder = image.parent / "folder"
    folder.mkdir()
    shutil.copy(image, folder / "in.png")
    given = (folder, "--weights", small_weights, "--device", "cpu")
    assert run("purify", *given).returncode == 0
    again = run("purify-dir", *given, "--json")
    assert json.loads(again.stdout)["kept"] == 1
    one_line(run("purify", *given, "--compare", image.with_name("c.png")), 2, "--compare and --strips are for single images")
    one_line(run("purify", image, folder, image, *given[1:]), 2, "is a folder; give it alone")


@pytest.mark.parametrize(
    ("names", "out", "words"),
    [
        (["in.png", "b.png"], None, "of two names the second is OUT"),
        (["in.png", "b.png"], "one.png", "2 images need a folder"),
        (["in.png", "b.png", "in.jpg"], None, "would both become in.purified.png"),
        (["-"], None, "standard input is one image"),
        (["*.webp"], "new", "no such file"),
        (["in.png", "*.webp"], None, "no such file"),
    ],
)
def test_names_that_may_mean_two_things_are_refused(
    names: list[str], out: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line says which reading applies, or what to do."""
    for name in ("in.png", "b.png", "in.jpg"):
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=words):
        name_outputs(names, out, None, overwrite=False)


def test_a_second_name_in_brackets_is_the_output_unless_files_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Browsers call files so; the shell leaves the name as it is where no file matches."""
    for name in ("in.png", "b1.png"):
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    (pair,) = name_outputs(["in.png", "a[1].png"], None, None, overwrite=False)
    assert (str(pair.source), str(pair.target), pair.named) == ("in.png", "a[1].png", True)
    pairs = name_outputs(["in.png", "b[1].png"], None, None, overwrite=False)
    assert [str(pair.source) for pair in pairs] == ["in.png", "b1.png"]


def test_bad_input_is_one_line_and_exit_1(run: Run, tmp_path: Path, astronaut: np.ndarray) -> None:
    """Empty, truncated, no image, a bomb, zero-size: named, and nothing is written."""
    buffer = io.BytesIO()
    Image.fromarray(astronaut).save(buffer, "PNG")
    cases = {
        "empty.png": (b"", "empty"),
        "cut.png": (buffer.getvalue()[:5000], "truncated"),
        "text.png": (b"not an image at all", "not an image"),
        "bomb.png": (png_claiming(50000, 50000), "--max-megapixels"),
        "zero.png": (png_claiming(0, 5), "zero.png"),
    }
    for name, (data, _) in cases.items():
        (tmp_path / name).write_bytes(data)
    expected = {name: word for name, (_, word) in cases.items()}
    before = sorted(os.listdir(tmp_path))
    for name, word in expected.items():
        one_line(run("purify", tmp_path / name, tmp_path / "out.png"), 1, name, word)
    assert sorted(os.listdir(tmp_path)) == before


def test_wrong_usage_is_exit_2(run: Run, image: Path, small_weights: Path) -> None:
    """Absent devices, unknown weights, endings, precisions and contradicting options are wrong usage."""
    out = image.with_name("out.png")
    for arguments, word in (
        ((image, out, "--device", "cuda:99"), "cuda:99"),
        ((image, out, "--weights", "nothing"), "no such weights"),
        ((image, out.with_suffix(".xyz")), "ending"),
        ((image, out, "--precision", "half"), "auto, float32, bfloat16, float16, int8, float8"),
        ((image, out, "--precision", "float16", "--device", "cpu", "--weights", small_weights), "float16"),
        ((image, out, "--tiling", "none"), "tiling"),
        ((image, "-", "--json"), "--json"),
        ((image, out, "--compare", out), "--compare"),
        (("--compare", image, out), "--compare takes a file of its own to write"),
        ((image, out, "--format", "png"), "--format"),
        ((image, image.parent), "folder"),
    ):
        one_line(run("purify", *arguments), 2, word)
    assert run("purify", image, out, "--tile", "0").returncode == 2
    assert not out.exists()


def test_unwritable_places_leave_nothing(run: Run, image: Path, small_weights: Path) -> None:
    """An absent folder, a file in place of a folder, and a system folder cannot be written: exit 1, before the work, nothing left."""
    for target in (image.parent / "absent" / "out.png", image / "out.png", Path("/proc/out.png")):
        result = run("purify", image, target, "--weights", small_weights)
        one_line(result, 1, str(target.parent), "cannot write into this folder", "write elsewhere")
    assert sorted(path.name for path in image.parent.iterdir()) == ["in.png"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_loses_nothing(image: Path, small_weights: Path) -> None:
    """When the disk is full, the old OUT stays whole, no part of the new one is left, and the exit code is 1."""
    out = image.with_name("out.png")
    Image.new("RGB", (3, 3)).save(out)
    before = out.read_bytes()
    command = [sys.executable, "-m", "comdefend_cli", "purify", str(image)]
    options = ["--weights", str(small_weights), "--quiet"]
    result = subprocess.run([*command, str(out), *options, "--overwrite"], capture_output=True, check=False, preexec_fn=limited_files)
    one_line(result, 1, "out.png", "cannot write", "free some space")
    assert out.read_bytes() == before
    assert sorted(path.name for path in image.parent.iterdir()) == ["in.png", "out.png"]
    with Path("/dev/full").open("wb") as full:
        piped = subprocess.run([*command, "-", *options], stdout=full, stderr=subprocess.PIPE, check=False)
    one_line(piped, 1, "standard output", "no space left")


def test_a_part_of_the_image_on_standard_output_is_an_error(image: Path, small_weights: Path) -> None:
    """Where the disk takes only a part, also with Python's own buffers off, the exit code is 1: no cut image passes for whole."""
    command = [sys.executable, "-m", "comdefend_cli", "purify", str(image), "-", "--weights", str(small_weights), "--quiet"]
    with (image.parent / "cut.png").open("wb") as file:
        result = subprocess.run(
            command, stdout=file, stderr=subprocess.PIPE, check=False, preexec_fn=limited_files, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
    one_line(result, 1, "standard output", "cannot write")


def test_what_cannot_be_written_is_refused_before_the_work(run: Run, tmp_path: Path, astronaut: np.ndarray) -> None:
    """Alpha into JPEG, a side that is too long, and --compare over IN end at once, without a word of computing."""
    Image.fromarray(astronaut[:8, :8]).convert("RGBA").save(tmp_path / "alpha.png")
    Image.new("L", (20000, 1)).save(tmp_path / "long.png")
    one_line(run("purify", tmp_path / "alpha.png", tmp_path / "out.jpg"), 1, "transparency")
    one_line(run("purify", tmp_path / "long.png", tmp_path / "out.webp"), 1, "16383 pixels a side")
    over = ("--compare", tmp_path / "alpha.png", "--overwrite")
    one_line(run("purify", tmp_path / "alpha.png", tmp_path / "out.png", *over), 2, "is IN too")
    wide = ("--compare", tmp_path / "compare.webp")  # Four images beside each other.
    Image.new("L", (5000, 1)).save(tmp_path / "wide.png")
    one_line(run("purify", tmp_path / "wide.png", tmp_path / "out.png", *wide), 1, "16383 pixels a side")
    one_line(run("purify", "/dev/zero", tmp_path / "out.png"), 1, "is a device")
    assert sorted(os.listdir(tmp_path)) == ["alpha.png", "long.png", "wide.png"]


def test_help_names_the_weights_that_are_taken() -> None:
    """What the options say is the default is what is loaded."""
    both, color = (get_args(option)[1] for option in (options.Weights, options.ColorWeights))
    assert both.help.endswith(f"Default: {DEFAULT_COLOR}, and for grey images {DEFAULT_GRAY}.")
    assert color.show_default == DEFAULT_COLOR


def unprivileged() -> None:
    """In a child: what root may because it is root, it may not (Linux; others who run the tests have no such right)."""
    for right in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, right, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs prctl")
def test_what_may_not_be_read_or_written_is_one_line(image: Path) -> None:
    """An image without permission to read it, an OUT in a folder without permission to write, a folder that may not be listed."""
    locked, closed = image.with_name("locked.png"), image.parent / "closed"
    locked.write_bytes(image.read_bytes())
    locked.chmod(0)
    closed.mkdir()
    (closed / "in").mkdir()
    (closed / "in").chmod(0)
    closed.chmod(0o100)
    for arguments, word in (
        (("purify", locked, image.with_name("out.png")), "locked.png: cannot read: permission denied"),
        (("purify", image, closed / "out.png"), "closed: cannot write into this folder: permission denied"),
        (("purify-dir", closed, "--out", image.parent / "out", "--quiet"), "closed: cannot list this folder: permission denied"),
        (("purify", image, closed / "in" / "out.png"), "permission denied; check the path and its permissions"),
    ):
        command = [sys.executable, "-m", "comdefend_cli", *map(str, arguments)]
        one_line(subprocess.run(command, capture_output=True, check=False, preexec_fn=unprivileged), 1, word)
    closed.chmod(0o700)
    assert sorted(os.listdir(image.parent)) == ["closed", "in.png", "locked.png"]


def test_replaced_files_keep_their_permissions(image: Path) -> None:
    """A private file that is replaced stays private."""
    from comdefend_cli.runtime.files import write_atomically

    image.chmod(0o600)
    write_atomically(image, b"new", overwrite=True)
    assert (image.read_bytes(), image.stat().st_mode & 0o777) == (b"new", 0o600)


def test_out_of_memory_is_one_line(image: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where even the smallest tile finds no memory, the command says so and what to do; other mistakes are not taken for that."""

    def run_out(*_: object) -> None:
        torch.empty(10**15)

    monkeypatch.setattr(Purifier, "purify", run_out)
    arguments = ["purify", str(image), str(image.with_name("out.png")), "--weights", str(small_weights), "-q"]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "out of memory" in result.stderr and "--tile" in result.stderr
    monkeypatch.setattr(Purifier, "purify", lambda *_: torch.zeros(2) @ torch.zeros(3))
    assert isinstance(CliRunner().invoke(app, arguments).exception, RuntimeError)


@pytest.mark.slow
def test_interrupted_is_exit_130_and_leaves_nothing(image: Path, astronaut: np.ndarray) -> None:
    """Ctrl-C in the middle of a large image ends with 130, one line, and no half-written file."""
    large = image.with_name("large.png")
    Image.fromarray(np.tile(astronaut, (6, 6, 1))).save(large)
    command = [sys.executable, "-m", "comdefend_cli", "purify", str(large), str(image.with_name("out.png"))]
    # A shell that runs the tests in the background has them ignore Ctrl-C; the command must not inherit that.
    process = subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert process.stderr is not None
    assert b"computing on" in process.stderr.readline()
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert b"interrupted" in process.stderr.read()
    assert process.wait(60) == 130
    assert sorted(path.name for path in image.parent.iterdir()) == ["in.png", "large.png"]


def test_help_and_version_do_not_import_torch(run: Run) -> None:
    """--help, --version and completion come without torch."""
    code = "import sys\nfrom comdefend_cli.cli import main\ntry:\n    main()\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)"
    for arguments in (
        ["--help"],
        ["--version"],
        ["purify", "--help"],
        ["purify-dir", "--help"],
        ["train", "--help"],
        ["weights", "--help"],
    ):
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, check=False, env={**os.environ, "COLUMNS": "200"}
        )
        assert result.returncode == 0
        assert result.stderr.decode().split() == ["False"]
        assert result.stdout


def test_shell_completion_works() -> None:
    """The shell's question for `comdefend pur` is answered with the commands that begin so."""
    question = {"_COMDEFEND_COMPLETE": "complete_bash", "COMP_WORDS": "comdefend pur", "COMP_CWORD": "1"}
    command = [str(Path(sys.executable).with_name("comdefend"))]
    result = subprocess.run(command, capture_output=True, check=False, env={**os.environ, **question})
    assert result.stdout.decode().split() == ["purify", "purify-dir"]


def test_metrics_equal_scikit_image(astronaut: np.ndarray, camera: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """PSNR and SSIM agree with scikit-image on photographs, also where several strips are summed."""
    from comdefend_cli.network import metrics
    from comdefend_cli.network.metrics import psnr, ssim

    monkeypatch.setattr(metrics, "_STRIP", 3000)
    rng = np.random.default_rng(0)
    for pixels in (astronaut[:300, :77], np.atleast_3d(camera)[:, :40]):
        other = np.clip(pixels + rng.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)
        a, b = (torch.from_numpy(item.copy()).permute(2, 0, 1)[None] for item in (pixels, other))
        assert float(psnr(a, b)) == pytest.approx(peak_signal_noise_ratio(pixels, other), abs=1e-9)
        assert ssim(a, b) == pytest.approx(structural_similarity(pixels, other, channel_axis=2), abs=1e-6)


def test_an_exact_image_does_not_make_the_mean_infinite() -> None:
    """One of two images without any error counts as `TOP_PSNR`."""
    from comdefend_cli.network.metrics import TOP_PSNR, mean_psnr, psnr

    a = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    b = a.clone()
    b[1] = 16
    assert psnr(a, b)[0] == torch.inf
    assert mean_psnr(a, b) == pytest.approx((TOP_PSNR + float(psnr(a, b)[1])) / 2)


def test_strips_that_cannot_be_written_are_refused_before_the_first_image(image: Path, small_weights: Path) -> None:
    """Of several images into a folder, one whose format is not written in strips stops all before any."""
    other = image.with_name("b.jpg")
    Image.open(image).save(other)
    arguments = ["purify", str(image), str(other), "-o", str(image.parent / "out"), "--strips", "--weights", str(small_weights), "-q"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2 and "b.jpg: --strips writes .png or .tiff" in done.stderr and done.stderr.count("\n") == 1
    assert not (image.parent / "out").exists()
