"""The benchmarks of scale: what they compute from what they measure, and that their images are what they say."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import threading
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import photo
from PIL import Image

from comdefend_cli.batch.networks import Networks
from comdefend_cli.batch.request import Request

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"
CODEC = {
    "decode_jpeg_megapixels_per_second": 100.0,
    "encode_png_megapixels_per_second": 10.0,
    "encode_jpeg_megapixels_per_second": 100.0,
    "jpeg_bytes_a_pixel": 0.25,
    "png_bytes_a_pixel": 1.25,
}


def module(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    """A benchmark, which finds those beside it as when run as a script."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module(name)


def test_capacity_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours, bytes and bottleneck of easy rates: a CPU shares its cores with the codec, beside a GPU the slowest stage decides."""
    capacity = module(monkeypatch, "capacity")
    asked = argparse.Namespace(cores=1, gpu_cores=2, gigabits=10.0, megapixels=10.0, journal_bytes=100, plan_bytes=1000)
    made = [row for name in ("cpu", "gpu") for row in capacity.cost(name, 20.0, CODEC, asked)]
    rows = {(row["device"], row["output"], row["photographs"]): row for row in made}
    gpu = rows["gpu", "png", "a million"]
    # 2 / (1/100 + 1/10) = 18.18 megapixels a second of the codec are less than the network's 20.
    assert gpu["bottleneck"] == "codec"
    assert gpu["device_hours_at_bottleneck"] == pytest.approx(1e7 / (2 / 0.11) / 3600, abs=0.1)
    assert rows["gpu", "jpeg", "a million"]["bottleneck"] == "purification"
    assert rows["gpu", "jpeg", "a million"]["device_hours"] == pytest.approx(1e7 / 20 / 3600, abs=0.1)
    cpu = rows["cpu", "png", "a million"]
    assert cpu["device_hours"] == pytest.approx(1e7 * (1 / 20 + 0.11) / 3600, abs=0.1)
    assert (gpu["terabytes_read"], gpu["terabytes_written"], gpu["journal_gigabytes"]) == (2.5, 12.5, 0.1)
    billion = rows["gpu", "png", "a billion"]
    assert (billion["terabytes_written"], billion["first_process_gigabytes"]) == (12500.0, 1000.0)


def test_capacity_says_what_was_not_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a GPU's rate there are no numbers for it; the CPU's are those of the networks in the speed benchmark."""
    capacity = module(monkeypatch, "capacity")
    (tmp_path / "codec.json").write_text(json.dumps(CODEC))
    methods = [("ours, network: default installation", 0.25), ("ours, network: PyTorch float32", 0.1), ("authors' way", 0.01)]
    speed = {"methods": [{"name": name, "megapixels_per_second": rate} for name, rate in methods]}
    (tmp_path / "speed.json").write_text(json.dumps(speed))
    options = ["--codec", tmp_path / "codec.json", "--speed", tmp_path / "speed.json", "--out", tmp_path / "out.json"]
    monkeypatch.setattr(sys, "argv", ["capacity.py", *map(str, options)])
    capacity.main()
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["megapixels_per_second"] == {"cpu, default installation": 0.25}
    assert result["not_measured"] == ["gpu"]
    assert {row["device"] for row in result["rows"]} == {"cpu, default installation"}
    hours = 1e6 * 12 * (1 / 0.25 + 0.11 / 2) / 3600
    assert result["rows"][0]["device_hours"] == pytest.approx(hours, abs=0.1)


def test_capacity_takes_a_gpus_rates_from_its_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From host to host, under the GPU's name; other methods, and what stays on the GPU, are not what a photograph costs."""
    capacity = module(monkeypatch, "capacity")
    names = ["limit: bfloat16 matrix product", "ours: bfloat16 with triton", "ours: bfloat16 with triton, host to host"]
    rows = [{"name": name, "megapixels_per_second": rate} for name, rate in zip(names, (200.0, 130.0, 110.0), strict=True)]
    (tmp_path / "gpu.json").write_text(json.dumps({"rows": rows, "gpu": "A GPU"}))
    asked = argparse.Namespace(rate=[], speed=None, gpu=tmp_path / "gpu.json")
    assert capacity.rates(asked) == {"A GPU, bfloat16 with triton": 110.0}


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")
def test_the_gpu_benchmark_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, before it measures anything."""
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="needs an NVIDIA GPU"):
        module(monkeypatch, "gpu").main()


def test_large_photographs_are_of_12_megapixels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each another one, with a small photograph's detail: a scaled-up one would be too easy to encode."""
    module(monkeypatch, "folder").make_large(tmp_path, 3)
    paths = sorted(tmp_path.iterdir())
    assert {Image.open(path).size for path in paths} == {(4000, 3000)}
    assert len({path.read_bytes() for path in paths}) == 3
    assert min(path.stat().st_size for path in paths) > 1e6


def test_a_process_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory and end; one that takes too long is ended; one that fails says so."""
    processes = module(monkeypatch, "processes")
    run = processes.watch([sys.executable, "-c", "import time; intersect_outcomes = b'1' * 10**8; time.sleep(0.2)"])
    assert run.finished
    assert 100 < run.peak_mb < 300
    assert run.seconds > 0.2
    long = processes.watch([sys.executable, "-c", "import time; time.sleep(60)"], 0.6)
    assert not long.finished
    assert long.seconds < 30
    assert 0 < long.peak_mb_at_half <= long.peak_mb
    with pytest.raises(SystemExit, match="exit code 3"):
        processes.watch([sys.executable, "-c", "raise SystemExit(3)"])
    command = processes.purify(Path("a"), Path("b"), precision="float32", no_strips=True)
    assert command[-3:] == ["--precision", "float32", "--no-strips"]


def test_the_bytes_of_plan_and_journal_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line in the state file and what is held of an image are some hundreds of bytes: a line is longer than its two names."""
    capacity = module(monkeypatch, "capacity")
    assert 60 < capacity.journal_bytes() < 400
    assert 60 < capacity.plan_bytes() < 2000


def test_import_times_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the interpreter's lines: name, own and cumulative seconds; other lines are passed over."""
    startup = module(monkeypatch, "startup")
    lines = ["import time: self [us] | cumulative | imported package", "import time:       250 |       1000 |   torch.nn", "note: hello"]
    assert startup.imports(lines) == [("torch.nn", 0.00025, 0.001)]


def test_a_straight_line_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slope, beginning and r2 of points on a line, and r2 below 1 of others."""
    pytest.importorskip("pyvips")
    large = module(monkeypatch, "large")
    assert large.line([(1, 5.0), (2, 7.0), (10, 23.0)]) == {"slope": 2.0, "intercept": 3.0, "r2": 1.0}
    assert large.line([(1, 5.0), (2, 9.0), (10, 23.0)])["r2"] < 1
    assert module(monkeypatch, "ray_overhead").slope(2.0, 6.0, [100, 500]) == (10.0, 1.0)


def test_the_folder_benchmark_compares_the_same_pixels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_weights: Path) -> None:
    """Its images are as many and as large as it says, and its result counts all of their pixels."""
    benchmark = module(monkeypatch, "folder")
    networks = Networks(Request(str(small_weights), "cpu", "float32"))
    result = benchmark.measure(benchmark.make_thumbnails, 9, networks, tmp_path)
    paths = list((tmp_path / "make_thumbnails").iterdir())
    assert len(paths) == 9
    assert {Image.open(path).size for path in paths} == {(32, 32)}
    assert len({np.array(Image.open(path)).tobytes() for path in paths}) == 9
    assert result["megapixels"] == round(9 * 32 * 32 / 1e6, 3)
    (tmp_path / "photographs").mkdir()
    benchmark.make_photographs(tmp_path / "photographs", 12)
    sizes = [max(Image.open(path).size) for path in sorted((tmp_path / "photographs").iterdir())]
    assert len(sizes) == 12
    assert len(set(sizes)) > 1


def test_the_copies_benchmark_copies_whole_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it times puts every pixel back into its place; its encoders end with it."""
    benchmark = module(monkeypatch, "copies")
    x = torch.from_numpy(photo("astronaut.png")[None, :100, :120].copy()).permute(0, 3, 1, 2)
    running = threading.active_count()
    with benchmark.encoding(2):
        assert threading.active_count() == running + 2
        copied = benchmark.copies(x)
    assert threading.active_count() == running
    assert torch.equal(copied, x)
