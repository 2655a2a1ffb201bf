"""What situations are made of: runs of the command, a small disk, and judging."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from processes import start
from runs import JOURNAL

#: Runs as root without the right to pass over permissions, so that they hold.
BOUND = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
PRECISE = ["--device", "cpu", "--precision", "float32", "--backend", "torch"]


class Wrong(Exception):  # noqa: N818  # What a situation found.
    """Something was lost, or not said."""


def list_purify(here: Path, out: Path) -> list[str]:
    """The arguments that purify the folder `in`."""
    return ["purify-dir", str(here / "in"), "--out", str(out), *PRECISE]


def start_bound(arguments: list[str]) -> subprocess.Popen[str]:
    """Start the command so that permissions hold for it."""
    return start(arguments, before=BOUND if os.geteuid() == 0 else [])


def purify(here: Path, out: Path) -> tuple[int, str]:
    """Purify the folder `in`; exit code, and what was said."""
    return wait(start(list_purify(here, out)))


def go_on(here: Path, out: Path) -> None:
    """Run it again, undisturbed, and compare."""
    code, said = purify(here, out)
    expect(code == 0, code, said)
    compare(here, out)


def compare(here: Path, out: Path) -> None:
    """The outputs must be those of an undisturbed run, and nothing else be there."""
    whole = here / "whole"
    if not whole.exists():
        code, said = purify(here, whole)
        expect(code == 0, code, said)
    names = {path.name for path in (*whole.iterdir(), *out.iterdir())} - {JOURNAL}
    wrong = [name for name in names if not (out / name).exists() or (out / name).read_bytes() != (whole / name).read_bytes()]
    expect(not wrong, wrong)


def wait(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code, and what it said, in which there must be no traceback."""
    said = process.communicate(timeout=300)[1]
    expect("Traceback" not in said, said)
    return process.returncode, said


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until something has happened; the process must not have ended before."""
    while not happened():
        if process.poll() is not None:
            raise OSError(f"it ended before it was disturbed: {process.communicate()[1]}")
        time.sleep(0.002)


@contextmanager
def mount(folder: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes in memory."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write into a file until nothing more goes onto its disk."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**16))
        except OSError:
            return


def count(out: Path) -> int:
    """The files of a folder, hidden ones left out."""
    return len([path for path in out.iterdir() if path.name[0] != "."]) if out.is_dir() else 0


def list_hidden(out: Path) -> list[str]:
    """Hidden files of a folder."""
    return [path.name for path in out.iterdir() if path.name[0] == "."]


def expect(right: object, *found: object) -> None:
    """Raise :class:`Wrong`, with what was found, where something is not right."""
    if not right:
        raise Wrong("; ".join(map(repr, found)) or "not as expected")
