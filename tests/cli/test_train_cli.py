"""`comdefend train` as a person runs it: real processes, Ctrl-C, cut-off runs, collapse."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, Run, photo
from PIL import Image
from typer.testing import CliRunner, Result

from comdefend_cli import __version__
from comdefend_cli.classifiers.loading import ClassifierHeader, build, save_classifier
from comdefend_cli.cli import app
from comdefend_cli.cli.train import _outputs
from comdefend_cli.cli.train_run import _steps
from comdefend_cli.cli.training import hold_outputs
from comdefend_cli.errors import UsageError
from comdefend_cli.network import architecture
from comdefend_cli.network.architecture import PaperArchitecture, ResidualArchitecture
from comdefend_cli.network.registry import load_weights
from comdefend_cli.training import checkpoint, purifier
from comdefend_cli.training.config import TrainConfig

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png")
#: The command with networks of few channels, so that a step takes milliseconds; CUT_OFF kills it while it writes its results,
#: FAULT makes the second process of two fail in its first step.
NARROW = f"""
import os
from functools import partial
from comdefend_cli.training import plots, purifier  # All that knows the class itself, before it is replaced for settings.
from comdefend_cli.cli import main
from comdefend_cli.network import architecture
from comdefend_cli.network.architecture import PaperArchitecture
architecture.PaperArchitecture = partial(PaperArchitecture, hidden={SMALL})
if "FAULT" in os.environ and os.environ["RANK"] == "1":
    def forward(*arguments):
        if os.environ["FAULT"] == "exit":
            os._exit(3)
        raise RuntimeError("a kernel failed")
    from comdefend_cli.training.objective import Objective
    Objective.forward = forward
if "CUT_OFF" in os.environ:
    plots.draw_curves = lambda history: os._exit(9)
main()
"""
#: One thread each: these networks are too small for more, and threads that wait for a busy core take seconds.
ENVIRONMENT = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with CIFAR-10's six files, of a few 32x32 crops of photographs each."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "cifar-10-batches-py").mkdir()
    crops = np.stack([photo(name)[y : y + 32, x : x + 32] for name in PHOTOS for y in (40, 120, 200) for x in (60, 140, 220, 300)])
    rows = crops.transpose(0, 3, 1, 2).reshape(-1, 3072)
    for index, name in enumerate(["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]):
        batch = {b"data": np.ascontiguousarray(rows[index::6]), b"labels": [0] * len(rows[index::6])}
        (folder / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(batch, protocol=2))
    return folder


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A script that is the command with narrow networks."""
    path = tmp_path_factory.mktemp("script") / "narrow.py"
    path.write_text(NARROW)
    return path


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, cifar: Path, tmp_path: Path) -> Iterator[Any]:
    """Run the command here, with narrow networks and --out in `tmp_path`."""
    monkeypatch.setattr(architecture, "PaperArchitecture", partial(PaperArchitecture, hidden=SMALL))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def invoke(*arguments: object, out: str = "w.safetensors") -> Result:
        given = list(map(str, arguments))
        fixed = list_arguments(cifar, tmp_path / out, [] if "--data" in given else ["cifar10"])
        return CliRunner().invoke(app, [*fixed, "--steps", "2", "--batch-size", "2", *given])

    yield invoke
    torch.set_num_threads(threads)


def list_arguments(data: Path, out: Path, names: Sequence[str] = ("cifar10",)) -> list[str]:
    options = {"--data-dir": data, "--out": out, "--device": "cpu", "--precision": "float32"}
    named = [part for name in names for part in ("--data", name)]
    return ["train", "--no-download", *named, *(str(part) for option in options.items() for part in option)]


def run_process(script: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**ENVIRONMENT, **variables}, check=False, timeout=300)


def run_torchrun(script: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**ENVIRONMENT, **variables}, check=False, timeout=300)


def _interrupt(script: Path, times: int, *arguments: object) -> tuple[int, str]:
    """Start the command, press Ctrl-C after its first line about a step, and give exit code and what it said."""
    command = [sys.executable, str(script), *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if line.startswith("step "):
                break
        for _ in range(times):
            process.send_signal(signal.SIGINT)
        return process.wait(timeout=120), said + process.stderr.read()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.slow
def test_a_run_leaves_weights_log_and_images(run: Run, cifar: Path, tmp_path: Path) -> None:
    """A whole run at full width: a loadable weight file with a complete header, a log, two images, no checkpoint."""
    out = tmp_path / "w.safetensors"
    done = run(
        *list_arguments(cifar, out),
        "--steps",
        3,
        "--batch-size",
        2,
        "--validate-every",
        1,
        "--penalty",
        0.001,
        "--bits",
        8,
        "--inference-noise",
        20,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w-curves.png", "w-pictures.png", "w.json", "w.safetensors"]
    loaded = load_weights(str(out))
    assert loaded.header.architecture == PaperArchitecture(3, 8)
    assert loaded.header.input_noise == loaded.header.training["inference_noise"] == 20.0
    said = loaded.header.training
    expected = {"data": "cifar10", "steps": 3, "batch_size": 2, "seed": 0, "penalty": 0.001, "noise_std": 20.0, "input_noise": 0.0}
    expected |= {"optimizer": "muon", "lr": 0.02, "test_images": 6, "train_images": 30, "comdefend_version": __version__}
    assert expected.items() <= said.items()
    assert 5 < said["psnr_db"] < 40
    log = json.loads((tmp_path / "w.json").read_text())
    assert log["sha256"] == loaded.sha256
    assert log["training"] == said
    assert [report["step"] for report in log["history"]] == [1, 2, 3]
    assert all(report["psnr"] and report["loss"] for report in log["history"])
    for name in ("w-curves.png", "w-pictures.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 200
    shown = done.stderr.decode()
    assert all(word in shown for word in ("step 1/3", "loss", "PSNR", "dB", "images/s", "left"))
    assert done.stdout == b""


@pytest.mark.slow
def test_ctrl_c_then_resume_equals_an_uninterrupted_run(narrow: Path, cifar: Path, tmp_path: Path) -> None:
    """Stopped by SIGINT with exit code 130 and a checkpoint; --resume ends in the same file, byte for byte."""
    options = ["--steps", 120, "--batch-size", 2, "--validate-every", 5, "--input-noise", 20]
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    assert run_process(narrow, *list_arguments(cifar, whole), *options).returncode == 0
    code, said = _interrupt(narrow, 1, *list_arguments(cifar, stopped), *options)
    assert code == 130, said
    assert "--resume" in said
    assert [path.name for path in tmp_path.glob("stopped*")] == ["stopped.checkpoint"]
    done = run_process(narrow, *list_arguments(cifar, stopped), *options, "--resume")
    assert done.returncode == 0, done.stderr
    assert "going on after step" in done.stderr
    assert _sha256(stopped) == _sha256(whole)
    first, second = (json.loads(path.with_suffix(".json").read_text())["history"] for path in (whole, stopped))
    assert [report["loss"] for report in first] == [report["loss"] for report in second]


@pytest.mark.slow
def test_ctrl_c_twice_ends_at_once(narrow: Path, cifar: Path, tmp_path: Path) -> None:
    """Two SIGINTs: exit code 130, no traceback, no weights, and a checkpoint that can still be read."""
    out = tmp_path / "w.safetensors"
    code, said = _interrupt(narrow, 2, *list_arguments(cifar, out), "--steps", 100_000, "--batch-size", 2, "--validate-every", 5)
    assert code == 130, said
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["w.checkpoint"]
    assert not checkpoint.checkpoint_is_final(tmp_path / "w.checkpoint", "comdefend train")


@pytest.mark.slow
def test_a_run_cut_off_while_it_wrote_its_results_can_be_finished(narrow: Path, cifar: Path, tmp_path: Path) -> None:
    """Killed after the weight file and before the images: --resume writes all of them, and the same weights."""
    arguments = [*list_arguments(cifar, tmp_path / "w.safetensors"), "--steps", 3, "--batch-size", 2]
    assert run_process(narrow, *arguments, CUT_OFF="1").returncode == 9
    before = _sha256(tmp_path / "w.safetensors")
    assert (tmp_path / "w.checkpoint").exists()
    for name in ("safetensors", "checkpoint", "json"):  # As a process leaves them that is killed a little earlier.
        (tmp_path / f".w.{name}.0123abcd.part").touch()
    (tmp_path / ".w.safetensors.lock").touch()
    done = run_process(narrow, *arguments, "--resume")
    assert done.returncode == 0, done.stderr
    assert _sha256(tmp_path / "w.safetensors") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w-curves.png", "w-pictures.png", "w.json", "w.safetensors"]


@pytest.mark.slow
def test_a_collapsed_run_writes_no_weights(run: Run, cifar: Path, tmp_path: Path) -> None:
    """Full-width networks under a learning rate far too high: exit code 1, one line with the remedy, no weight file."""
    arguments = [*list_arguments(cifar, tmp_path / "w.safetensors"), "--steps", 30, "--batch-size", 2, "--optimizer", "adam", "--lr", 0.3]
    done = run(*arguments, "--warmup", 0, "--quiet")
    said = done.stderr.decode()
    assert done.returncode == 1, said
    assert said.startswith("error: collapsed at step")
    assert said.count("\n") == 1
    assert "--lr" in said
    assert "--optimizer muon" in said
    assert not any(path.exists() for path in _outputs(tmp_path / "w.safetensors").values())


def test_a_folder_of_images(in_process: Any, tmp_path: Path) -> None:
    """--data DIR trains on crops of images, tells of files that are none, and names the folder in the header."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in PHOTOS:
        Image.fromarray(photo(name)[100:180, 100:200]).save(folder / name)
    (folder / "broken.png").write_bytes(b"no image")
    result = in_process("--data", folder)
    assert result.exit_code == 0, result.output
    assert "1 file in" in result.output
    assert load_weights(str(tmp_path / "w.safetensors")).header.training["data"] == "folder:photos"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photographs, and a grey one."""
    folder = tmp_path_factory.mktemp("folders") / "photos"
    folder.mkdir()
    for name in PHOTOS:
        Image.fromarray(photo(name)[100:180, 100:200]).save(folder / name)
    (folder.parent / "greys").mkdir()
    for index in range(3):
        Image.fromarray(photo("camera.png")[50 * index : 50 * index + 40, :60]).save(folder.parent / "greys" / f"{index}.png")
    return folder


RESIDUAL = ("--arch", "residual", "--width", 8, "--blocks", 1)


def test_residual_networks_and_several_data_sets(in_process: Any, photos: Path, tmp_path: Path) -> None:
    """Header and log say family, sizes and data; a data set that is named twice is read once, and its files are told of once."""
    named = [part for name in ("cifar10", photos, "cifar10", "drawings") for part in ("--data", name)]
    result = in_process(
        *named, *RESIDUAL, "--downscale", 4, "--jitter", 0.5, "--small", 0.5, "--shrink", 2, "--loss", "rmse", "--rounded-share", 0.5
    )
    assert result.exit_code == 0, result.output
    loaded = load_weights(str(tmp_path / "w.safetensors"))
    assert loaded.header.architecture == ResidualArchitecture(3, 12, 4, 8, 1)
    said = {
        "data": "cifar10+folder:photos+cifar10+drawings",
        "train_images": 30 + 2 + 10_000,
        "test_images": 6,
        "loss": "rmse",
        "rounded_share": 0.5,
    }
    said |= {"arch": "residual", "downscale": 4, "width": 8, "blocks": 1, "jitter": 0.5, "small": 0.5, "shrink": 2, "gray": False}
    assert said.items() <= loaded.header.training.items()
    assert json.loads((tmp_path / "w.json").read_text())["training"] == loaded.header.training


def test_colour_images_made_grey(in_process: Any, photos: Path, tmp_path: Path) -> None:
    """With --gray, colour and grey images train networks of one channel together; without it they are refused."""
    data = ("--data", "cifar10", "--data", photos.parent / "greys")
    refused = in_process("--quiet", *data, *RESIDUAL)
    assert (refused.exit_code, refused.output.count("\n")) == (2, 1) and "--gray" in refused.output
    result = in_process(*data, *RESIDUAL, "--gray", "--bits", 4)
    assert result.exit_code == 0, result.output
    assert load_weights(str(tmp_path / "w.safetensors")).header.architecture == ResidualArchitecture(1, 4, 2, 8, 1)


def test_each_data_set_has_its_classifier(in_process: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--features DATA=CLASSIFIER is said in the header by hash or name; one that is not said whose it is, or of other data, is an error."""
    torch.manual_seed(0)
    header = ClassifierHeader("small", 3, ("a", "b"), (0.5,) * 3, (0.25,) * 3)
    sha256 = save_classifier(tmp_path / "c.safetensors", build(header), header)
    (tmp_path / "sees.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 2))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = ("--data", "cifar10", "--data", photos, "--data", "cifar10")
    chosen = ("--features", f"cifar10={tmp_path / 'c.safetensors'}", "--features", f"{photos}=sees:make", "--feature-weight", 0.1)
    assert in_process(*data, *RESIDUAL, *chosen).exit_code == 0
    training = load_weights(str(tmp_path / "w.safetensors")).header.training
    assert (training["features"], training["feature_weight"]) == (f"cifar10={sha256},folder:photos=sees:make", 0.1)
    assert in_process(*data, *RESIDUAL, *chosen, "--feature-weight", 0.2, "--overwrite").exit_code == 0
    assert load_weights(str(tmp_path / "w.safetensors")).header.training["feature_weight"] == [0.1, 0.2, 0.1]
    noise = ("--input-noise", 30, "--input-noise", 60, "--input-noise-min", 10)
    assert in_process(*data, *RESIDUAL, *noise, "--overwrite").exit_code == 0
    training = load_weights(str(tmp_path / "w.safetensors")).header.training
    assert (training["input_noise"], training["input_noise_min"]) == ([30, 60, 30], 10)
    refused = in_process("--quiet", *data, *RESIDUAL, *noise, "--input-noise", 9, "--overwrite")
    assert (refused.exit_code, refused.output.count("\n")) == (2, 1) and "--input-noise is there 3 times" in refused.output
    refused = in_process("--quiet", *data, *RESIDUAL, *chosen, *("--feature-weight", 0.2) * 2, "--overwrite")
    assert (refused.exit_code, refused.output.count("\n")) == (2, 1) and "--feature-weight" in refused.output
    torch.manual_seed(0)
    grey = ClassifierHeader("small", 1, ("a", "b"), (0.5,), (0.25,))
    save_classifier(tmp_path / "grey.safetensors", build(grey), grey)
    refused = in_process("--quiet", *RESIDUAL, "--features", tmp_path / "grey.safetensors", "--overwrite")
    assert (refused.exit_code, refused.output.count("\n")) == (2, 1) and "fails on images of the shape (2, 3, 32, 32)" in refused.output
    both = ("--features", tmp_path / "c.safetensors", "--features", "sees:make", "--stability-weight", 0.5)
    assert in_process(*RESIDUAL, *both, "--overwrite").exit_code == 0
    training = load_weights(str(tmp_path / "w.safetensors")).header.training
    assert (training["features"], training["stability_weight"]) == (f"{sha256}+sees:make", 0.5)
    for spec in ("small", "mnist=small"):
        refused = in_process("--quiet", *data, *RESIDUAL, "--features", spec, "--overwrite")
        assert (refused.exit_code, refused.output.count("\n")) == (2, 1) and "DATA=CLASSIFIER" in refused.output


def test_init_brings_its_networks(in_process: Any, tmp_path: Path) -> None:
    """Family, sizes and bits are those of the weights, said or not; others than theirs are refused in one line that names the option."""
    start = tmp_path / "start.safetensors"
    assert in_process(*RESIDUAL, "--downscale", 4, "--bits", 8, out=start.name).exit_code == 0
    same = ("--arch", "residual", "--downscale", 4, "--width", 8, "--bits", 8)
    for options in ((), same):
        result = in_process("--init", start, *options, "--overwrite")
        assert result.exit_code == 0, result.output
        loaded, before = load_weights(str(tmp_path / "w.safetensors")), load_weights(str(start))
        assert loaded.header.architecture == before.header.architecture == ResidualArchitecture(3, 8, 4, 8, 1)
        assert loaded.header.training["init"] == before.sha256 and loaded.sha256 != before.sha256
    for name, value, own in (("arch", "paper", "residual"), ("downscale", 2, 4), ("width", 64, 8), ("blocks", 3, 1)):
        refused = in_process("--quiet", "--init", start, f"--{name}", value, "--overwrite")
        assert (refused.exit_code, refused.output.count("\n")) == (2, 1), refused.output
        assert f"--{name} {value}: the weights to start from have {own}" in refused.output


def test_init_takes_the_layers_that_fit(in_process: Any, tmp_path: Path) -> None:
    """For grey images, and with other bits, the first and last layers are new, and the rest goes on from the weights."""
    start = tmp_path / "start.safetensors"
    assert in_process(*RESIDUAL, out=start.name).exit_code == 0
    assert in_process("--init", start, "--gray", "--bits", 4, "--steps", 1, "--lr", 1e-6, "--warmup", 1000).exit_code == 0
    before, after = load_weights(str(start)).model.state_dict(), load_weights(str(tmp_path / "w.safetensors")).model.state_dict()
    assert after["com.0.weight"].shape == (8, 4, 3, 3) and after["com.3.weight"].shape == (16, 8, 3, 3)
    same = {name for name in before if before[name].shape == after[name].shape and torch.allclose(before[name], after[name], atol=1e-4)}
    assert {f"{network}.1.{layer}.weight" for network in ("com", "rec") for layer in ("first", "second")} <= same


def test_init_of_the_paper_s_networks_brings_them_too(in_process: Any, small_weights: Path, tmp_path: Path) -> None:
    """Without --arch they are the paper's, as ever; --arch residual is refused."""
    assert in_process("--init", small_weights).exit_code == 0
    assert load_weights(str(tmp_path / "w.safetensors")).header.architecture == PaperArchitecture(3, 12, SMALL)
    refused = in_process("--quiet", "--init", small_weights, "--overwrite", *RESIDUAL)
    assert refused.exit_code == 2 and "--arch residual: the weights to start from have paper" in refused.output


def test_a_run_from_weights_is_resumed_with_them(in_process: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--resume with the same --init goes on, without it or with other networks it does not."""
    start = tmp_path / "start.safetensors"
    assert in_process(*RESIDUAL, out=start.name).exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(purifier.PurifierTrainer, "step", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        assert in_process("--init", start).exit_code == 130
    other = in_process("--resume", *RESIDUAL)
    assert other.exit_code == 1 and "is of a run with --init" in other.output
    assert in_process("--resume", "--init", start).exit_code == 0


@pytest.mark.parametrize("option", ["--input-noise-min", "--input-noise-least"])
def test_the_least_input_noise_has_an_old_spelling(in_process: Any, tmp_path: Path, option: str) -> None:
    """Both are taken, and the header has the new one; the old one is not in the help."""
    assert in_process("--input-noise", 30, option, 20).exit_code == 0
    training = load_weights(str(tmp_path / "w.safetensors")).header.training
    assert training["input_noise_min"] == 20.0 and "input_noise_least" not in training
    said = CliRunner().invoke(app, ["train", "--help"]).output
    assert "--input-noise-min" in said and "--input-noise-least" not in said


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--resume"], 1, "no checkpoint to resume from"),
        (["--epochs", "1"], 2, "--steps and --epochs"),
        (["--out", "w.pt"], 2, "ends in .safetensors"),
        (["--out", "/absent/w.safetensors"], 1, "cannot write into this folder"),
        (["--bits", "11"], 2, "bits must be one of"),
        (["--optimizer", "sgd"], 2, "unknown optimizer"),
        (["--precision", "float16"], 2, "float16"),
        (["--data", "imagenet"], 2, "no such data set"),
        (["--init", "absent"], 2, "no such weights"),
        (["--arch", "other"], 2, "use paper or residual"),
        (["--arch", "residual", "--downscale", "3"], 2, "downscale must be one of"),
        (["--arch", "residual", "--blocks", "65"], 2, "blocks must be from 0 to 64"),
        (["--loss", "l1"], 2, "use mse or rmse"),
        (["--crop", "4"], 2, "crop must be from 8"),
        (["--init", "comdefend-12bit"], 2, "start from"),
    ],
)
def test_errors_are_one_line(in_process: Any, tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    """What cannot be done is said in one line with the right exit code, before anything is written."""
    result = in_process("--quiet", *arguments)
    assert result.exit_code == code, result.output
    assert message in result.output
    assert result.output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", list(_outputs(Path("w.safetensors"))))
def test_outputs_that_exist_are_kept(in_process: Any, tmp_path: Path, name: str) -> None:
    """Any of the four files being there stops the run before it starts; --overwrite replaces it."""
    path = _outputs(tmp_path / "w.safetensors")[name]
    path.write_bytes(b"mine")
    result = in_process()
    assert result.exit_code == 2
    assert f"{path.name}: already exists" in result.output
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]
    assert in_process("--overwrite").exit_code == 0
    assert path.read_bytes() != b"mine"


def test_a_full_disk_is_found_before_training(in_process: Any, tmp_path: Path) -> None:
    """Where no file of a run's size can be written, the command ends at once and leaves nothing."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        result = in_process()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert result.exit_code == 1
    assert "cannot write into this folder: file too large" in result.output
    assert list(tmp_path.iterdir()) == []


def test_two_runs_into_one_file_are_refused(in_process: Any, tmp_path: Path) -> None:
    """While a run trains, another into the same file ends in one line, with --overwrite and --resume too; afterwards it may."""
    with hold_outputs(tmp_path / "w.safetensors"):
        result = in_process("--overwrite")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "another run is training into it" in result.stderr
    assert in_process().exit_code == 0
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_unfinished_and_finished_runs(in_process: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint is not overwritten unasked, not resumed with other settings, and a finished run has none to resume."""
    with monkeypatch.context() as patch:
        patch.setattr(purifier.PurifierTrainer, "step", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        assert in_process().exit_code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["w.checkpoint"]
    again = in_process()
    assert again.exit_code == 2
    assert "unfinished run" in again.output
    other = in_process("--resume", "--noise-std", 10, "--penalty", 0.1)
    assert other.exit_code == 1
    assert "--penalty 0.0001, not 0.1" in other.output
    assert in_process("--resume").exit_code == 0
    assert not (tmp_path / "w.checkpoint").exists()
    complete = in_process("--resume")
    assert complete.exit_code == 2
    assert "nothing is left to resume" in complete.output


def test_steps_from_epochs() -> None:
    """Epochs count passes over the images, rounded up to whole steps; without either, the release's 3,200."""
    assert _steps(None, 1.5, 100, 8) == 19
    assert _steps(7, None, 100, 8) == 7
    assert _steps(None, None, 100, 8) == TrainConfig().steps == 3200
    for epochs in (0.0, float("nan"), float("inf")):
        with pytest.raises(UsageError):
            _steps(None, epochs, 100, 8)


def test_training_against_attacks(in_process: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The classifier is in the header; what cannot be is one line."""
    (tmp_path / "judge.py").write_text("from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))\n")
    monkeypatch.syspath_prepend(tmp_path)
    attacks = ("--adversarial", "pgd", "--adversarial-steps", 2, "--adversarial-epsilon", "4/255", "--classifier", "judge:make")
    done = in_process("--data", "cifar10", *RESIDUAL, *attacks)
    assert done.exit_code == 0, done.output
    training = load_weights(str(tmp_path / "w.safetensors")).header.training
    said = {"adversarial": "pgd", "adversarial_steps": 2, "adversarial_epsilon": 4.0, "classifier": "judge:make"}
    assert said.items() <= training.items()
    for wrong, part in (
        (attacks[:6], "--classifier"),
        (attacks[6:], "does nothing without --adversarial or --sigma"),
        ((*attacks, "--features", "judge:make"), "--features"),
        ((*attacks, "--input-noise", 20), "input-noise"),
    ):
        refused = in_process("--quiet", "--data", "cifar10", *RESIDUAL, *wrong, "--overwrite")
        assert (refused.exit_code, refused.output.count("\n")) == (2, 1) and part in refused.output, refused.output


def test_training_for_certificates(in_process: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In front of a classifier that stays; what cannot be is one line."""
    (tmp_path / "judge.py").write_text("from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))\n")
    monkeypatch.syspath_prepend(tmp_path)
    smoothed = ("--sigma", 0.25, "--consistency", 3, "--classifier", "judge:make")
    done = in_process("--data", "cifar10", *RESIDUAL, *smoothed)
    assert done.exit_code == 0 and "consistency" in done.output, done.output
    training = load_weights(str(tmp_path / "w.safetensors")).header.training
    assert {"sigma": 0.25, "draws": 2, "consistency": 3.0, "classifier": "judge:make"}.items() <= training.items()
    for wrong, part in (
        (smoothed[:2], "--sigma needs --classifier"),
        (smoothed[2:4], "--consistency does nothing without --sigma"),
        ((*smoothed, "--adversarial", "fgsm"), "leave adversarial and input-noise out"),
        ((*smoothed, "--features", "judge:make"), "--features and --sigma are two ways"),
        ((*smoothed, "--draws", 1), "at least 2"),
    ):
        refused = in_process("--quiet", "--data", "cifar10", *RESIDUAL, *wrong, "--overwrite")
        assert (refused.exit_code, refused.output.count("\n")) == (2, 1) and part in refused.output, refused.output
    (tmp_path / "photos").mkdir()
    for name in "ab":
        Image.new("RGB", (40, 40), (9, 99, 199)).save(tmp_path / "photos" / f"{name}.png")
    refused = in_process("--quiet", "--data", tmp_path / "photos", *RESIDUAL, "--sigma", 0.25, "--classifier", "small", "--overwrite")
    assert (refused.exit_code, refused.output.count("\n")) == (2, 1) and "is a folder: give a file" in refused.output, refused.output
