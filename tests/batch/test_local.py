"""The engine of this machine, as it works with files and networks."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAMILIES, Run, photo, small_model
from PIL import Image

from comdefend_cli import Purifier, Settings
from comdefend_cli.batch import local
from comdefend_cli.batch import networks as networks_module
from comdefend_cli.batch.budget import BUDGET
from comdefend_cli.batch.engine import Result
from comdefend_cli.batch.local import LocalEngine, open_local
from comdefend_cli.batch.networks import Networks
from comdefend_cli.batch.options import Options
from comdefend_cli.batch.plan import Job, Plan
from comdefend_cli.batch.request import Request
from comdefend_cli.batch.storage.folder import Folder
from comdefend_cli.batch.storage.listing import Stamp
from comdefend_cli.errors import UsageError
from comdefend_cli.network.registry import DEFAULT_COLOR, DEFAULT_GRAY, load_weights
from comdefend_cli.network.weight_file import save_weights


def test_the_defaults_for_colour_and_grey_by_image(tmp_path: Path) -> None:
    """Without --weights, a colour and a grey image get the pixels of the API's default pair."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    images = {"color.png": photo("astronaut.png")[:24, :30], "gray.png": photo("camera.png")[100:124, 100:130]}
    for name, pixels in images.items():
        Image.fromarray(pixels).save(source / name)
    networks = Networks(Request(None, "cpu", "float32"))
    with open_local(Folder(source), Folder(out), networks) as work:
        assert [result.status for result in work.results()] == ["done", "done"]
    api = Purifier.from_pretrained(device="cpu", precision="float32")
    for name, pixels in images.items():
        assert np.array_equal(np.array(Image.open(out / name)), api(pixels)), name
    with open_local(Folder(source), Folder(out), Networks(Request(None, "cpu", "float32"))) as work:
        assert [result.status for result in work.results()] == ["kept", "kept"]


@pytest.mark.parametrize(
    ("own", "settings", "samples"),
    [
        (0.0, Settings(samples=3), 1),
        (0.5, Settings(samples=3), 3),
        (0.0, Settings(samples=3, noise_std=1.0), 3),
        (0.0, Settings(samples=3, input_noise=5.0), 3),
    ],
)
def test_grey_is_computed_as_colour_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: float, settings: Settings, samples: int
) -> None:
    """In its precision, by its backend; several samples that were asked for only where the grey weights have noise too."""
    names = {DEFAULT_COLOR: small_model(), DEFAULT_GRAY: small_model(1, 4)}
    for (name, model), noise in zip(names.items(), (20.0, own), strict=True):
        model.input_noise = noise
        save_weights(tmp_path / name, model, {"data": "none"})
    monkeypatch.setattr(networks_module, "load_weights", lambda name: load_weights(str(tmp_path / name)))
    networks = Networks(Request(None, "cpu", "bfloat16", "torch", settings))
    (color, first), (gray, second) = networks.route(gray=False), networks.route(gray=True)
    assert (color.settings, first) == (settings, load_weights(str(tmp_path / DEFAULT_COLOR)).sha256)
    assert (gray.settings, second) == (replace(settings, samples=samples), load_weights(str(tmp_path / DEFAULT_GRAY)).sha256)
    assert (gray.precision, gray.backend) == (color.precision, color.backend) == ("bfloat16", "torch")
    assert networks.route(gray=True)[0] is gray  # Made once.
    monkeypatch.undo()
    both = Networks(Request(str(tmp_path / DEFAULT_COLOR), "cpu", "float32"))
    assert both.route(gray=True) == both.route(gray=False) == (both.purifier, first)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_goes_through_networks_of_either_family(tmp_path: Path, family_weights: dict[str, Path], family: str) -> None:
    """Images of many odd sizes, colour and grey, get the pixels of the API; networks of the other family are another run's."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    sizes = [(1, 1), (5, 7), (33, 18), (33, 18), (40, 41)]
    images = {f"{index}.png": photo("astronaut.png")[: size[0], : size[1]] for index, size in enumerate(sizes)}
    images["gray.png"] = photo("camera.png")[100:125, 100:130]
    for name, pixels in images.items():
        Image.fromarray(pixels).save(source / name)
    path = family_weights[family]
    with open_local(Folder(source), Folder(out), Networks(Request(str(path), "cpu", "float32"))) as work:
        assert [result.status for result in work.results()] == ["done"] * len(images)
    api = Purifier.from_pretrained(path, device="cpu", precision="float32")
    for name, pixels in images.items():
        assert np.array_equal(np.array(Image.open(out / name)), api(pixels)), name


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_beside_a_gpu_copies_take_one_thread(
    tmp_path: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, device: str
) -> None:
    """The networks on a CPU keep all threads; for another device PyTorch has one on the CPU, until the run has ended.

    Beside such, each thread that decodes or encodes has an image at hand.
    """
    rooms: list[tuple[float, ...]] = []
    monkeypatch.setattr(local, "count_cores", lambda: 8)
    monkeypatch.setattr(local, "fit_budget", lambda *arguments: (rooms.append(arguments), 64.0)[1])
    before = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(before))
    torch.set_num_threads(3)
    source = tmp_path / "in"
    source.mkdir()
    Image.fromarray(photo("astronaut.png")[:16, :16]).save(source / "a.png")
    networks = Networks(Request(str(small_weights), "cpu", backend="torch"))
    networks.device = torch.device(device)  # As if; the networks stay where they are.
    seen: list[int] = []
    purify = networks.purifier.purify
    monkeypatch.setattr(networks.purifier, "purify", lambda *arguments: (seen.append(torch.get_num_threads()), purify(*arguments))[1])
    with open_local(Folder(source), Folder(tmp_path / "out"), networks) as work:
        assert [result.status for result in work.results()] == ["done"]
    assert seen == [3 if device == "cpu" else 1]
    assert rooms == [(1.0, 64.0 if device == "cpu" else 256.0)]
    assert torch.get_num_threads() == 3


def test_no_file_is_read_before_there_is_room_for_it(tmp_path: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the budget holds one file, one file is in memory at a time, from its first byte on, however many threads read."""
    source = tmp_path / "in"
    source.mkdir()
    for index in range(8):
        Image.fromarray(photo("astronaut.png")[:16, :16]).save(source / f"{index}.bmp")
    monkeypatch.setattr(local, "_BYTES_A_MEGAPIXEL", (source / "0.bmp").stat().st_size)  # Each takes one megapixel.
    asked: list[tuple[float, ...]] = []
    monkeypatch.setattr(local, "fit_budget", lambda *arguments: (asked.append(arguments), 1.5)[1])
    held: set[str] = set()
    most: list[int] = []
    items: list[Any] = []

    def read(place: Folder, name: str) -> bytes:
        held.add(name)
        most.append(len(held))
        time.sleep(0.02)
        return (place.root / name).read_bytes()

    release = LocalEngine.release
    monkeypatch.setattr(Folder, "read", read)
    monkeypatch.setattr(
        LocalEngine, "release", lambda work, item: (held.discard(item.job.source), items.append(item), release(work, item))[2]
    )
    with open_local(Folder(source), Folder(tmp_path / "out"), Networks(Request(str(small_weights), "cpu", backend="torch"))) as work:
        assert [result.status for result in work.results()] == ["done"] * 8
    assert most == [1] * 8
    assert [(item.data, item.image) for item in items] == [(None, None)] * 8
    assert asked == [(1.0, BUDGET)]  # All the memory is this run's.


def test_no_thread_outlives_a_run_that_is_left_half_way(tmp_path: Path, small_weights: Path) -> None:
    """Who leaves a run while holding on to its results ends it: all threads with the journal, and the next run does the rest."""
    source = tmp_path / "in"
    source.mkdir()
    for index in range(30):
        Image.fromarray(photo("astronaut.png")[: 40 + index, :60]).save(source / f"{index}.png")
    networks = Networks(Request(str(small_weights), "cpu", backend="torch"))
    before = set(threading.enumerate())
    opening = open_local(Folder(source), Folder(tmp_path / "out"), networks)
    with pytest.raises(ZeroDivisionError), opening as engine:
        results = engine.results()
        next(results)
        raise ZeroDivisionError
    assert set(threading.enumerate()) <= before
    done = len(list((tmp_path / "out").glob("*.png")))
    assert done < 30
    with open_local(Folder(source), Folder(tmp_path / "out"), networks) as engine:
        for result in engine.results():
            if result.status == "done":
                engine.stop()  # As a signal does: what is begun is finished, and the results end.
    assert done < (done := len(list((tmp_path / "out").glob("*.png")))) < 30
    with open_local(Folder(source), Folder(tmp_path / "out"), networks) as engine:
        assert Counter(result.status for result in engine.results()) == {"kept": done, "done": 30 - done}


@pytest.mark.parametrize(("error", "wait"), [(ZeroDivisionError, True), (KeyboardInterrupt, False)])
def test_who_insists_waits_for_no_thread(
    tmp_path: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], wait: bool
) -> None:
    """A mistake ends the run when its threads have ended, a second Ctrl-C at once."""
    waits: list[bool] = []
    close = LocalEngine.close
    monkeypatch.setattr(LocalEngine, "close", lambda engine, *, wait: (waits.append(wait), close(engine, wait=True))[1])
    (tmp_path / "in").mkdir()
    Image.fromarray(photo("astronaut.png")[:16, :16]).save(tmp_path / "in" / "a.png")
    networks = Networks(Request(str(small_weights), "cpu", backend="torch"))
    with pytest.raises(error), open_local(Folder(tmp_path / "in"), Folder(tmp_path / "out"), networks):
        raise error
    assert waits == [wait]


class Said:
    """A state that writes down what it is told, and what is in the output folder then."""

    def __init__(self, out: Path) -> None:
        self.out, self.lines = out, list[tuple[str, object, list[str]]]()

    def _note(self, word: str, what: object) -> None:
        self.lines.append((word, what, sorted(path.name for path in self.out.iterdir())))

    def begin(self, outputs: list[str]) -> None:
        self._note("begin", outputs)

    def finish(self, output: str, source: str, before: Stamp, after: Stamp, key: str) -> None:
        assert after.st_size == (self.out / output).stat().st_size
        self._note("finish", (output, source, before.st_size, key))

    def drop(self, output: str) -> None:
        self._note("drop", output)


def test_what_is_said_of_an_output_is_true(tmp_path: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is begun before it is there and finished once it is; one that cannot be written is dropped, unless an older one stays there."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    Image.fromarray(photo("astronaut.png")[:16, :24]).save(source / "a.png")
    size = (source / "a.png").stat().st_size
    networks = Networks(Request(str(small_weights), "cpu", backend="torch"))
    key = networks.identity.make_key(networks.identity.sha256s[0], Options())

    def go(*, replaces: bool) -> tuple[Result, list[tuple[str, object, list[str]]]]:
        said = Said(out)
        plan = Plan([Job("a.png", "a.png", size, replaces)])
        engine = LocalEngine(Folder(source), Folder(out), networks, Options(), plan, said)
        (result,) = engine.results()
        assert engine.pixels == 16 * 24
        return result, said.lines

    result, lines = go(replaces=False)
    assert lines == [("begin", ["a.png"], []), ("finish", ("a.png", "a.png", size, key), ["a.png"])]
    assert (result.status, result.reason, result.size, result.width, result.height, result.format) == ("done", "", size, 24, 16, "PNG")
    assert result.notices == () and result.seconds > 0
    result, lines = go(replaces=False)  # Somebody's file has come between.
    assert [line[:2] for line in lines] == [("begin", ["a.png"]), ("drop", "a.png")]
    assert (result.status, result.format) == ("failed", "") and result.reason.startswith("already exists")
    monkeypatch.setattr(local, "encode_image", lambda *arguments, **more: 1 / 0)
    result, lines = go(replaces=True)
    assert [line[:2] for line in lines] == [("begin", ["a.png"])]
    assert result.status == "failed"


def test_an_input_that_is_a_link_to_an_output_is_not_overwritten(tmp_path: Path, small_weights: Path) -> None:
    """Even with --overwrite, a file that an input leads to stays as it is."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    Image.fromarray(photo("astronaut.png")[:16, :16]).save(out / "a.png")
    before = (out / "a.png").read_bytes()
    (source / "a.png").symlink_to(out / "a.png")
    networks = Networks(Request(str(small_weights), "cpu", backend="torch"))
    with (
        pytest.raises(UsageError, match="inputs are never changed"),
        open_local(Folder(source), Folder(out), networks, Options(overwrite=True)),
    ):
        pass
    assert (out / "a.png").read_bytes() == before


def test_the_command_agrees_with_purify(tmp_path: Path, run: Run, small_weights: Path) -> None:
    """Purified alone and in a folder with others of its size, an image has the same pixels; a report may lie in the output folder."""
    source = tmp_path / "in"
    source.mkdir()
    for index in range(6):
        Image.fromarray(photo("astronaut.png")[30 * index : 30 * index + 40, 200:250]).save(source / f"{index}.jpg", quality=95)
    options = ("--weights", small_weights, "--precision", "float32", "--device", "cpu")
    report = tmp_path / "in-purified" / "results.jsonl"
    many = run("purify-dir", source, "--format", "png", "--report", report, "--quiet", *options)
    assert (many.returncode, many.stderr, many.stdout) == (0, b"", b"")
    assert len([json.loads(line) for line in report.read_text().splitlines()]) == 6
    alone = run("purify", source / "3.jpg", tmp_path / "3.png", "--quiet", *options)
    assert alone.returncode == 0, alone.stderr
    assert np.array_equal(np.array(Image.open(tmp_path / "3.png")), np.array(Image.open(tmp_path / "in-purified" / "3.png")))
