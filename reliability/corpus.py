#!/usr/bin/env python3
"""Bad input by the thousand: files of every kind, whole and damaged, through `comdefend purify` and `comdefend purify-dir`.

    python reliability/corpus.py [--every 1] [--processes 24] [--seed 0] [--json FILE] [--list FILE]

Makes the files in a temporary folder. Each goes through `purify` in this process, with the network put aside, so that the output must hold
the pixels that Pillow decodes; a share through `purify` as a process of its own, and all through `purify-dir`, once as PNG and once in
their own formats, both as processes, with the networks of comdefend-fast. --every 10 takes each tenth file. --list writes a line a fault.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from findings import write_findings
from judging import Decoded, Ran, compare, decode, judge, name_reason, run_here, without_network
from made_files import Case, make_cases

from comdefend_cli.imaging.formats import list_suffixes

#: Seconds that a process may take for one file, and for the folder, and bytes of memory that `purify` may take of a tiny one.
PATIENCE, PATIENCE_FOLDER, MOST_MEMORY = 120, 3600, 1.5e9


def main() -> None:
    """Make, try, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--processes", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("corpus.json"))
    parser.add_argument("--list", type=Path)
    arguments = parser.parse_args()
    cases = list(make_cases(arguments.seed))[:: arguments.every]
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        (base / "in").mkdir()
        for case in cases:
            (base / "in" / case.name).write_bytes(case.data)
        known = {case.name: decode(case.data) for case in cases}
        tried = {
            "purify, in one process": try_here(cases, known, base),
            "purify, a process each": try_processes(random.Random(arguments.seed).sample(cases, arguments.processes), known, base),
            "purify-dir --format png": try_folder(cases, known, base, "--format", "png"),
            "purify-dir": try_folder(cases, known, base),
        }
    every = [(way, *each) for way, found in tried.items() for each in found]
    kinds: dict[str, Counter[str]] = {}
    for _, case, verdict, _ in every:
        kinds.setdefault("whole, of each mode" if case.kind.startswith("mode") else case.kind, Counter())[sort(verdict)] += 1
    ways = {way: Counter(sort(verdict) for _, verdict, _ in found) for way, found in tried.items()}
    reasons = Counter(name_reason(said) for _, _, verdict, said in every if verdict == "refused")
    faults = [[way, case.name, case.kind, verdict, said[-300:]] for way, case, verdict, said in every if sort(verdict) == "wrong"]
    if arguments.list:
        arguments.list.write_text("".join(json.dumps(fault) + "\n" for fault in faults))
    write_findings(
        arguments.json,
        {
            "ways": [{"way": way, **row(each)} for way, each in ways.items()],
            "kinds": [{"kind of file": kind, **row(each)} for kind, each in sorted(kinds.items())],
            "reasons": [{"why refused": reason, "files": count} for reason, count in reasons.most_common(12)],
        },
        files=len(cases),
    )
    print(json.dumps({way: dict(each) for way, each in ways.items()}))
    sys.exit(1 if faults else 0)


def row(each: Counter[str]) -> dict[str, int]:
    """Counts of verdicts, as a row of a table."""
    return {"tried": each.total(), **{verdict: each[verdict] for verdict in ("correct", "recovered", "refused", "wrong")}}


def sort(verdict: str) -> str:
    """A verdict as one of four: whatever is not right is wrong."""
    return verdict if verdict in ("correct", "recovered", "refused") else "wrong"


def try_here(cases: list[Case], known: dict[str, Decoded | str], base: Path) -> list[tuple[Case, str, str]]:
    """Each case, its verdict and what was said, by `purify` in this process without the network."""
    found = []
    with without_network():
        for case in cases:
            out = base / "out" / "out.png"
            out.parent.mkdir()
            ran = run_here("purify", str(base / "in" / case.name), "-o", str(out), "--weights", "comdefend-fast", "--device", "cpu")
            found.append((case, judge(ran, case.data, out, known[case.name], same_pixels=True), ran.said))
            shutil.rmtree(out.parent)
    return found


def try_processes(cases: list[Case], known: dict[str, Decoded | str], base: Path) -> list[tuple[Case, str, str]]:
    """As :func:`try_here`, each by the command in a process of its own, with the network."""
    found = []
    for case in cases:
        out = base / "out" / "out.png"
        out.parent.mkdir()
        ran = run_process(PATIENCE, "purify", str(base / "in" / case.name), "-o", str(out), "--weights", "comdefend-fast")
        verdict = judge(Ran(ran.code, ran.said), case.data, out, known[case.name], same_pixels=False)
        found.append((case, f"memory: {ran.memory / 1e6:.0f} MB" if ran.memory > MOST_MEMORY else verdict, ran.said))
        shutil.rmtree(out.parent)
    return found


def try_folder(cases: list[Case], known: dict[str, Decoded | str], base: Path, *more: str) -> list[tuple[Case, str, str]]:
    """As :func:`try_here`, all in one folder, by one process."""
    out, report = base / "folder", base / "report.jsonl"
    arguments = [
        "-o",
        str(out),
        "--report",
        str(report),
        "--on-collision",
        "number",
        "--weights",
        "comdefend-fast",
        "--device",
        "cpu",
        *more,
    ]
    ran = run_process(PATIENCE_FOLDER, "purify-dir", str(base / "in"), *arguments)
    by_name = {case.name: case for case in cases}
    if "Traceback" in ran.said or ran.code not in (0, 1) or ran.memory > 2 * MOST_MEMORY:
        print(f"{len(by_name)} files, {ran.memory / 1e6:.0f} MB, code {ran.code}", ran.said[-500:])
        return [(case, f"the run ended with {ran.code}, {ran.memory / 1e6:.0f} MB", ran.said) for case in cases]
    found = []
    outputs = set()
    for line in report.read_text().splitlines():
        record: dict[str, Any] = json.loads(line)
        case, output = by_name.pop(Path(record["input"]).name), Path(record["output"])
        verdict = _judge_record(record, known[case.name], own_format=not more)
        if verdict != "refused":
            outputs.add(output.name)
        found.append((case, verdict, f"error: {record['input']}: {record['reason']}"))
    left = {path.name for path in out.iterdir() if path.name[0] != "." or path.name.endswith(".part")} - outputs
    for name, case in by_name.items():  # What has no ending of an image is not looked at.
        passed_over = Path(name).suffix.lower() in list_suffixes(writable=False)
        found.append((case, "passed over" if passed_over else "refused", "error: x: no ending of an image that is read"))
    shutil.rmtree(out)
    report.unlink()
    return found if not left else [(found[0][0], f"leaves {sorted(left)[:3]} behind", ""), *found]


def _judge_record(record: dict[str, Any], known: Decoded | str, *, own_format: bool) -> str:
    """The verdict on an image of a folder; in formats that hold less, as JPEG does, only the size counts."""
    output = Path(record["output"])
    if record["status"] == "failed":
        line = record["reason"]
        return "fails, and leaves an output" if output.exists() else "refused" if line and "\n" not in line else f"says: {line!r}"
    if isinstance(known, str):
        return "recovered"
    verdict = compare(output, known, same_pixels=False)
    holds_less = own_format and output.suffix.lower() not in (".png", ".tif", ".tiff")
    return "correct" if holds_less and verdict in ("profile", "grey became colour", "colour became grey") else verdict


def run_process(patience: float, *arguments: str) -> Ran:
    """Run the command as a process of its own; the memory is all that it took at most."""
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "comdefend_cli", *arguments], stderr=said, stdout=subprocess.DEVNULL, env=environment
        )
        timer = subprocess.Popen(["sleep", str(patience)])
        code, memory = _wait(process, timer)
        said.seek(0)
        return Ran(code, said.read().decode(errors="replace"), memory=memory)


def _wait(process: subprocess.Popen[bytes], timer: subprocess.Popen[bytes]) -> tuple[int, int]:
    """The exit code and the largest memory in bytes of a process, which is killed when the timer ends first: code -9."""
    while True:
        number, status, usage = os.wait4(-1, 0)
        if number == timer.pid:
            process.kill()
            timer.returncode = 0
        elif number == process.pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            if timer.returncode is None:
                timer.kill()
                timer.wait()
            return process.returncode, usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
