"""Downloads from a server on this machine: whole and checked, or nothing at all."""

from __future__ import annotations

import hashlib
import http.server
import io
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Run
from formats import cifar_archive, cuts, mnist_files

from comdefend_cli.data.datasets import DATASETS, load_dataset
from comdefend_cli.data.download import ARCHIVES, Archive, download_archive
from comdefend_cli.errors import ComdefendError, DatasetError

CONTENT = bytes(range(256)) * 1000
MD5 = hashlib.md5(CONTENT).hexdigest()
FILE = "file.bin"


class Server:
    """What is served, how, and what was asked for."""

    def __init__(self) -> None:
        self.files = {FILE: CONTENT}
        self.manner = "well"
        self.asked: list[str] = []
        self.done = threading.Event()
        self.address = ""

    def archive(self, name: str = FILE, md5: str | None = None) -> Archive:
        """A file here, by its right checksums or another MD5."""
        data = self.files[name]
        return Archive(f"{self.address}/{name}", md5 or hashlib.md5(data).hexdigest(), hashlib.sha256(data).hexdigest())


def handler(server: Server) -> type[http.server.BaseHTTPRequestHandler]:
    """Answers in the server's manner."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rsplit("/", 1)[1]
            server.asked.append(name)
            self.close_connection = True
            with suppress(OSError):  # The client has left, as it should.
                getattr(self, f"answer_{server.manner}")(server.files.get(name, b""))

        def begin(self, length: int | None) -> None:
            self.send_response(200)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()

        def answer_well(self, data: bytes) -> None:
            self.begin(len(data))
            self.wfile.write(data)

        def answer_without_length(self, data: bytes) -> None:
            self.begin(None)
            self.wfile.write(data)

        def answer_short(self, data: bytes) -> None:
            self.begin(len(data))
            self.wfile.write(data[:100_000])

        def answer_short_without_length(self, data: bytes) -> None:
            self.begin(None)
            self.wfile.write(data[:100_000])

        def answer_reset(self, data: bytes) -> None:
            self.begin(len(data))
            self.wfile.write(data[:1000])
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()  # With that option: a reset, not an end.

        def answer_chunks_cut(self, data: bytes) -> None:
            self.protocol_version = "HTTP/1.1"
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"186a0\r\n" + data[:5000])

        def answer_wrong(self, data: bytes) -> None:
            self.answer_well(data[:-1] + b"?")

        def answer_not_found(self, data: bytes) -> None:
            self.send_error(404, "Not Found")

        def answer_garbage(self, data: bytes) -> None:
            self.wfile.write(b"\0\1\2 this is not HTTP\r\n\r\n")

        def answer_bad_length(self, data: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "many")
            self.end_headers()
            self.wfile.write(data)

        def answer_silence(self, data: bytes) -> None:
            server.done.wait(60)

        def answer_silence_midway(self, data: bytes) -> None:
            self.begin(len(data))
            self.wfile.write(data[:1000])
            self.wfile.flush()
            server.done.wait(60)

        def answer_endless(self, data: bytes) -> None:
            self.begin(None)
            while not server.done.is_set():
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server on a free port of this machine."""
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    state = Server()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(state)) as listener:
        listener.daemon_threads = True
        state.address = f"http://127.0.0.1:{listener.server_address[1]}"
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield state
        state.done.set()
        listener.shutdown()
        thread.join()


@pytest.mark.parametrize(("manner", "total"), [("well", len(CONTENT)), ("without_length", 0)])
def test_a_file_is_downloaded(server: Server, manner: str, total: int, tmp_path: Path) -> None:
    """A file arrives whole with the published checksum; progress rises to its size, in all as the server says, or 0."""
    server.manner = manner
    seen: list[tuple[int, int]] = []
    download_archive(server.archive(), tmp_path / FILE, lambda done, all_: seen.append((done, all_)))
    assert (tmp_path / FILE).read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen) and seen[-1] == (len(CONTENT), total)


BROKEN = {
    "short": "the transfer (ended after|broke)",
    "short_without_length": "checksum is not the published one",
    "reset": "transfer",
    "chunks_cut": "the transfer broke",
    "wrong": "checksum is not the published one",
    "not_found": "the server says 404 Not Found",
    "garbage": "the transfer broke",
    "bad_length": "the transfer broke",
    "silence": "timed out",
    "silence_midway": "timed out",
    "endless": "sends more than",
}


@pytest.mark.parametrize("manner", BROKEN)
def test_a_broken_download_leaves_nothing(server: Server, manner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transfer that is cut, reset, silent, endless, refused or of other content ends in one line with the address; no file is left."""
    monkeypatch.setattr("comdefend_cli.data.download.MAX_DOWNLOAD", 10**6)
    server.manner = manner
    with pytest.raises(DatasetError, match=BROKEN[manner]) as caught:
        download_archive(server.archive(), tmp_path / FILE, timeout=0.5)
    assert str(caught.value).startswith(f"{server.address}/{FILE}: ") and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_every_checksum_must_hold(server: Server, tmp_path: Path) -> None:
    """With the right MD5 and another SHA-256 a file is refused; with both right it is kept."""
    with pytest.raises(DatasetError, match="checksum is not the published one"):
        download_archive(replace(server.archive(), sha256=hashlib.sha256(b"").hexdigest()), tmp_path / FILE)
    assert list(tmp_path.iterdir()) == []
    download_archive(server.archive(), tmp_path / FILE)
    assert (tmp_path / FILE).read_bytes() == CONTENT


def test_no_server_is_an_error(tmp_path: Path, server: Server) -> None:
    """A port where nobody listens, and a name that is none, end in one line without a file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # Bound but not listening: it refuses.
        for url in (f"http://127.0.0.1:{free.getsockname()[1]}/{FILE}", f"http://127.0.0.1:1:1/{FILE}", f"nonsense://x/{FILE}"):
            with pytest.raises(DatasetError, match=r"/file\.bin: "):
                download_archive(Archive(url, MD5, ""), tmp_path / FILE, timeout=0.5)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_download_leaves_nothing(server: Server, tmp_path: Path) -> None:
    """Ctrl-C in the middle of a download leaves no file."""

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download_archive(server.archive(), tmp_path / FILE, interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    """A place that cannot be written is an error about that place, not about the server."""
    with pytest.raises(ComdefendError, match="cannot write") as caught:
        download_archive(server.archive(), tmp_path / "absent" / FILE)
    assert server.address not in str(caught.value)


def test_two_processes_may_download_at_once(server: Server, tmp_path: Path) -> None:
    """A file that another process finished meanwhile does not end the download."""
    path = tmp_path / FILE
    download_archive(server.archive(), path, lambda done, total: path.write_bytes(CONTENT) and None)
    assert path.read_bytes() == CONTENT


def test_cifar10_is_downloaded_once(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An absent archive is downloaded into --data-dir, made if need be; the next time no server is asked."""
    server.files = {"cifar-10-binary.tar.gz": cifar_archive(binary=True)}
    monkeypatch.setitem(ARCHIVES, "cifar10", (server.archive("cifar-10-binary.tar.gz"),))
    folder = tmp_path / "new" / "data"
    for _ in range(2):
        dataset = load_dataset("cifar10", folder)
        assert torch.equal(dataset.test.pixels, torch.from_numpy(cuts(18, 32))[15:].permute(0, 3, 1, 2))
    assert server.asked == ["cifar-10-binary.tar.gz"]
    assert [path.name for path in folder.iterdir()] == ["cifar-10-binary.tar.gz"]


def test_only_absent_idx_files_are_downloaded(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the four files of Fashion-MNIST those that are there are kept, the others downloaded to their folder."""
    server.files = mnist_files()
    names = [archive.name for archive in ARCHIVES["fashion-mnist"]]
    monkeypatch.setitem(ARCHIVES, "fashion-mnist", tuple(server.archive(name) for name in names))
    (tmp_path / "fashion-mnist").mkdir()
    (tmp_path / "fashion-mnist" / names[0]).write_bytes(server.files[names[0]])
    assert len(load_dataset("fashion-mnist", tmp_path).train) == 3
    assert server.asked == names[1:]
    assert {path.name for path in (tmp_path / "fashion-mnist").iterdir()} == set(names)


@pytest.mark.parametrize("manner", ["not_found", "short", "wrong"])
def test_a_failed_download_says_what_to_put_where(server: Server, manner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the download fails, the message holds why, the address, the folder and the file; nothing is left but the folder."""
    server.manner = manner
    server.files = {"cifar-10-binary.tar.gz": CONTENT}
    monkeypatch.setitem(ARCHIVES, "cifar10", (server.archive("cifar-10-binary.tar.gz"),))
    folder = tmp_path / "data"
    with pytest.raises(DatasetError) as caught:
        load_dataset("cifar10", folder)
    message = str(caught.value)
    assert message.startswith(f"cifar10 is not in {folder}, and downloading it failed (") and "\n" not in message
    assert f"download {server.address}/cifar-10-binary.tar.gz yourself and put it into {folder}, or point --data-dir at" in message
    assert list(folder.iterdir()) == []


def test_downloads_that_are_not_wanted_do_not_happen(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With download=False no server is asked and no folder made."""
    monkeypatch.setitem(ARCHIVES, "cifar10", (server.archive(),))
    with pytest.raises(DatasetError, match="put it into"):
        load_dataset("cifar10", tmp_path / "data", download=False)
    assert server.asked == [] and list(tmp_path.iterdir()) == []


def test_the_real_command_fails_in_one_line(server: Server, tmp_path: Path, run: Run) -> None:
    """`train` whose download fails, here at a proxy that tunnels nothing, ends with one line and exit code 1, and leaves no file."""
    arguments = ("--data-dir", tmp_path / "data", "--out", tmp_path / "out.safetensors", "--device", "cpu")
    done = run("train", "--data", "fashion-mnist", *arguments, https_proxy=server.address, no_proxy="")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"error: fashion-mnist is not in ") and done.stderr.count(b"\n") == 1
    assert b"Tunnel connection failed" in done.stderr and server.asked == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_official_addresses_and_checksums() -> None:
    """Every official file has an address that ends in its name, and checksums of its own."""
    archives = [archive for group in ARCHIVES.values() for archive in group]
    assert set(ARCHIVES) == set(DATASETS) - {"drawings"}, "these need no files"
    assert len({archive.md5 for archive in archives}) == len({archive.sha256 for archive in archives}) == len(archives) == 9
    for archive in archives:
        assert len(bytes.fromhex(archive.md5)) == 16 and len(bytes.fromhex(archive.sha256)) == 32
        assert archive.url.endswith(f"/{archive.name}") and archive.name.endswith(".gz")
        assert archive.url.startswith("https://")


def test_a_server_may_not_send_to_an_address_without_encryption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirect from https to http ends in an error, and no file."""
    answer = io.BytesIO(CONTENT)
    answer.url = "http://elsewhere/file.gz"  # type: ignore[attr-defined]
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: answer)
    with pytest.raises(DatasetError, match="without encryption"):
        download_archive(ARCHIVES["mnist"][0], tmp_path / "file.gz")
    assert not any(tmp_path.iterdir())
