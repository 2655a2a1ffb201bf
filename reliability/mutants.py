#!/usr/bin/env python3
"""Mutation score: how many small faults, put into the code one at a time, the tests find.

    python reliability/mutants.py [--packages tiling certificate] [--sample 150] [--seed 0] [--log mutants.jsonl] [--out mutants.json]
    python docs/tools/store.py mutants=mutants.json survivors=survivors.json

Each mutant (reliability/mutation.py) is imported in the place of its module by a process that was forked with PyTorch and the like imported
already, and by the processes that tests start. It meets the tests that run its lines, quickest first, and if it survives them those that
start processes, until one fails or takes ten times as long as without it. The log is gone on with: what it has is not tried again, but
survivors are with --again. Why a mutant survives, reliability/survivors.json says.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent
ROOT = SCRIPTS.parent
sys.path[:0] = [str(ROOT), str(SCRIPTS)]

from mutant_place import VARIABLE, put_in_place, write_place  # noqa: E402
from mutation import Mutant, compile_mutant, find_mutants  # noqa: E402

#: Of each package its modules, and the files of tests that are run.
PACKAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "tiling": (
        ("comdefend_cli/inference/tiling.py", "comdefend_cli/inference/stitching.py"),
        ("tests/inference/test_tiling.py", "tests/inference/test_stitching.py", "tests/inference/test_purifier.py"),
    ),
    "certificate": (
        (
            "comdefend_cli/integrations/grid_noise.py",
            "comdefend_cli/integrations/smoothed.py",
            "comdefend_cli/evaluate/certification.py",
        ),
        ("tests/integrations/test_grid_noise.py", "tests/integrations/test_smoothed*.py", "tests/evaluate/test_certification.py"),
    ),
    "weights": (
        ("comdefend_cli/network/weight_file.py", "comdefend_cli/network/registry.py"),
        ("tests/network/test_weights.py",),
    ),
    "imaging": (("comdefend_cli/imaging/*.py",), ("tests/imaging/*.py",)),
    "batch": (("comdefend_cli/batch/*.py",), ("tests/batch/*.py",)),
}
REASONS = SCRIPTS / "survivors.json"
#: Not imported before forking: they start threads, which a fork does not take along.
THREADED = {"ray", "openvino", "onnxruntime", "nncf", "pyvips", "triton"}
#: Exit statuses of a process in which a test took too long, and of one that found no test.
TOO_LONG, NO_TESTS = 77, 5
#: Seconds beyond those of its tests that the process of a mutant may take at most.
GRACE = 120.0


@dataclass
class Tests:
    """What was noted of the tests of a package without a mutant; seconds, by a test's name, quickest first within its file."""

    seconds: dict[str, float]
    lines: dict[str, set[tuple[str, int]]]
    starting: set[str]

    def choose(self, mutant: Mutant) -> list[dict[str, float]]:
        """The tests that a mutant meets: those that run its lines, then those that start processes."""
        places = {(str(ROOT / mutant.file), line) for line in range(mutant.lines[0], mutant.lines[1] + 1)}
        everywhere = bool(places & self.lines[""])
        first = {test for test in self.seconds if (everywhere and test not in self.starting) or places & self.lines[test]}
        parts = (first, self.starting - first)
        return [{test: seconds for test, seconds in self.seconds.items() if test in part} for part in parts]


def main(argv: Sequence[str] | None = None) -> None:
    """Try mutants and write what became of them."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--packages", nargs="+", choices=PACKAGES, default=list(PACKAGES))
    made.add_argument("--sample", type=int, default=0, help="so many mutants of a package, drawn at random; 0 for all")
    made.add_argument("--seed", type=int, default=0, help="of the sample")
    made.add_argument("--log", type=Path, default=Path("mutants.jsonl"), help="what became of each mutant; gone on with")
    made.add_argument("--out", type=Path, default=Path("mutants.json"), help="what the packages of the log come to")
    made.add_argument("--again", action="store_true", help="try those again that survived, after tests were made stronger")
    arguments = made.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        for name in arguments.packages:
            known = {entry["key"] for entry in read_log(arguments.log) if not (arguments.again and entry["state"] == "survived")}
            drawn = draw(find_package(name), arguments.sample, arguments.seed)
            try_package(name, [mutant for mutant in drawn if mutant.key not in known], arguments.log, Path(folder))
    # Imports the package, which the processes of mutants must find not imported yet.
    from mutant_report import sum_up, write_report

    current = {name: find_package(name) for name in PACKAGES}
    keys = {mutant.key for mutants in current.values() for mutant in mutants}
    entries = [entry for entry in read_log(arguments.log) if entry["key"] in keys]
    everything = {name: len(mutants) for name, mutants in current.items()}
    write_report(sum_up(entries, everything, json.loads(REASONS.read_text(encoding="utf-8"))), arguments.out)
    print(arguments.out)


def find_package(name: str) -> list[Mutant]:
    """All mutants of a package."""
    return [mutant for module in list_files(PACKAGES[name][0]) for mutant in find_mutants(ROOT / module, ROOT)]


def list_files(patterns: Sequence[str]) -> list[str]:
    """Files of the repository that patterns tell of."""
    return sorted(path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern))


def draw(mutants: Sequence[Mutant], sample: int, seed: int) -> list[Mutant]:
    """A sample in the order of the source, or all for 0; a larger one of the same seed holds the smaller one."""
    drawn = random.Random(seed).sample(mutants, len(mutants))
    return sorted(drawn[: sample or None], key=mutants.index)


def try_package(name: str, mutants: Sequence[Mutant], log: Path, folder: Path) -> None:
    """Try mutants of a package, and write a line of the log for each."""
    print(f"{name}: {len(mutants)} mutants to try", flush=True)
    if not mutants:
        return
    tests = record_package(list_files(PACKAGES[name][1]), list_files(PACKAGES[name][0]), folder)
    gc.collect()
    gc.freeze()  # What is there already, no process of a mutant need look through.
    for number, mutant in enumerate(mutants, 1):
        state, test, seconds = try_mutant(mutant, tests, folder)
        about = {part: getattr(mutant, part) for part in ("key", "file", "function", "before", "after")}
        entry = {"package": name, **about, "line": mutant.lines[0], "state": state, "test": test, "seconds": round(seconds, 1)}
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        print(f"{number}/{len(mutants)} {state} in {seconds:.1f} s: {mutant.key}", flush=True)


def record_package(files: Sequence[str], modules: Sequence[str], folder: Path) -> Tests:
    """Run the tests without a mutant, once to take notes and once as with one, and import what they import but for this package.

    Raises:
        RuntimeError: a test fails.
    """

    def record() -> int:
        from mutant_tests import record_tests

        return record_tests(files, [str(ROOT / module) for module in modules], folder)

    set_variables(None, folder)
    status = fork(record, folder, 3600.0)
    found = json.loads((folder / "record.json").read_text())
    failed = [test for test, end in found["ends"].items() if end == "failed"]
    if status or failed:
        raise RuntimeError(f"without a mutant the tests end with {status}, {failed}:\n{read_output(folder)}")
    # What is mutated and what imports it is imported anew for each mutant.
    own = {*THREADED, *(Path(file).parts[0].removesuffix(".py") for file in (*modules, *files)), "conftest", "__main__"}
    own |= {Path(file).stem for file in files}
    for module in found["modules"]:
        if module.partition(".")[0] not in own:
            try:
                __import__(module)
            except Exception as error:  # What cannot be imported by itself, the tests import.
                print(f"{module}: not imported beforehand: {error}")
    seconds = {test: took for test, took in found["seconds"].items() if found["ends"].get(test) == "passed"}
    by_file: dict[str, float] = {}
    for test, took in seconds.items():
        file = test.partition("::")[0]
        by_file[file] = by_file.get(file, 0.0) + took
    order = sorted(seconds, key=lambda test: (by_file[test.partition("::")[0]], test.partition("::")[0], seconds[test]))
    lines = {test: {(file, line) for file, line in places} for test, places in found["lines"].items()}
    tests = Tests({test: seconds[test] for test in order}, lines, set(found["starting"]) & seconds.keys())
    status = fork(partial(run_chosen, tests.seconds, folder), folder, 10 * sum(seconds.values()) + GRACE)
    if status != 0:
        raise RuntimeError(f"chosen one by one the tests end with {status}:\n{read_output(folder)}")
    return tests


def run_chosen(chosen: Mapping[str, float], folder: Path) -> int:
    """In a process of its own: run tests with the mutant that the environment names, if any."""
    from mutant_tests import run_tests

    put_in_place(os.environ[VARIABLE])
    return run_tests(chosen, folder)


def try_mutant(mutant: Mutant, tests: Tests, folder: Path) -> tuple[str, str, float]:
    """What becomes of a mutant: "killed", "timeout" or "survived"; by which test; and seconds."""
    began = time.monotonic()
    place = folder / "place"
    write_place(place, mutant.file.removesuffix(".py").replace("/", "."), ROOT / mutant.file, compile_mutant(mutant, ROOT))
    set_variables(place, folder)
    for chosen in tests.choose(mutant):
        if not chosen:
            continue

        (folder / "test").write_text("collection")
        status = fork(partial(run_chosen, chosen, folder), folder, 10 * sum(chosen.values()) + GRACE)
        if status == NO_TESTS:
            raise RuntimeError(f"no test was found for {mutant.key}:\n{read_output(folder)}")
        if status != 0:
            return "timeout" if status in (None, TOO_LONG) else "killed", (folder / "test").read_text(), time.monotonic() - began
    return "survived", "", time.monotonic() - began


def set_variables(place: Path | None, folder: Path) -> None:
    """Let every process that is started from here on take the mutant of `place`."""
    start = folder / "start"
    start.mkdir(exist_ok=True)
    call = f"import os\nfrom mutant_place import put_in_place\nput_in_place(os.environ.get({VARIABLE!r}))\n"
    (start / "sitecustomize.py").write_text(call)
    os.environ["PYTHONPATH"] = os.pathsep.join((str(start), str(ROOT), str(SCRIPTS)))
    os.environ[VARIABLE] = str(place or "")


def fork(work: Callable[[], int], folder: Path, seconds: float) -> int | None:
    """Do some work in a process of its own, and end it and all that it started; its exit status, or None where it took too long."""
    shutil.rmtree(folder / "temporary", ignore_errors=True)
    child = os.fork()
    if child == 0:
        status = 3
        try:
            os.setsid()
            output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(output, stream)
            os.chdir(ROOT)
            status = work()
        finally:
            sys.stdout.flush()
            os._exit(status)
    ended, status = 0, 0
    limit = time.monotonic() + seconds
    while not ended and time.monotonic() < limit:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0 if ended else 0.02)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if not ended:
        os.waitpid(child, 0)
        return None
    return os.waitstatus_to_exitcode(status)


def read_output(folder: Path) -> str:
    """The end of what the last process printed."""
    return (folder / "output").read_text(encoding="utf-8", errors="replace")[-2000:]


def read_log(log: Path) -> list[dict[str, Any]]:
    """The last line of each mutant."""
    if not log.is_file():
        return []
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return list({entry["key"]: entry for entry in entries}.values())


if __name__ == "__main__":
    main()
