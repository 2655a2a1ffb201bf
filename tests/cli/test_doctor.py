"""`comdefend doctor` as a person runs it, and what it says of an installation that is not whole."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import Run
from typer.testing import CliRunner

from comdefend_cli import __version__
from comdefend_cli.cli import app, doctor, progress
from comdefend_cli.errors import WeightsError
from comdefend_cli.network import registry
from comdefend_cli.network.registry import read_registry
from comdefend_cli.runtime.device import cpu_has_bfloat16, warn_of_emulation


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The speed is measured once, on a small picture."""
    monkeypatch.setattr(doctor, "SECONDS", 0.0)
    monkeypatch.setattr(doctor, "draw_picture", lambda side=96, draw=doctor.draw_picture: draw(side))


def test_a_whole_installation_is_well(run: Run) -> None:
    """A real process ends with 0 and tells, as JSON, versions, backends and why not, extras, hashes, speed and the self-test."""
    done = run("doctor", "--json", "--device", "cpu")
    assert done.returncode == 0 and done.stderr == b""
    record = json.loads(done.stdout)
    assert (record["comdefend"], record["packages"]["torch"], record["healthy"]) == (__version__, torch.__version__, True)
    assert {entry["name"]: entry["sha256"] for entry in record["weights"]} == {k: v["sha256"] for k, v in read_registry().items()}
    assert record["backends"]["torch"] is None and "NVIDIA" in record["backends"]["triton"]
    assert set(record["extras"]) >= {"evaluate", "openvino", "ray"}
    assert record["test"]["passed"] and record["test"]["megapixels_per_second"] > 0
    assert record["cpu"]["bfloat16"] == cpu_has_bfloat16()


def test_what_is_broken_is_named_and_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that were changed, a missing extra, and a picture that comes out wrong: a line each, and all else is told too."""
    real = registry.load_weights

    def load(name: str) -> object:
        if name == "comdefend-12bit":
            raise WeightsError("it was changed")
        return real(name)

    monkeypatch.setattr(registry, "load_weights", load)
    monkeypatch.setattr("comdefend_cli.runtime.extras.is_installed", lambda module: module != "ray")
    monkeypatch.setattr(doctor, "LEAST_PSNR", 99.0)
    done = CliRunner().invoke(app, ["doctor", "--device", "cpu"])
    said = {line[:23].strip(): line[25:] for line in done.stdout.splitlines()}
    assert done.exit_code == 1
    assert said["comdefend-12bit"] == "FAILED: it was changed" and said["comdefend-fast"].startswith("ok  ")
    assert said["extra ray"] == "without ray: pip install 'comdefend-cli[ray]'"
    assert said["self-test"].startswith("FAILED: the purified picture has a PSNR of ")


def test_emulated_bfloat16_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a person asks for it on a CPU that has none, and nowhere else."""
    monkeypatch.setattr("comdefend_cli.runtime.device.cpu_has_bfloat16", lambda: False)
    with pytest.warns(RuntimeWarning, match="emulates bfloat16"):
        warn_of_emulation("bfloat16", torch.device("cpu"))
    warn_of_emulation("auto", torch.device("cpu"))
    warn_of_emulation("bfloat16", torch.device("cuda"))


def test_long_work_says_its_time_where_no_bar_does(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Once, when some of it is done; short work says nothing."""
    said: list[str] = []
    monkeypatch.setattr(progress, "notice", lambda text: said.append(text))
    monkeypatch.setattr(progress.Forecast, "AFTER", 0.0)
    for least in (1e9, 0.0):
        monkeypatch.setattr(progress.Forecast, "LEAST", least)
        with progress.show_pixels(100, quiet=False) as advance:
            advance(10)
            advance(10)
    assert len(said) == 1 and said[0].startswith("about ")
    assert [progress.say_duration(seconds) for seconds in (8.44, 69, 1500, 9000)] == ["8.4 s", "69 s", "25 min", "2.5 h"]
