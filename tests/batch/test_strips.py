"""Images in strips: the pixels of the ordinary way, in memory that does not grow with the image."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import FAMILIES, Run, small_model
from PIL import Image, ImageCms

from comdefend_cli import Purifier, Settings
from comdefend_cli.errors import ComdefendError, ImageError, UsageError
from comdefend_cli.imaging.raster import Raster
from comdefend_cli.imaging.reading import read_image
from comdefend_cli.imaging.writing import write_image
from comdefend_cli.inference.planning import DEFAULT_TILE
from comdefend_cli.network.architecture import PaperArchitecture
from comdefend_cli.network.model import ComDefend
from comdefend_cli.network.weight_file import save_weights

pytest.importorskip("pyvips")

import pyvips

from comdefend_cli.batch import rows_file, strips
from comdefend_cli.batch.large_image import can_read, is_installed, open_large_image
from comdefend_cli.batch.strips import purify_file
from comdefend_cli.cli import purify_strips

NOISY = Settings(tile=90, input_noise=20.0, noise_std=1.0, seed=3, samples=2)


def in_strips(source: Path, target: Path, settings: Settings | None = None, **options: object) -> np.ndarray:
    """The pixels of a file's purified file."""
    purifier = Purifier(small_model(), small_model(1, 4), settings)
    purify_file(purifier, open_large_image(source), target, **options)  # type: ignore[arg-type]
    return np.array(Image.open(target))


def ordinary(source: Path, target: Path, settings: Settings | None = None) -> np.ndarray:
    """The same by the ordinary way."""
    image = read_image(source)
    purifier = Purifier(small_model(), small_model(1, 4), settings)
    write_image(target, Raster(purifier(image.pixels), image.alpha, image.icc, image.exif))
    return np.array(Image.open(target))


@pytest.mark.exactness
@pytest.mark.parametrize("height", [127, 130, 165])
@pytest.mark.parametrize(
    ("color", "gray"), [("residual-2", "residual-4"), ("residual-4", "paper"), ("paper", "residual-2")], ids=["squares", "four", "paper"]
)
def test_strips_go_by_the_grids_of_both_networks(tmp_path: Path, astronaut: np.ndarray, color: str, gray: str, height: int) -> None:
    """Whatever families the networks are of, strips give the whole's pixels, noise included, at heights that are no multiples."""
    for settings in (Settings(), replace(NOISY, samples=1)):
        purifier = Purifier(small_model(family=color), small_model(1, 4, family=gray), settings)
        purifier.settings = replace(settings, tile=4 * purifier.halo + 7)  # For strips that would have an odd number of rows.
        for pixels in (astronaut[:height, :61], astronaut[:height, :61, 0]):
            Image.fromarray(pixels).save(tmp_path / "in.png")
            purify_file(purifier, open_large_image(tmp_path / "in.png"), tmp_path / "out.png", overwrite=True)
            assert np.array_equal(np.array(Image.open(tmp_path / "out.png")), purifier(pixels))


@pytest.mark.parametrize("family", FAMILIES)
def test_strips_begin_on_the_grid(family: str) -> None:
    """Rows of a strip are a multiple of the squares' side and at least two halos; without a halo, of the paper's patches'."""
    for tile in (1, 33, 50, 101, 300):
        purifier = Purifier(small_model(family=family), None, Settings(tile=tile))
        rows = strips._count_rows(purifier, 100, purifier.halo)
        assert rows % purifier.step == 0 and rows >= 2 * purifier.halo
        if tile >= 4 * purifier.halo:  # As many as are a tile with a halo above and below.
            assert rows + 2 * purifier.halo <= tile < rows + 2 * purifier.halo + purifier.step
    paper = Purifier(small_model(family=family), None, Settings("paper"))
    assert strips._count_rows(paper, 100, 0) % 32 == 0
    wide = Purifier(small_model(family=family), None, Settings(tile=3000))
    for width, most in ((2**12, 2**10), (2**14, 256), (2**20, 256)):
        assert most - 32 < strips._count_rows(paper, width, 0) <= most
        assert most - wide.step < strips._count_rows(wide, width, wide.halo) <= most


@pytest.mark.exactness
@pytest.mark.parametrize(
    "settings", [Settings(tile=100), Settings(tile=10), Settings("paper"), NOISY], ids=["exact", "small", "paper", "noisy"]
)
def test_strips_have_the_pixels_of_the_whole(
    tmp_path: Path, astronaut: np.ndarray, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many strips, the last one lower than the others, give what the image at once gives, in PNG and TIFF."""
    monkeypatch.setitem(DEFAULT_TILE, "cpu", 64)  # The paper's tiling has no tile of its own to set a strip's height.
    Image.fromarray(astronaut[:275, :150]).save(tmp_path / "in.png")
    expected = ordinary(tmp_path / "in.png", tmp_path / "whole.png", settings)
    for name in ("out.png", "out.tiff"):
        assert np.array_equal(in_strips(tmp_path / "in.png", tmp_path / name, settings), expected), name


def save(image: Image.Image, path: Path, kind: str) -> None:
    """An image in one of the kinds that the next test goes through."""
    rgb = np.array(image)
    alpha = np.indices(rgb.shape[:2]).sum(0).astype(np.uint8)
    if kind == "gray":
        image.convert("L").save(path)
    elif kind == "rgba":
        Image.fromarray(np.dstack([rgb, alpha])).save(path)
    elif kind == "gray alpha":
        Image.merge("LA", (image.convert("L"), Image.fromarray(alpha))).save(path)
    elif kind == "16-bit gray":
        Image.fromarray(rgb[..., 0].astype(np.uint16) * 251 + 77).save(path)
    elif kind == "1-bit":
        image.convert("1").save(path)
    elif kind == "turned":
        exif = Image.Exif()
        exif[274] = 6
        image.save(path, exif=exif)


@pytest.mark.parametrize("kind", ["gray", "rgba", "gray alpha", "16-bit gray", "1-bit", "turned"])
@pytest.mark.parametrize("ending", [".png", ".tiff"])
def test_every_kind_is_read_as_the_ordinary_way_reads_it(tmp_path: Path, astronaut: np.ndarray, kind: str, ending: str) -> None:
    """Grey, transparency, 16 bits, 1 bit and EXIF orientation: the same size, channels and pixels."""
    source = tmp_path / f"in{ending}"
    save(Image.fromarray(astronaut[:70, :90]), source, kind)
    settings = Settings(tile=64)
    assert np.array_equal(in_strips(source, tmp_path / "out.png", settings), ordinary(source, tmp_path / "whole.png", settings))
    assert len(open_large_image(source).notices) == len(read_image(source).notices) == (kind == "16-bit gray")


@pytest.mark.parametrize("kind", ["rgba", "gray alpha"])
def test_what_changed_is_measured(tmp_path: Path, astronaut: np.ndarray, kind: str) -> None:
    """The mean square difference of colours, without transparency; strips are told as they are done, and make up the whole."""
    save(Image.fromarray(astronaut[:170, :60]), tmp_path / "in.png", kind)
    done: list[int] = []
    purifier = Purifier(small_model(), small_model(1, 4), Settings(tile=64))
    found = purify_file(purifier, open_large_image(tmp_path / "in.png"), tmp_path / "out.png", progress=done.append)
    before, after = (np.array(Image.open(tmp_path / name))[..., :-1].astype(float) for name in ("in.png", "out.png"))
    assert found == np.square(before - after).mean() > 0
    assert len(done) > 2 and sum(done) == 170 * 60 and all(count % 60 == 0 for count in done)


def test_jpeg_is_read_too(tmp_path: Path, astronaut: np.ndarray) -> None:
    """To within the rounding of two JPEG decoders, which the code's rounding may make larger at a few pixels."""
    Image.fromarray(astronaut[:80, :96]).save(tmp_path / "in.jpg", quality=95, subsampling=0)
    a, b = in_strips(tmp_path / "in.jpg", tmp_path / "a.png"), ordinary(tmp_path / "in.jpg", tmp_path / "b.png")
    assert a.shape == b.shape
    assert np.mean(a != b) < 0.2


def test_profile_and_exif_are_handed_on(tmp_path: Path, astronaut: np.ndarray) -> None:
    """The ICC profile and the EXIF block of a PNG are in the output, and not with `strip`."""
    exif = Image.Exif()
    exif[270] = "a description"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(astronaut[:40, :40]).save(tmp_path / "in.png", exif=exif, icc_profile=profile)
    in_strips(tmp_path / "in.png", tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as image:
        assert image.info["icc_profile"] == profile
        assert image.getexif()[270] == "a description"
    in_strips(tmp_path / "in.png", tmp_path / "bare.png", strip=True)
    with Image.open(tmp_path / "bare.png") as image:
        assert "icc_profile" not in image.info
        assert not image.getexif()
    Image.fromarray(astronaut[:40, :40]).save(tmp_path / "plain.png", icc_profile=profile)
    in_strips(tmp_path / "plain.png", tmp_path / "plain-out.png")
    with Image.open(tmp_path / "plain-out.png") as image:
        assert image.info["icc_profile"] == profile
        assert not image.getexif()
    in_strips(tmp_path / "in.png", tmp_path / "out.tiff")
    with Image.open(tmp_path / "out.tiff") as image:
        assert image.info["icc_profile"] == profile


def test_what_cannot_be_done_in_strips_is_refused(tmp_path: Path, astronaut: np.ndarray) -> None:
    """Palettes, CMYK, transparent colours, JPEG output, and more megapixels than allowed; nothing is written."""
    image = Image.fromarray(astronaut[:40, :40])
    image.quantize(8).save(tmp_path / "palette.png")
    image.convert("CMYK").save(tmp_path / "cmyk.tiff")
    image.save(tmp_path / "key.png", transparency=(1, 2, 3))
    image.save(tmp_path / "in.png")
    # Near infrared as a fourth sample is not transparency, and not left out: the ordinary way says what it does with it.
    vips = pyvips.Image.new_from_array(np.dstack([astronaut[:40, :40], astronaut[:40, :40, :2]]))
    for bands in (4, 5):
        vips.extract_band(0, n=bands).copy(interpretation="multiband").tiffsave(str(tmp_path / f"{bands}.tiff"))
        assert can_read(tmp_path / f"{bands}.tiff") == (bands == 4)
        patched = (tmp_path / f"{bands}.tiff").read_bytes()
        tag = struct.pack("<HHI", 338, 3, bands - 3)
        at = patched.index(tag) + 8
        (tmp_path / f"{bands}.tiff").write_bytes(patched[:at] + bytes(4) + patched[at + 4 :])
        assert not can_read(tmp_path / f"{bands}.tiff")
    for name in ("palette.png", "cmyk.tiff", "key.png", "4.tiff"):
        with pytest.raises(ImageError, match="--no-strips"):
            in_strips(tmp_path / name, tmp_path / "out.png")
    with pytest.raises(UsageError, match=r"\.png or \.tiff"):
        in_strips(tmp_path / "in.png", tmp_path / "out.jpg")
    with pytest.raises(ImageError, match="--max-megapixels"):
        open_large_image(tmp_path / "in.png", max_megapixels=0.001)
    with pytest.raises(ImageError, match="cannot read"):
        open_large_image(tmp_path / "absent.png")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("ending", [".png", ".tiff"])
def test_a_truncated_file_leaves_nothing(tmp_path: Path, astronaut: np.ndarray, ending: str) -> None:
    """A file cut off half-way is an error that names it; no output and no hidden file is left."""
    buffer = io.BytesIO()
    Image.fromarray(astronaut[:300, :200]).save(buffer, {".png": "PNG", ".tiff": "TIFF"}[ending])
    source = tmp_path / f"cut{ending}"
    whole = buffer.getvalue()
    source.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ComdefendError, match="cut"):
        in_strips(source, tmp_path / "out.png", Settings(tile=64))
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_large_files_get_wide_offsets(tmp_path: Path, astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """TIFF has 32-bit ones up to some size; what libvips cannot write is an error that says so, and leaves nothing."""
    Image.fromarray(astronaut[:10, :12]).save(tmp_path / "in.png")
    for limit, version in ((360, 42), (359, 43)):
        monkeypatch.setattr(rows_file, "_BIG_TIFF", limit)
        in_strips(tmp_path / "in.png", tmp_path / "out.tiff", overwrite=True)
        assert (tmp_path / "out.tiff").read_bytes()[2] == version

    def refuse(*arguments: object, **more: object) -> None:
        raise pyvips.Error("unable to call pngsave", "wbuffer_write: write failed")

    monkeypatch.setattr(pyvips.Image, "pngsave", refuse, raising=False)
    with pytest.raises(ComdefendError, match=r"cannot write the purified image: wbuffer_write: write failed; free some space"):
        in_strips(tmp_path / "in.png", tmp_path / "out.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "out.tiff"]


def test_a_failed_read_is_not_called_a_full_disk(tmp_path: Path, astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails is named: the input where it cannot be read, the output where there is no room; nothing is left of either."""
    Image.fromarray(astronaut[:40, :40]).save(tmp_path / "in.png")

    def fail(*arguments: object, **more: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("pyvips.Region.fetch", fail)
        with pytest.raises(ImageError, match=r"in\.png: cannot read: input/output error"):
            in_strips(tmp_path / "in.png", tmp_path / "out.png")
    with monkeypatch.context() as patch:  # What is neither is left as it is.
        patch.setattr(Purifier, "purify", fail)
        with pytest.raises(OSError, match="Input/output error"):
            in_strips(tmp_path / "in.png", tmp_path / "out.png")
    with monkeypatch.context() as patch:
        (tmp_path / ".out.png.0123abcd.part").touch()  # What a killed run left goes first.
        patch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=40 * 40 * 3 - 1))
        with pytest.raises(ComdefendError, match=r"out\.png: cannot write 0\.0 GB of decoded rows beside it.*free some space"):
            in_strips(tmp_path / "in.png", tmp_path / "out.png")
        assert [path.name for path in tmp_path.iterdir()] == ["in.png"]
        patch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=40 * 40 * 3))
        in_strips(tmp_path / "in.png", tmp_path / "out.png")


def test_existing_files_stay(tmp_path: Path, astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """An output that is there is refused before the work, and replaced when asked to."""
    Image.fromarray(astronaut[:40, :40]).save(tmp_path / "in.png")
    (tmp_path / "out.png").write_bytes(b"mine")
    with monkeypatch.context() as patch, pytest.raises(UsageError, match="already exists"):
        patch.setattr(Purifier, "purify", None)
        in_strips(tmp_path / "in.png", tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes() == b"mine"
    assert in_strips(tmp_path / "in.png", tmp_path / "out.png", overwrite=True).shape == (40, 40, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "out.png"]


def test_samples_without_noise_are_refused_in_strips_too(run: Run, tmp_path: Path, astronaut: np.ndarray) -> None:
    """No option is passed over in silence."""
    Image.fromarray(astronaut[:40, :40]).save(tmp_path / "in.png")
    for way in ("--strips", "--no-strips"):
        done = run("purify", tmp_path / "in.png", tmp_path / "out.png", way, "--samples", 4, "--input-noise", 0)
        assert done.returncode == 2
        assert b"several samples need noise" in done.stderr


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_ended_leaves_nothing(number: int, tmp_path: Path, astronaut: np.ndarray) -> None:
    """SIGTERM, as of `timeout` or a container that stops, and a terminal that closes: the decoded rows beside the output go too."""
    Image.fromarray(np.tile(astronaut, (3, 3, 1))).save(tmp_path / "in.png")
    command = ["purify", tmp_path / "in.png", tmp_path / "out.png", "--strips", "--tile", "64", "--device", "cpu", "--precision", "float32"]
    before = signal.signal(number, signal.SIG_DFL)  # A child inherits what is ignored, as SIGHUP is where the tests run under nohup.
    try:
        process = subprocess.Popen([sys.executable, "-m", "comdefend_cli", *map(str, command)], stderr=subprocess.PIPE)
    finally:
        signal.signal(number, before)
    try:
        until = time.monotonic() + 120
        while not list(tmp_path.glob(".out.png.*.part")) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == b"interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]


def test_when_strips_are_taken(tmp_path: Path, astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unasked only for large images from file to PNG or TIFF where nothing needs the whole; asked, or an error says why not."""
    source, other = tmp_path / "in.png", tmp_path / "palette.png"
    Image.fromarray(astronaut[:40, :40]).save(source)
    Image.fromarray(astronaut[:40, :40]).quantize(8).save(other)

    def wanted(asked: bool | None = None, source: Path = source, target: str = "out.png", whole: bool = False) -> bool:
        return purify_strips.choose_strips(asked, source, tmp_path / target if target != "-" else Path("-"), whole=whole, quiet=True)

    assert (wanted(), wanted(True), wanted(False)) == (False, True, False)
    monkeypatch.setattr(purify_strips, "LARGE", 0.001)
    assert (wanted(), wanted(target="out.tif"), wanted(False)) == (True, True, False)
    assert not any([wanted(whole=True), wanted(target="out.jpg"), wanted(target="-"), wanted(source=other), wanted(source=Path("-"))])
    for more in ({"whole": True}, {"target": "-"}):
        with pytest.raises(UsageError, match="--strips"):
            wanted(True, **more)  # type: ignore[arg-type]
    assert is_installed()
    monkeypatch.setitem(sys.modules, "pyvips", None)
    assert not wanted() and not is_installed()
    with pytest.raises(UsageError, match=r"comdefend-cli\[large\]"):
        open_large_image(source)


def test_the_command_in_strips(tmp_path: Path, run: Run, small_weights: Path, astronaut: np.ndarray) -> None:
    """`--strips` and `--no-strips` write the same pixels, and their records agree in size, settings and PSNR."""
    Image.fromarray(astronaut[:90, :80]).save(tmp_path / "in.png")
    common = ("--weights", small_weights, "--precision", "float32", "--device", "cpu", "--tile", 50, "--json", "--quiet")
    records = {}
    for way in ("strips", "no-strips"):
        result = run("purify", tmp_path / "in.png", tmp_path / f"{way}.png", f"--{way}", *common)
        assert result.returncode == 0, result.stderr
        records[way] = json.loads(result.stdout)
    assert np.array_equal(np.array(Image.open(tmp_path / "strips.png")), np.array(Image.open(tmp_path / "no-strips.png")))
    assert records["strips"].keys() == records["no-strips"].keys()
    for key in ("width", "height", "channels", "alpha", "precision", "tile", "weights_sha256", "psnr_db", "notices"):
        assert records["strips"][key] == pytest.approx(records["no-strips"][key], abs=1e-3), key


PEAK = """
import re, sys
from comdefend_cli.batch.large_image import open_large_image
from comdefend_cli.batch.strips import purify_file
from comdefend_cli.network.registry import load_weights
from comdefend_cli.inference.purifier import Purifier
from pathlib import Path
loaded = load_weights(sys.argv[1])
purifier = Purifier.from_weights([loaded], device="cpu", precision="float32")
from PIL import Image
Image.MAX_IMAGE_PIXELS = None
purify_file(purifier, open_large_image(Path(sys.argv[2])), Path(sys.argv[3]))
print(int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory in kilobytes, as Linux gives it")
def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    """An image of 25 times as many pixels (25 megapixels, five times the side) takes little more memory.

    The ordinary way would take 10 bytes a pixel more, 240 MB: decoded in and out, and Pillow's copy.
    """
    narrow = tmp_path / "narrow.safetensors"
    save_weights(narrow, ComDefend(PaperArchitecture(3, 12, (1,) * 8)), {})
    peaks = []
    for side in (1000, 5000):
        tile = np.random.default_rng(0).integers(0, 256, (125, 125, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(np.tile(tile, (side // 1000, side // 1000, 1))).save(tmp_path / "in.png", compress_level=1)
        command = [sys.executable, "-c", PEAK, str(narrow), str(tmp_path / "in.png"), str(tmp_path / f"{side}.png")]
        result = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert result.returncode == 0, result.stderr
        peaks.append(int(result.stdout))
    assert Image.open(tmp_path / "5000.png").size == (5000, 5000)
    assert peaks[1] - peaks[0] < 120, peaks


def test_xmp_is_handed_on_and_turns_as_ever(tmp_path: Path, astronaut: np.ndarray, run: Run, small_weights: Path) -> None:
    """XMP is in the PNG and the TIFF, not with --strip; an orientation that only XMP tells holds; IPTC is told to be left out."""
    xmp = '<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/"{} dc:title="café"/>'
    records = b"\x1c\x02\x78\0\x05woman"
    block = b"Photoshop 3.0\08BIM\x04\x04\0\0" + struct.pack(">I", len(records)) + records
    options = {"xmp": xmp.format(' tiff:Orientation="6"').encode(), "extra": b"\xff\xed" + struct.pack(">H", 2 + len(block)) + block}
    source = tmp_path / "in.jpg"
    Image.fromarray(astronaut[:40, :60]).save(source, quality=95, subsampling=0, **options)
    for target in (tmp_path / "out.png", tmp_path / "out.tiff"):
        assert in_strips(source, target).shape == (60, 40, 3)
        assert read_image(target).xmp == xmp.format("").encode()
        in_strips(source, target, strip=True, overwrite=True)
        assert read_image(target).xmp is None
    done = run("purify", source, tmp_path / "a.png", "--strips", "--weights", small_weights, "--device", "cpu")
    assert b"its IPTC block is left out" in done.stderr
