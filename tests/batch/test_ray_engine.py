"""`purify-dir --engine ray`: what a worker does, and a local cluster of two workers as a whole."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FAMILIES, Run
from PIL import Image

from comdefend_cli import Purifier, Settings
from comdefend_cli.batch import ray_engine
from comdefend_cli.batch.engine import BEGUN, Result
from comdefend_cli.batch.identity import Identity
from comdefend_cli.batch.journal import STATE, open_journal
from comdefend_cli.batch.local import open_local
from comdefend_cli.batch.networks import Networks
from comdefend_cli.batch.options import Options
from comdefend_cli.batch.plan import Job, Plan
from comdefend_cli.batch.ray_cluster import Cluster, connect, fit_cluster
from comdefend_cli.batch.ray_engine import RayEngine, _cut_into_chunks, open_ray
from comdefend_cli.batch.ray_worker import ATTEMPTS, Task, Worker
from comdefend_cli.batch.request import Request
from comdefend_cli.batch.storage.folder import Folder
from comdefend_cli.batch.storage.place import Place
from comdefend_cli.batch.storage.url import Url
from comdefend_cli.errors import UsageError
from comdefend_cli.network.registry import load_weights


@pytest.fixture
def images(tmp_path: Path, astronaut: np.ndarray) -> Path:
    """Twelve photographs of two sizes, one grey, one in a subfolder, and one that is broken."""
    source = tmp_path / "images"
    (source / "sub").mkdir(parents=True)
    for index in range(10):
        Image.fromarray(astronaut[20 * index : 20 * index + 32 + index % 2, 200:232]).save(source / f"{index}.png")
    Image.fromarray(astronaut[:30, :40, 0]).save(source / "gray.bmp")
    Image.fromarray(astronaut[:50, :70]).save(source / "sub" / "large.jpg", quality=90)
    (source / "broken.png").write_bytes((source / "0.png").read_bytes()[:200])
    return source


def make_request(path: Path) -> Request:
    """What all tests ask for."""
    return Request(str(path), "cpu", "float32")


def worker(source: Path, out: Path, path: Path) -> Worker:
    """A worker in this process."""
    return Worker(Task(str(source), str(out), make_request(path), Options(recursive=True), 1.0, "run"), load_weights(str(path)))


def begin(out: Path) -> None:
    """An output folder as the run's first process makes it: with a journal."""
    out.mkdir()
    (out / STATE).touch()


def row(*names: str) -> dict[str, Any]:
    """A chunk of jobs that replace nothing."""
    return {"number": 7, "jobs": json.dumps([[name, name, 1, False] for name in names])}


def statuses(answer: dict[str, Any]) -> list[str]:
    """Of a worker's answer, in the jobs' order."""
    return [record["status"] for record in json.loads(answer["results"])]


def test_a_chunk_that_is_begun_again_replaces_what_its_first_attempt_left(images: Path, tmp_path: Path, small_weights: Path) -> None:
    """The second attempt does the same again, removes half-written files of the first, and leaves those of others."""
    out = tmp_path / "out"
    begin(out)
    attempt = worker(images, out, small_weights)
    assert statuses(attempt(row("0.png", "broken.png", "1.png"))) == ["done", "failed", "done"]
    assert json.loads((out / f"{BEGUN}run-7").read_text()) == {"outputs": ["0.png", "broken.png", "1.png"], "attempts": 1}
    for name in (".1.png.0123abcd.part", ".other.png.0123abcd.part"):
        (out / name).touch()
    first = (out / "0.png").read_bytes()
    (out / "0.png").write_bytes(b"cut short")
    assert statuses(attempt(row("0.png", "broken.png", "1.png"))) == ["done", "failed", "done"]
    assert (out / "0.png").read_bytes() == first
    assert [path.name for path in out.iterdir() if path.name.endswith(".part")] == [".other.png.0123abcd.part"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_worker_makes_what_the_purifier_makes(images: Path, tmp_path: Path, family_weights: dict[str, Path], family: str) -> None:
    """Of photographs of odd sizes, colour and grey, with networks of either family."""
    out = tmp_path / "out"
    begin(out)
    assert statuses(worker(images, out, family_weights[family])(row("1.png", "2.png", "gray.bmp"))) == ["done"] * 3
    purifier = Purifier.from_pretrained(family_weights[family], device="cpu", precision="float32")
    for name in ("1.png", "2.png", "gray.bmp"):
        assert np.array_equal(np.array(Image.open(out / name)), purifier(np.array(Image.open(images / name))))


def test_a_chunk_that_kills_its_workers_is_given_up(images: Path, tmp_path: Path, small_weights: Path) -> None:
    """After so many attempts none of which came to its end, the images are failed with a reason, and nothing is tried again."""
    out = tmp_path / "out"
    begin(out)
    (out / f"{BEGUN}run-7").write_text(json.dumps({"outputs": ["0.png"], "attempts": ATTEMPTS}))
    answer = worker(images, out, small_weights)(row("0.png"))
    assert statuses(answer) == ["failed"]
    assert "died" in json.loads(answer["results"])[0]["reason"]
    assert not (out / "0.png").exists()
    assert json.loads(answer["left"]) == ["0.png"]  # For the journal, so that the next run may replace what they left.


def test_a_second_attempt_replaces_nothing_but_what_the_first_may_have_made(images: Path, tmp_path: Path, small_weights: Path) -> None:
    """A file that stood there before the first attempt stays; what that one left is told until it is done."""
    out = tmp_path / "out"
    begin(out)
    (out / "0.png").write_bytes(b"mine")
    attempt = worker(images, out, small_weights)
    assert statuses(attempt(row("0.png", "1.png"))) == ["failed", "done"]
    again = attempt(row("0.png", "1.png"))
    assert statuses(again) == ["failed", "done"]
    assert json.loads(again["left"]) == []
    assert (out / "0.png").read_bytes() == b"mine"


def test_a_machine_that_does_not_see_the_output_folder_makes_none(images: Path, tmp_path: Path, small_weights: Path) -> None:
    """Without the journal that the first process made, it is another folder: nothing is written, and the reason says so."""
    answer = worker(images, tmp_path / "out", small_weights)(row("0.png"))
    assert statuses(answer) == ["failed"]
    assert "does not see" in json.loads(answer["results"])[0]["reason"]
    assert not (tmp_path / "out").exists()


def test_a_file_that_came_after_planning_is_not_replaced(images: Path, tmp_path: Path, small_weights: Path) -> None:
    """What stands where an output should go, and was not begun by a worker, fails that image alone and stays."""
    out = tmp_path / "out"
    begin(out)
    (out / "0.png").write_bytes(b"mine")
    answer = worker(images, out, small_weights)(row("0.png", "1.png"))
    assert statuses(answer) == ["failed", "done"]
    assert "already exists" in json.loads(answer["results"])[0]["reason"]
    assert (out / "0.png").read_bytes() == b"mine"


def test_a_worker_that_cannot_begin_fails_its_chunk_only(images: Path, tmp_path: Path, small_weights: Path) -> None:
    """An output folder that cannot be written to is the reason of each failure, not the end of the run."""
    (tmp_path / "out").write_text("a file")
    answer = worker(images, tmp_path / "out", small_weights)(row("0.png", "1.png"))
    assert statuses(answer) == ["failed", "failed"]


def test_what_a_dead_run_had_begun_is_ours(images: Path, tmp_path: Path, small_weights: Path) -> None:
    """After a run that ended before its journal knew of a chunk, the next takes its outputs for ours and does them again."""
    out = tmp_path / "out"
    begin(out)
    worker(images, out, small_weights)(row("0.png", "1.png"))
    (out / f".{BEGUN}run-8.0123abcd.part").write_text('{"outputs": ["2.p')
    (images / "broken.png").unlink()
    networks = Networks(Request(str(small_weights), "cpu", "float32"))
    with open_local(Folder(images), Folder(out), networks, Options(recursive=True)) as work:
        assert Counter(result.status for result in work.results()) == {"done": 12}
    assert not list(out.glob(f"*{BEGUN}*"))


def test_chunks_end_where_they_have_enough() -> None:
    """By number and by bytes, in order; an image over the limit is a chunk of its own."""
    jobs = [Job(str(index), str(index), 1, False) for index in range(150)]
    assert [len(chunk) for chunk in _cut_into_chunks(jobs, 64)] == [64, 64, 22]
    sizes = (20, 20, 20, 40, 1)
    jobs = [Job(str(index), str(index), size * 2**20, False) for index, size in enumerate(sizes)]
    chunks = list(_cut_into_chunks(jobs, 64))
    assert [len(chunk) for chunk in chunks] == [1, 1, 1, 1, 1]
    assert [job for chunk in chunks for job in chunk] == jobs


def test_a_run_that_is_left_half_way_stops_its_workers(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not want the results to their end lets no worker go on behind the journal's back."""
    rows = [{"number": 0, "results": json.dumps([{"status": "failed", "notices": [], "width": None, "done": None}]), "left": "[]"}]
    monkeypatch.setattr(RayEngine, "_receive_rows", lambda engine, chunks: iter(rows))
    source, out = Folder(images), Folder(tmp_path / "out")
    plan = Plan([Job("0.png", "0.png", 1, False), Job("1.png", "1.png", 1, False)])
    with open_journal(out) as journal:
        task = Task(source.address, out.address, Request(), Options(), 1.0, "run")
        engine = RayEngine(
            None, source, out, task, Cluster(workers=1), None, Identity((), "float32", "torch", Settings()), "", plan, journal
        )
        for result in engine.results():
            assert result.status == "failed"
            break
    assert engine._stop_asked


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, images: Path, run: Run) -> None:
    """Ray absent is wrong usage that says what to install; so is an unknown engine, and a URL for the local one."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"comdefend-cli\[ray\]"), connect(Cluster()):
        pass
    for arguments, said in (
        ((images, "--engine", "dask"), b"local or ray"),
        (("s3://bucket/in",), b"--engine ray"),
        ((images, "--workers", 2), b"--engine ray"),
    ):
        result = run("purify-dir", *arguments)
        assert result.returncode == 2
        assert said in result.stderr
        assert result.stderr.count(b"\n") == 1


class FakeRay:
    """A cluster's resources."""

    def __init__(self, **resources: float) -> None:
        self.resources = resources

    def cluster_resources(self) -> dict[str, float]:
        return self.resources


def test_workers_fill_the_cluster() -> None:
    """As many as CPUs and GPUs have room for, fractions included; without room for one, wrong usage."""
    sized = fit_cluster
    assert (sized(FakeRay(CPU=8), Cluster(cpus=2), "auto").workers, sized(FakeRay(CPU=8, GPU=2), Cluster(), "auto").workers) == (4, 2)
    assert sized(FakeRay(CPU=8, GPU=2), Cluster(gpus=0.5), "auto").workers == 4
    assert sized(FakeRay(CPU=8, GPU=2), Cluster(), "cpu").gpus == 0
    assert sized(FakeRay(CPU=1), Cluster("auto", workers=3, cpus=4), "cpu").workers == 3  # It may grow; one of this machine may not.
    with pytest.raises(UsageError, match="ask for less"):
        sized(FakeRay(CPU=1), Cluster(workers=3, cpus=4), "cpu")
    for cpus in (0.00001, float("nan")):
        with pytest.raises(UsageError, match=r"0\.0001"):
            sized(FakeRay(CPU=1), Cluster(cpus=cpus), "cpu")
    with pytest.raises(UsageError, match="ask for less"):
        sized(FakeRay(CPU=8), Cluster(gpus=1), "auto")
    with pytest.raises(UsageError, match="fraction"):
        sized(FakeRay(CPU=8, GPU=4), Cluster(gpus=1.5), "auto")


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A local cluster of two CPUs."""
    module = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    module.init(num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield module
    module.shutdown()


def on_cluster(ray: Any, source: Place, out: Place, path: Path, stop_after: int | None = None) -> dict[str, Result]:
    """The Ray engine on two workers; results by the input's name."""
    results = {}
    with open_ray(ray, source, out, make_request(path), Options(recursive=True), Cluster(workers=2)) as work:
        for result in work.results():
            assert str(result.input) not in results
            results[str(result.input)] = result
            if stop_after is not None and len(results) == stop_after:
                work.stop()
    return {name.removeprefix(f"{source}/"): result for name, result in results.items()}


def counts(results: dict[str, Result]) -> Counter[str]:
    """How many of each status."""
    return Counter(result.status for result in results.values())


def outputs(out: Path) -> dict[str, bytes]:
    """All files but our own notes."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != STATE}


def workers_of(pid: int) -> list[int]:
    """Processes of Ray's workers that hold networks, below a process."""
    parents, found = {}, []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if b"ray::" in (path / "cmdline").read_bytes() and b"MapWorker" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue

    def below(child: int) -> bool:
        while child > 1 and child != pid:
            child = parents.get(child, 0)
        return child == pid

    return [child for child in found if below(child)]


@pytest.mark.slow
def test_two_workers_make_what_the_local_engine_makes(ray: Any, images: Path, tmp_path: Path, small_weights: Path) -> None:
    """The same files, bytes and results as the local engine; each engine keeps what the other finished; a rerun does only what is left."""
    networks = Networks(Request(str(small_weights), "cpu", "float32"))
    with open_local(Folder(images), Folder(tmp_path / "local"), networks, Options(recursive=True)) as work:
        local = {str(result.input.relative_to(images)): result for result in work.results()}  # type: ignore[union-attr]
    out = tmp_path / "ray"
    results = on_cluster(ray, Folder(images), Folder(out), small_weights)
    assert counts(results) == counts(local) == {"done": 12, "failed": 1}
    assert outputs(out) == outputs(tmp_path / "local")
    for name, result in results.items():
        other = local[name]
        assert (result.reason, result.width, result.height, result.notices, result.format, result.size) == (
            *(other.reason, other.width, other.height, other.notices, other.format, other.size),
        )
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    (out / "3.png").unlink()
    again = on_cluster(ray, Folder(images), Folder(out), small_weights)
    assert {name for name, result in again.items() if result.status != "kept"} == {"3.png", "broken.png"}
    assert {path for path in stamps if path.stat().st_mtime_ns != stamps[path]} == {out / "3.png"}
    with open_local(Folder(images), Folder(out), networks, Options(recursive=True)) as work:
        assert Counter(result.status for result in work.results()) == {"kept": 12, "failed": 1}


@pytest.mark.slow
def test_a_cluster_takes_networks_of_either_family(ray: Any, images: Path, tmp_path: Path, family_weights: dict[str, Path]) -> None:
    """With networks that see squares, too, the files are the local engine's, byte for byte."""
    path = family_weights["residual-4"]
    with open_local(Folder(images), Folder(tmp_path / "local"), Networks(make_request(path)), Options(recursive=True)) as work:
        assert Counter(result.status for result in work.results()) == {"done": 12, "failed": 1}
    assert counts(on_cluster(ray, Folder(images), Folder(tmp_path / "ray"), path)) == {"done": 12, "failed": 1}
    assert outputs(tmp_path / "ray") == outputs(tmp_path / "local")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds Ray's workers by /proc")
def test_a_killed_worker_loses_nothing(
    ray: Any, tmp_path: Path, astronaut: np.ndarray, small_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker killed half-way: every image is done once in the results, and is what the local engine makes; nothing is left over.

    A run that is stopped half-way leaves whole files, and the next does the rest.
    """
    monkeypatch.setattr(ray_engine, "CHUNK_IMAGES", 3)
    source = tmp_path / "many"
    source.mkdir()
    for index in range(90):
        Image.fromarray(astronaut[index : index + 120, :150]).save(source / f"{index:02}.png")
    networks = Networks(Request(str(small_weights), "cpu", "float32"))
    with open_local(Folder(source), Folder(tmp_path / "local"), networks) as work:
        assert Counter(result.status for result in work.results()) == {"done": 90}

    out, seen, killed = tmp_path / "out", [], []
    with open_ray(ray, Folder(source), Folder(out), make_request(small_weights), Options(), Cluster(workers=2)) as run:
        for result in run.results():
            seen.append((result.input, result.status))
            if not killed:
                killed = workers_of(os.getpid())[:1]
                os.kill(killed[0], signal.SIGKILL)
    assert killed
    assert sorted(seen) == [(source / f"{index:02}.png", "done") for index in range(90)]
    assert outputs(out) == outputs(tmp_path / "local")

    stopped = on_cluster(ray, Folder(source), Folder(tmp_path / "two"), small_weights, stop_after=3)
    assert 3 <= len(stopped) < 90
    for path in (tmp_path / "two").glob("*.png"):
        assert path.read_bytes() == (tmp_path / "local" / path.name).read_bytes()
    rest = on_cluster(ray, Folder(source), Folder(tmp_path / "two"), small_weights)
    assert counts(rest)["kept"] >= 3
    assert counts(rest)["failed"] == 0
    assert outputs(tmp_path / "two") == outputs(tmp_path / "local")


@pytest.mark.slow
def test_stores_by_url_on_a_cluster(ray: Any, images: Path, tmp_path: Path, small_weights: Path) -> None:
    """From a URL to a URL that only fsspec's methods are used on: the local engine's files, and a second run keeps all."""
    pytest.importorskip("fsspec")
    (images / "broken.png").unlink()
    networks = Networks(Request(str(small_weights), "cpu", "float32"))
    with open_local(Folder(images), Folder(tmp_path / "local"), networks, Options(recursive=True)) as work:
        list(work.results())
    out = tmp_path / "out"
    assert counts(on_cluster(ray, Url(f"blockcache::file://{images}"), Url(f"blockcache::file://{out}"), small_weights)) == {"done": 12}
    assert outputs(out) == outputs(tmp_path / "local")
    assert counts(on_cluster(ray, Url(f"blockcache::file://{images}"), Url(f"blockcache::file://{out}"), small_weights)) == {"kept": 12}


@pytest.mark.slow
def test_the_command_with_a_cluster_of_its_own(images: Path, tmp_path: Path, run: Run, small_weights: Path) -> None:
    """Exit 1 with a broken image, the same report as the local engine but for seconds; exit 0 once it is gone, all kept."""
    pytest.importorskip("ray")
    common = ("--recursive", "--weights", small_weights, "--precision", "float32", "--device", "cpu", "--overwrite")
    reports = {}
    for engine, source in (("local", images), ("ray", images.as_uri())):
        report, out = tmp_path / f"{engine}.jsonl", tmp_path / "out"
        result = run("purify-dir", source, "--out", out, "--engine", engine, "--report", report, "--json", *common, RAY_ADDRESS="")
        assert result.returncode == 1, result.stderr
        assert b"broken.png" in result.stderr
        summary = json.loads(result.stdout)
        assert (summary["done"], summary["failed"]) == (12, 1)
        lines = [json.loads(line) for line in report.read_text().splitlines()]
        reports[engine] = sorted(({**line, "seconds": 0} for line in lines), key=lambda line: line["input"])
    assert reports["ray"] == reports["local"]
    (images / "broken.png").unlink()
    result = run("purify-dir", images, "--out", tmp_path / "out", "--engine", "ray", *common[:-1], RAY_ADDRESS="")
    assert result.returncode == 0, result.stderr
    assert b"12 kept" in result.stderr


@pytest.mark.slow
def test_workers_that_compute_with_openvino(images: Path, tmp_path: Path, run: Run, small_weights: Path) -> None:
    """--backend goes to the workers: the local engine's pixels with it, its word in the summary, and either keeps what the other did."""
    pytest.importorskip("ray")
    pytest.importorskip("openvino")
    (images / "broken.png").unlink()
    common = ("purify-dir", images, "--recursive", "--weights", small_weights, "--precision", "float32", "--device", "cpu", "--json")
    written = {}
    for engine in ("local", "ray"):
        out = tmp_path / engine
        result = run(*common, "--out", out, "--engine", engine, "--backend", "openvino", RAY_ADDRESS="")
        assert result.returncode == 0, result.stderr
        summary = json.loads(result.stdout)
        assert (summary["done"], summary["backend"], summary["precision"]) == (12, "openvino", "float32")
        written[engine] = outputs(out)
    assert written["ray"] == written["local"]
    again = run(*common, "--out", tmp_path / "ray", "--backend", "openvino")
    assert again.returncode == 0 and json.loads(again.stdout)["kept"] == 12
