"""What machines and people do to a run: full disks, lost rights, files that go, names and links of every kind, two runs at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from processes import start
from runs import JOURNAL, list_training, make_images
from trying import (
    PRECISE,
    Wrong,
    compare,
    count,
    expect,
    fill,
    go_on,
    list_hidden,
    list_purify,
    mount,
    purify,
    start_bound,
    wait,
    wait_until,
)

#: Folder and file names that file systems of Linux take; bytes that are no UTF-8 among them.
NAMES = [os.fsencode(f"{name}.png") for name in (
    "with space", "new\nline", "tab\tand\x1b[2Jescape", "\N{FACE WITH TEARS OF JOY}", "\udcff\udcfe latin-\udce9", "-dash", "--overwrite",
    "%s%d{}", "'quote\"", "back\\slash", "~", "$HOME", "*?[a]", "dot.", "C:drive", "e\u0301", "\u00e9", "a" * 251, "\u3042" * 83, "#1;rm",
    "\udcf0\udc9f",
)]  # fmt: skip

#: Images of which some are not read yet when the first are written.
MANY = 300
#: More than are read before the first are written.
MORE = 3000


def try_situations(folder: Path) -> list[dict[str, Any]]:
    """Each situation in a folder of its own: what it is, what came of it, and whether that is right."""
    rows = []
    for each in SITUATIONS:
        here = folder / each.__name__
        make_images(here / "in", 60)
        try:
            found, verdict = each(here), "right"
        except Wrong as error:
            found, verdict = str(error), "wrong"
        except (OSError, subprocess.SubprocessError) as error:
            found, verdict = f"could not be tried: {error}", "not tried"
        rows.append({"situation": str(each.__doc__).rstrip("."), "found": found, "verdict": verdict})
        print(f"{each.__name__}: {verdict}: {found}", file=sys.stderr, flush=True)
    return rows


def fill_the_disk(here: Path) -> str:
    """Folder: the disk is full half-way."""
    with mount(here / "out", 300_000) as out:
        code, said = purify(here, out)
        expect(code == 1 and "no space left on device" in said, code, said)
        done = count(out)
    expect(0 < done < 60, done, said)
    out.mkdir(exist_ok=True)
    return f"exit code {code}, {done} of 60 written and whole, each of the others named"


def fill_the_disk_and_free_it(here: Path) -> str:
    """Folder: the disk is full half-way, then room is made and the run repeated."""
    with mount(here / "out", 2_000_000) as out:
        ballast = out / "ballast"
        ballast.write_bytes(bytes(1_700_000))
        first = purify(here, out)
        expect(first[0] == 1, *first)
        ballast.unlink()
        second = purify(here, out)
        expect(second[0] == 0, *second)
        compare(here, out)
    return "the second run does the rest; all as undisturbed"


def fill_the_disk_in_training(here: Path) -> str:
    """Training: the disk is full half-way, then room is made and the run resumed."""
    whole = here / "whole"
    whole.mkdir()
    expect(wait(start([*map(str, list_training(here / "in", whole))]))[0] == 0)
    with mount(here / "out", 50_000_000) as out:
        process = start([*map(str, list_training(here / "in", out))])
        wait_until(lambda: (out / "w.checkpoint").exists(), process)
        fill(out / "ballast")
        code, said = wait(process)
        expect(code == 1 and "no space left on device" in said, code, said)
        (out / "ballast").unlink()
        code, said = wait(start([*map(str, list_training(here / "in", out)), "--resume"]))
        expect(code == 0, code, said)
        expect((out / "w.safetensors").read_bytes() == (whole / "w.safetensors").read_bytes(), "other weights")
        expect(not list_hidden(out), list_hidden(out))
    return "exit code 1 and one line; resumed, the same weights"


def write_where_it_may_not(here: Path) -> str:
    """Folder, image and training: the output folder is read-only."""
    out = here / "out"
    out.mkdir(mode=0o555)
    commands = [
        ["purify-dir", here / "in", "--out", out],
        ["purify", here / "in" / "000.png", out / "a.png"],
        list_training(here / "in", out),
    ]
    for command in commands:
        code, said = wait(start_bound([*map(str, command)]))
        expect(code == 1 and said.count("\n") == 1 and "permission denied" in said, code, said)
    return "exit code 1 and one line each"


def lose_the_output_half_way(here: Path) -> str:
    """Folder: the right to write is lost half-way, then given back and the run repeated."""
    out = here / "out"
    hinder(here, lambda: out.chmod(0o555), lambda: out.chmod(0o755), "permission denied")
    return "exit code 1, what was not written is named; the second run does it"


def lose_the_input_half_way(here: Path) -> str:
    """Folder: the right to read is lost half-way, then given back and the run repeated."""
    source = here / "in"
    make_images(source, MORE)
    hinder(here, lambda: source.chmod(0), lambda: source.chmod(0o755), "cannot read: permission denied")
    return "exit code 1, what was not read is named; the second run does it"


def remove_the_input(here: Path) -> str:
    """Folder: all images are deleted half-way."""
    source, gone = here / "in", here / "gone"
    make_images(source, MORE)
    hinder(here, lambda: shutil.move(source, gone), lambda: shutil.move(gone, source), "cannot read: no such file")
    return "exit code 1, what was gone is named; what was written is whole"


def remove_the_output(here: Path) -> str:
    """Folder: the output folder is deleted half-way."""
    make_images(here / "in", MANY)
    out, gone = here / "out", here / "gone"  # At once: of a folder that goes file by file, one that is written meanwhile may stay.
    hinder(here, lambda: shutil.move(out, gone), lambda: shutil.rmtree(gone), "removed")
    return "exit code 1, and the run says so; the next one does all"


def hinder(here: Path, disturb: Callable[[], object], undo: Callable[[], object], reason: str) -> None:
    """Purify the folder `in`, disturb it half-way, expect exit code 1 and the reason, undo, and go on to what an undisturbed run leaves."""
    out = here / "out"
    process = start_bound(list_purify(here, out))
    wait_until(lambda: count(out) > 5, process)
    disturb()
    code, said = wait(process)
    undo()
    expect(code == 1 and reason in said, code, said)
    go_on(here, out)


def remove_the_training_output(here: Path) -> str:
    """Training: the output folder is deleted half-way."""
    out = here / "out"
    out.mkdir()
    process = start([*map(str, list_training(here / "in", out))])
    wait_until(lambda: (out / "w.checkpoint").exists(), process)
    shutil.move(out, here / "gone")
    code, said = wait(process)
    expect(code == 1 and "no such file" in said and not out.exists(), code, said)
    return "exit code 1 and one line"


def name_files_oddly(here: Path) -> str:
    """Folder and image: names with spaces, newlines, emoji, escapes, bytes that are no UTF-8, of 255 bytes."""
    shutil.rmtree(here / "in")
    plain = here / "plain"
    make_images(plain, 1, 24, 24)
    for folder in ("", "new\nline \udcff"):
        where = here / "in" / folder
        where.mkdir(parents=True)
        for name in NAMES:
            shutil.copy(plain / "000.png", where / os.fsdecode(name))
    out, report = here / "out", here / "report.jsonl"
    code, said = wait(start([*list_purify(here, out), "--recursive", "--report", str(report)]))
    expect(code == 0, code, said)
    expected = {str(path.relative_to(here / "in")) for path in (here / "in").rglob("*") if path.is_file()}
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and path.name != JOURNAL}
    expect(expected == found and len({(out / name).read_bytes() for name in found}) == 1, expected ^ found)
    records = [json.loads(line) for line in report.read_text().splitlines()]
    expect({record["output"] for record in records} == {str(out / name) for name in found}, "the report has other names")
    code, said = wait(start([*list_purify(here, out), "--recursive"]))
    expect(code == 0 and f"{len(found)} kept" in said, code, said)
    for name in NAMES[::3]:
        source, target = here / "in" / os.fsdecode(name), here / os.fsdecode(b"one-" + name[-200:])
        code, said = wait(start(["purify", str(source), "-o", str(target), *PRECISE]))
        expect(code == 0 and target.read_bytes() == (out / os.fsdecode(name)).read_bytes() and "\x1b" not in said, name, code, said)
    return f"{len(NAMES)} names, in two folders, and a third of them alone: all written, reported, and kept by the next run"


def link_files_oddly(here: Path) -> str:
    """Folder: links to themselves, in a circle, to nowhere, to files and folders elsewhere, and out of the output folder."""
    source, out, elsewhere = here / "in", here / "out", here / "elsewhere"
    make_images(elsewhere, 3)
    links: dict[str, str | Path] = {
        "self.png": "self.png",
        "a.png": "b.png",
        "b.png": "a.png",
        "nowhere.png": "absent.png",
        "file.png": elsewhere / "000.png",
    }
    links |= {"up": "..", "here": ".", "folder": elsewhere, "circle": "circle"}
    for name, target in links.items():
        (source / name).symlink_to(target)
    code, said = wait(start([*list_purify(here, out), "--recursive"]))
    expect(code == 1 and all(f"{name}.png" in said for name in ("self", "a", "b", "nowhere")), code, said)
    expect(count(out) == 61 and (out / "file.png").is_file() and not (out / "folder").exists(), count(out), said)
    before = {path.name: path.read_bytes() for path in elsewhere.iterdir()}
    (here / "out2").mkdir()
    (here / "out2" / "000.png").symlink_to(elsewhere / "000.png")
    for more in ([], ["--overwrite"]):
        code, said = wait(start([*list_purify(here, here / "out2"), *more]))
        expect(code == 2 and said.count("\n") == 1, code, said)
    expect(before == {path.name: path.read_bytes() for path in elsewhere.iterdir()}, "a file elsewhere was changed")
    return (
        "broken links are named as failed, links to folders are not followed, a link to a file is read; nothing is written through a link"
    )


def run_twice_at_once(here: Path) -> str:
    """Folder: five pairs of runs that begin at once on one output folder."""
    refused = 0
    for number in range(5):
        out = here / f"out{number}"
        ends = [wait(process) for process in [start(list_purify(here, out)) for _ in range(2)]]
        for code, said in ends:
            expect(code == 0 or (code == 2 and "another comdefend purify-dir works" in said and said.count("\n") < 3), code, said)
        expect(any(code == 0 for code, _ in ends), ends)
        refused += sum(code == 2 for code, _ in ends)
        compare(here, out)
    return f"in {refused} pairs the second was refused in one line; all outputs as undisturbed"


def train_twice_at_once(here: Path) -> str:
    """Training: three pairs of runs that begin at once into one file."""
    weights = set()
    refused = 0
    for number in range(3):
        out = here / f"out{number}"
        out.mkdir()
        ends = [wait(process) for process in [start([*map(str, list_training(here / "in", out))]) for _ in range(2)]]
        for code, said in ends:
            expect(code == 0 or (code == 2 and said.splitlines()[-1].startswith("error: ")), code, said)
        expect(any(code == 0 for code, _ in ends), ends)
        refused += sum(code == 2 for code, _ in ends)
        weights.add((out / "w.safetensors").read_bytes())
        expect(not list_hidden(out), list_hidden(out))
    expect(len(weights) == 1, "other weights")
    return f"in {refused} pairs the second was refused in one line; the same weights each time"


SITUATIONS: tuple[Callable[[Path], str], ...] = (
    fill_the_disk,
    fill_the_disk_and_free_it,
    fill_the_disk_in_training,
    write_where_it_may_not,
    lose_the_output_half_way,
    lose_the_input_half_way,
    remove_the_input,
    remove_the_output,
    remove_the_training_output,
    name_files_oddly,
    link_files_oddly,
    run_twice_at_once,
    train_twice_at_once,
)
