"""Places that are URLs: scanned, planned, written to and resumed in as folders are. The store is fsspec's in memory."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comdefend_cli import Purifier
from comdefend_cli.batch.engine import Result, prepare
from comdefend_cli.batch.local import LocalEngine
from comdefend_cli.batch.networks import Networks
from comdefend_cli.batch.options import Options
from comdefend_cli.batch.request import Request
from comdefend_cli.batch.storage.folder import Folder
from comdefend_cli.batch.storage.place import Place, choose_output, open_place
from comdefend_cli.batch.storage.url import Url, UrlStamp
from comdefend_cli.errors import ComdefendError, ImageError, UsageError

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def store(astronaut: np.ndarray) -> Iterator[Url]:
    """Three images, one of them in a subfolder, and what is no image."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    place = Url("memory://bucket/in")
    for index, name in enumerate(("a.png", "b.png", "sub/c.png")):
        buffer = io.BytesIO()
        Image.fromarray(astronaut[40 * index : 40 * index + 24, 200:232]).save(buffer, "PNG")
        place.write(name, buffer.getvalue(), overwrite=False)
    for name in ("notes.txt", ".hidden.png"):
        place.write(name, b"no image", overwrite=False)
    yield Url("memory://bucket/in")
    memory.store.clear()


def purified(source: Place, out: Place, weights: Path, **options: object) -> dict[str, Result]:
    """The local engine over any places; results by the input's name."""
    networks = Networks(Request(str(weights), "cpu", "float32"))
    wanted = Options(**{"recursive": True, **options})  # type: ignore[arg-type]
    with prepare(source, out, networks.identity, wanted) as (planned, state):
        work = LocalEngine(source, out, networks, wanted, planned, state)
        return {str(result.input): result for result in work.results()}


def pixels(place: Place, name: str) -> np.ndarray:
    """Of an image in a place."""
    return np.array(Image.open(io.BytesIO(place.read(name))))


def test_a_store_is_purified_and_resumed_as_a_folder_is(store: Url, small_weights: Path) -> None:
    """Same pixels as the API; a second run keeps all; a changed input and a lost output are done again."""
    out = "memory://bucket/out"
    results = purified(store, Url(out), small_weights)
    assert Counter(result.status for result in results.values()) == {"done": 3}
    assert sorted(results) == [f"memory://bucket/in/{name}" for name in ("a.png", "b.png", "sub/c.png")]
    purifier = Purifier.from_pretrained(str(small_weights), device="cpu", precision="float32")
    for name in ("a.png", "sub/c.png"):
        assert np.array_equal(pixels(Url(out), name), purifier(pixels(store, name)))
    again = purified(Url(store.url), Url(out), small_weights)
    assert Counter(result.status for result in again.values()) == {"kept": 3}
    Url(out).remove("a.png")
    store.write("b.png", store.read("sub/c.png"), overwrite=True)
    again = purified(Url(store.url), Url(out), small_weights)
    assert {key.rpartition("/")[2]: result.status for key, result in again.items()} == {"a.png": "done", "b.png": "done", "c.png": "kept"}


def test_files_of_others_in_a_store_are_not_replaced(store: Url, small_weights: Path) -> None:
    """An output that is there and not ours is refused before anything is written; with --overwrite it is replaced."""
    out = Url("memory://bucket/out")
    out.write("b.png", b"mine", overwrite=False)
    with pytest.raises(UsageError, match=r"memory://bucket/out/b\.png.*--overwrite"):
        purified(store, Url(out.url), small_weights)
    assert sorted(Url(out.url).listing) == ["b.png"]
    with pytest.raises(UsageError, match="already exists"):
        out.write("b.png", b"other", overwrite=False)
    assert out.read("b.png") == b"mine"
    results = purified(store, Url(out.url), small_weights, overwrite=True)
    assert Counter(result.status for result in results.values()) == {"done": 3}


def test_names_in_a_store_cannot_lead_out_of_the_output(store: Url, tmp_path: Path, small_weights: Path) -> None:
    """A key with ".." in it, which a store may hold, is passed over; the others land in the folder."""
    store.fs.pipe_file("/bucket/in/x/../../../../evil.png", store.read("a.png"))
    store.fs.store["/bucket/in/../evil.png"] = store.fs.store["/bucket/in/a.png"]
    out = tmp_path / "deep" / "out"
    purified(Url(store.url), Folder(out), small_weights)
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["a.png", "b.png", "c.png"]
    assert not list(tmp_path.rglob("evil*"))


def test_what_is_left_out_is_counted(store: Url, tmp_path: Path, small_weights: Path) -> None:
    """Without `recursive` only the store's upper level; an output below the input is no input; an empty place is an error."""
    networks = Networks(Request(str(small_weights), "cpu", backend="torch"))
    with prepare(store, Folder(tmp_path / "out"), networks.identity, Options()) as (planned, _):
        assert [job.source for job in planned.jobs] == ["a.png", "b.png"]
        assert (planned.found.skipped, planned.found.subfolders) == (1, 1)
    purified(Url(store.url), Url(f"{store.url}/done"), small_weights)
    again = purified(Url(store.url), Url(f"{store.url}/done"), small_weights)
    assert Counter(result.status for result in again.values()) == {"kept": 3}
    with pytest.raises(UsageError, match="nothing in it"):
        purified(Url("memory://bucket/empty"), Folder(tmp_path / "out"), small_weights)
    with pytest.raises(UsageError, match="itself"):
        purified(Url(store.url), Url(store.url), small_weights)


def test_unknown_protocols_and_missing_files_are_one_line(store: Url) -> None:
    """A URL of no known kind is wrong usage; a file that is not there is an error that names it."""
    with pytest.raises(UsageError, match="nosuch"):
        open_place("nosuch://bucket/in")
    with pytest.raises(ImageError, match=r"memory://bucket/in/absent\.png"):
        store.read("absent.png")
    assert store.stamp("absent.png") is None


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    """ "file://" names a folder of this machine, escapes included; what has no protocol is a path."""
    made = open_place(f"file://{tmp_path}/with%20space")
    assert isinstance(made, Folder)
    assert made.root == tmp_path / "with space"
    assert isinstance(open_place(tmp_path), Folder)
    assert open_place(f"local://{tmp_path}/run#1").root == tmp_path / "run#1"  # type: ignore[union-attr]
    for other in ("file://images", "file://~/images"):
        with pytest.raises(UsageError, match="names a machine"):
            open_place(other)


def test_the_same_place_by_another_url_is_the_same(store: Url, small_weights: Path) -> None:
    """However it is written, inputs are not replaced, an output below them is no input, and one above them is refused."""
    with pytest.raises(UsageError, match="itself"):
        purified(store, Url("memory:///bucket/in"), small_weights, overwrite=True)
    with pytest.raises(UsageError, match="holds the place"):
        purified(store, Url("memory:///bucket"), small_weights)
    for url in ("memory:///bucket/in/done", "memory://bucket/in/done"):
        assert len(purified(Url(store.url), Url(url), small_weights)) == 3


def test_a_library_that_fails_in_its_own_way_is_one_line(store: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials, say, is whatever its library raises; of each method it is an error of ours."""

    def fail(*args: object, **kwargs: object) -> None:
        raise KeyError("no credentials")

    for name in ("find", "info", "cat_file", "open", "pipe_file", "rm_file", "ls"):
        monkeypatch.setattr(store.fs, name, fail)
    store = Url(store.url)
    calls = (
        lambda: store.listing,
        lambda: store.stamp("a.png"),
        lambda: store.read("a.png"),
        lambda: store.open("a.png"),
        lambda: store.write("a.png", b"", overwrite=True),
        lambda: store.remove("a.png"),
        lambda: store.find_beginning("."),
    )
    for call in calls:
        with pytest.raises(ComdefendError, match="no credentials"):
            call()


def test_markers_are_found_whatever_the_url_is_called(store: Url) -> None:
    """Characters that patterns are made of are nothing but characters in a name."""
    place = Url("memory://bucket/run[1]*")
    place.write(".begun-1", b"", overwrite=False)
    place.write("deeper/.begun-2", b"", overwrite=False)
    assert place.find_beginning(".begun-") == [".begun-1"]
    assert Url("memory://bucket/nowhere").find_beginning(".begun-") == []


def test_a_bucket_gets_no_other_bucket_for_its_output() -> None:
    """Only a folder has a place beside it."""
    assert choose_output("s3://bucket/images/") == "s3://bucket/images-purified"
    for url in ("s3://bucket", "s3://bucket/", "s3://"):
        with pytest.raises(UsageError, match="--out"):
            choose_output(url)


def test_stamps_tell_versions_apart_by_what_the_store_says() -> None:
    """Time of change, or else the ETag; none of them is taken for the other version's."""
    moment = datetime(2026, 1, 2, tzinfo=timezone.utc)
    assert UrlStamp({"size": 5, "LastModified": moment}).st_mtime_ns == int(moment.timestamp() * 1e9)
    marks = {UrlStamp({"size": 5, "ETag": etag}).st_mtime_ns for etag in ("a", "b", '"a"')}
    assert len(marks) == 2
    for more in ({}, {"ETag": "a"}):  # A listing may tell the time to the millisecond, a single file to the second.
        one, other = (UrlStamp({"size": 5, "LastModified": moment.replace(microsecond=each), **more}) for each in (0, 821000))
        assert one.st_mtime_ns == other.st_mtime_ns
    assert UrlStamp({"size": None}).st_size == 0
