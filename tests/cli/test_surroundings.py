"""The command among what surrounds it: pipes that close early, streams that are closed, terminals, other systems' names, others at work."""

from __future__ import annotations

import io
import os
import pty
import shlex
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text
from test_purify_dir import pixels, purified, statuses
from typer.testing import CliRunner

from comdefend_cli.batch.storage import folder
from comdefend_cli.cli import app, console, naming, progress, tables
from comdefend_cli.cli.naming import name_outputs
from comdefend_cli.errors import ComdefendError, UsageError

COMMAND = [sys.executable, "-m", "comdefend_cli"]


def read_nothing() -> int:
    """The end to write to of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.skipif(os.name != "posix", reason="closes pipes as POSIX does")
def test_who_reads_may_leave_early(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """As of `comdefend ... | head -1`: exit code 1, without a word; of help, and of results however they are written."""
    writing = read_nothing()
    done = subprocess.run([*COMMAND, "--help"], stdout=writing, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (1, b"")
    for write in (lambda: console.print_json({}), lambda: tables.print_table(Table("a")), lambda: console.write_out(bytes(2**20))):
        with monkeypatch.context() as patch, os.fdopen(os.dup(writing), "w") as stream:
            patch.setattr(sys, "stdout", stream)
            with pytest.raises(typer.Exit) as caught:
                console.command(write)()
        assert caught.value.exit_code == 1
    os.close(writing)
    assert capfd.readouterr().err == ""


def test_a_closed_stream_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of `<&-` and `>&-`, where Python has no stream."""
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ComdefendError, match="standard input: is closed; give it an image, or name a file"):
        console.read_in()
    monkeypatch.setattr(sys, "stdout", None)
    console.abandon_output()
    with pytest.raises(ComdefendError, match="standard output: is closed; leave it open, or name a file"):
        console.print_line("x")


@pytest.mark.skipif(os.name != "posix", reason="closes streams as POSIX does")
def test_a_closed_output_is_found_before_the_work(tmp_path: Path) -> None:
    """Before the weights are read: that there are none is not said."""
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    command = shlex.join([*COMMAND, "purify", "a.png", "-", "--weights", "absent.safetensors"]) + " >&-"
    result = subprocess.run(command, shell=True, cwd=tmp_path, stderr=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stderr.splitlines()[-1]) == (1, "error: standard output: is closed; leave it open, or name a file")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("end", [read_nothing, lambda: os.open("/dev/full", os.O_WRONLY)])
def test_what_nobody_can_be_told_does_not_stop_the_work(end: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where who read standard error has left, or its disk is full, notices and bars are lost; the exit code is not."""

    @console.command
    def work() -> None:
        console.notice("begins")
        with progress.show_pixels(9, quiet=False) as update:
            update(9)
        console.fail(UsageError("wrong"))

    with os.fdopen(end(), "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with pytest.raises(typer.Exit) as caught:
            work()
    assert caught.value.exit_code == 2


@pytest.mark.skipif(os.name != "posix", reason="closes streams as POSIX does")
def test_no_output_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    """What a library in C says to standard error stays out of the file that is opened next."""
    code = """
import os
import comdefend_cli.__main__ as command
for number in range(3):
    os.close(number)
command._fill_closed()
with open("out.png", "wb") as file:
    os.write(2, b"a warning")
    os._exit(file.fileno())
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode > 2
    assert (tmp_path / "out.png").read_bytes() == b""


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("no_color", ["", "1"])
def test_colours_are_for_terminals_that_want_them(no_color: str) -> None:
    """An error is red on a terminal, and plain under NO_COLOR; it is shown also where there are said to be no columns."""
    terminal, end = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "NO_COLOR": no_color, "COLUMNS": "0"}
    subprocess.run([*COMMAND, "absent"], stdin=end, stdout=end, stderr=end, env=environment, check=False)
    os.close(end)
    said = os.read(terminal, 4096)
    os.close(terminal)
    assert b"error: no such command 'absent'" in said and (b"\x1b[" in said) == (not no_color)


@pytest.mark.parametrize("width", [30, 40, 60, 80, 200])
def test_tables_are_whole_on_narrow_terminals(
    width: int, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """No cell is cut and no line wraps; where words do not fit beside each other, each cell has a line of its own."""
    monkeypatch.setattr(console, "out", Console(file=io.StringIO(), width=width, highlight=False, markup=False))
    table = Table("defence", "clean\nn = 500", "grey-box", "adaptive", title="Accuracy in % (95 % interval)")
    rows = [
        ["comdefend-12bit-denoise:input-noise=20", "83.0 (79.5-86.0)", "47.8 (43.5-52.2)", "2.0 (0.3-10.5)"],
        ["none", "89.0", "0.0", "-"],
    ]
    for row in rows:
        table.add_row(*map(Text, row))
    tables.print_table(table)
    lines = capfdbinary.readouterr().out.decode().splitlines()
    assert max(map(len, lines)) <= width and "…" not in "".join(lines)
    if width in (30, 40, 200):  # Between these, long words go on below, beside other cells.
        said = "".join("".join(lines).split())
        assert all("".join(cell.split()) in said for row in rows for cell in row)
    assert ("defence: none" in lines) == (width < 60)


def test_what_is_said_of_a_name_is_that_name(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Neither ":boom:" nor "[red]" stands for something else, in what is said and in tables."""
    name, said = "mine:boom:[red].png", io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    console.notice(name)
    console.print_error(ComdefendError(name))
    assert said.getvalue() == f"note: {name}\nerror: {name}\n"
    table = Table("a", title=name)
    table.add_row(name)
    tables.print_table(table)
    assert capfdbinary.readouterr().out.decode().count(name) == 2


#: Names that Windows reads otherwise, or refuses; here they are names.
FOREIGN = ("C:\\pictures\\a.png", "CON.png", "dots..png", "sub\\b.png", "A.png", "a.png", "semi;colon.png", "name .png")


@pytest.fixture
def foreign(tmp_path: Path, astronaut: np.ndarray) -> Path:
    """A folder of images of such names."""
    (tmp_path / "in").mkdir()
    for number, name in enumerate(FOREIGN):
        Image.fromarray(astronaut[8 * number : 8 * number + 16, :16]).save(tmp_path / "in" / name)
    return tmp_path


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="these names are others there")
def test_names_of_other_systems_are_names_like_others(foreign: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each image of a folder is written under its own name, also where two differ in case alone; so is one named alone."""
    out = foreign / "out"
    assert statuses(purified(foreign / "in", out, small_weights)) == {"done": len(FOREIGN)}
    assert {path.name for path in out.iterdir() if path.name[0] != "."} == set(FOREIGN)
    assert not np.array_equal(pixels(out / "A.png"), pixels(out / "a.png"))
    monkeypatch.chdir(foreign / "in")
    given = ["--weights", str(small_weights), "--device", "cpu", "--precision", "float32", "--backend", "torch", "--quiet"]
    assert CliRunner().invoke(app, ["purify", FOREIGN[0], "D:\\out.png", *given]).exit_code == 0
    assert np.array_equal(pixels(foreign / "in" / "D:\\out.png"), pixels(out / FOREIGN[0]))
    assert name_outputs(["a.png", "A.png"], "dir\\sub", None, overwrite=False)[1].target == Path("dir\\sub/A.png")


def test_names_that_a_file_system_takes_for_one_are_refused_or_numbered(
    foreign: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where "A.png" and "a.png" are one file, a run ends before it begins, or numbers the later one, as of any two names."""
    for module in (folder, naming):
        monkeypatch.setattr(module, "folds_case", lambda _: True)
    given = [str(foreign / "in" / name) for name in ("A.png", "CON.png", "a.png")]
    with pytest.raises(UsageError, match=r"A\.png and .*a\.png would both become dir.a\.png"):
        name_outputs(given, "dir/", None, overwrite=False)
    with pytest.raises(UsageError, match=r"A\.png and .*a\.png would both become a\.png"):
        purified(foreign / "in", foreign / "out", small_weights)
    assert not (foreign / "out").exists()
    results = purified(foreign / "in", foreign / "out", small_weights, on_collision="number")
    assert Path(results["a.png"].output).name == "a-2.png" and statuses(results) == {"done": len(FOREIGN)}


def test_two_threads_on_one_folder(foreign: Path, small_weights: Path) -> None:
    """Of two runs that begin at once one is refused, or finds all done; every output is whole."""
    alone = purified(foreign / "in", foreign / "alone", small_weights)
    ends: list[Counter[str] | str] = []
    ready = threading.Barrier(2)

    def work() -> None:
        ready.wait()
        try:
            ends.append(statuses(purified(foreign / "in", foreign / "out", small_weights)))
        except UsageError as error:
            ends.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [end for end in ends if isinstance(end, str)]
    assert {"done": len(FOREIGN)} in ends and len(ends) == 2
    assert all("another comdefend purify-dir works" in message for message in refused)
    assert refused or {"kept": len(FOREIGN)} in ends
    for result in alone.values():
        assert np.array_equal(pixels(Path(result.output)), pixels(foreign / "out" / Path(result.output).name))
