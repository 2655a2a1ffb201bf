"""Mutants of a package and its tests: what each test runs, which tests a mutant meets, and what becomes of it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mutant_place import MISPLACED, NO_TESTS, TOO_LONG, VARIABLE, end_group, put_in_place, write_place
from mutation import Mutant, compile_module, compile_mutant

if TYPE_CHECKING:
    from mutant_host import Work

SCRIPTS = Path(__file__).resolve().parent
#: Not imported before forking: they start threads, which a fork does not take along.
THREADED = {"ray", "openvino", "onnxruntime", "nncf", "pyvips", "triton"}
#: Seconds beyond those of its tests that the process of a mutant may take at most.
GRACE = 120.0
#: Told what became of a mutant: "killed", "timeout" or "survived"; by which test; and seconds.
Tell = Callable[[Mutant, str, str, float], None]


class Trials:
    """The tests of a package, run once without a mutant to take notes.

    Args:
        root: of the repository.
        modules, files: what is mutated, and the tests; paths in the repository.
        folder: for what processes leave to each other.
        quick: leave out tests that start processes.

    Raises:
        RuntimeError: a test fails.
    """

    def __init__(self, root: Path, modules: Sequence[str], files: Sequence[str], folder: Path, *, quick: bool = False) -> None:
        self._root, self._folder = root, folder
        self._set_variables(None)
        sources = [str(root / module) for module in modules]
        self._demand(self._fork(lambda: _record(files, sources, folder, quick=quick), 3600.0))
        found = json.loads((folder / "record.json").read_text())
        # What is mutated and what imports it is imported anew for each mutant.
        own = {*THREADED, *(Path(file).parts[0].removesuffix(".py") for file in (*modules, *files)), "conftest", "__main__"}
        _import_all(module for module in found["modules"] if module.partition(".")[0] not in own | {Path(file).stem for file in files})
        left = set(found["starting"]) if quick else set()
        passed = {test: took for test, took in found["seconds"].items() if found["ends"].get(test) == "passed" and test not in left}
        by_file: dict[str, float] = {}
        for test, took in passed.items():
            by_file[test.partition("::")[0]] = by_file.get(test.partition("::")[0], 0.0) + took
        # Quickest first, file by file, so that what the tests of a file share is made once.
        order = sorted(passed, key=lambda test: (by_file[test.partition("::")[0]], test.partition("::")[0], passed[test]))
        self._seconds = {test: passed[test] for test in order}
        self._lines = {test: {(file, line) for file, line in places} for test, places in found["lines"].items()}
        self._starting = set(found["starting"]) & passed.keys()

    def _choose(self, mutant: Mutant) -> tuple[dict[str, float], dict[str, float], bool]:
        """The tests that a mutant meets: those that run its lines, then those that start processes; and whether it runs before any."""
        places = {(str(self._root / mutant.file), line) for line in range(mutant.lines[0], mutant.lines[1] + 1)}
        early = bool(places & self._lines["collection"])
        everywhere = early or bool(places & self._lines[""])
        inside = {test for test in self._seconds if everywhere or places & self._lines[test]} - self._starting
        first, then = ({test: took for test, took in self._seconds.items() if test in part} for part in (inside, self._starting))
        return first, then, early

    def run(self, mutants: Sequence[Mutant], tell: Tell) -> None:
        """Try mutants: those within functions in forks of a process that has collected the tests, the others and survivors by import.

        Raises:
            RuntimeError: a test fails without a mutant.
        """
        states = self._host(mutants, tell)
        for mutant in mutants:
            if mutant.key not in states or (states[mutant.key] == "survived" and self._starting):
                tell(mutant, *self._import(mutant, only_starting=mutant.key in states))

    def _host(self, mutants: Sequence[Mutant], tell: Tell) -> dict[str, str]:
        """What became of those that could be tried so, by their keys; of survivors that are to meet more tests, `tell` is not told."""
        from mutant_host import Work, differs_at_import

        codes = {mutant.file: compile_module(mutant.file, self._root) for mutant in mutants}
        by_key = {mutant.key: mutant for mutant in mutants}
        works = []
        for mutant in mutants:
            first, _, early = self._choose(mutant)
            code = compile_mutant(mutant, self._root)
            if first and not early and not differs_at_import(code, codes[mutant.file]):
                works.append(Work(mutant.key, str(self._root / mutant.file), code, first))
        if not works:
            return {}
        everything = {test: took for test, took in self._seconds.items() if test not in self._starting}
        control = Work("", "", next(iter(codes.values())), everything)
        told = self._folder / "host.jsonl"
        told.unlink(missing_ok=True)

        def note(key: str, status: int | None, test: str, seconds: float) -> None:
            if not key:
                self._demand(status)
            elif status != MISPLACED:
                state = _judge(status)
                with told.open("a") as file:
                    file.write(json.dumps([key, state]) + "\n")
                if state != "survived" or not self._starting:
                    tell(by_key[key], state, test if status != 0 else "", seconds)

        self._set_variables(None)
        limit = sum(10 * sum(work.seconds.values()) + GRACE for work in (control, *works))
        self._demand(self._fork(lambda: _host([control, *works], self._folder, note), limit))
        return dict(json.loads(line) for line in told.read_text().splitlines())

    def _import(self, mutant: Mutant, *, only_starting: bool) -> tuple[str, str, float]:
        """What becomes of a mutant that is imported in its module's place, also by processes that tests start."""
        began = time.monotonic()
        place = self._folder / "place"
        name = mutant.file.removesuffix(".py").replace("/", ".")
        write_place(place, name, self._root / mutant.file, compile_mutant(mutant, self._root))
        self._set_variables(place)
        first, then, _ = self._choose(mutant)
        for chosen in ({} if only_starting else first, then):
            if not chosen:
                continue
            (self._folder / "test").write_text("collection")
            status = self._fork(partial(_run, chosen, self._folder), 10 * sum(chosen.values()) + GRACE)
            if status == NO_TESTS:
                self._demand(status)
            if status != 0:
                return _judge(status), (self._folder / "test").read_text(), time.monotonic() - began
        return "survived", "", time.monotonic() - began

    def _set_variables(self, place: Path | None) -> None:
        """Let every process that is started from here on take the mutant of `place`."""
        start = self._folder / "start"
        start.mkdir(exist_ok=True)
        call = f"import os\nfrom mutant_place import put_in_place\nput_in_place(os.environ.get({VARIABLE!r}))\n"
        (start / "sitecustomize.py").write_text(call)
        os.environ["PYTHONPATH"] = os.pathsep.join((str(start), str(self._root), str(SCRIPTS)))
        os.environ[VARIABLE] = str(place or "")

    def _fork(self, work: Callable[[], int], seconds: float) -> int | None:
        """Do some work in a process of its own, and end it and all that it started; its exit status, or None where it took too long."""
        shutil.rmtree(self._folder / "temporary", ignore_errors=True)
        child = os.fork()
        if child == 0:
            status = 3
            try:
                os.setsid()
                output = os.open(self._folder / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                for stream in (1, 2):
                    os.dup2(output, stream)
                os.chdir(self._root)
                status = work()
            finally:
                sys.stdout.flush()
                os._exit(status)
        return end_group(child, seconds)

    def _demand(self, status: int | None) -> None:
        if status != 0:
            said = (self._folder / "output").read_text(encoding="utf-8", errors="replace")[-3000:]
            raise RuntimeError(f"without a mutant the tests end with {status}:\n{said}")


def _judge(status: int | None) -> str:
    return "survived" if status == 0 else "timeout" if status in (None, TOO_LONG) else "killed"


def _import_all(modules: Iterable[str]) -> None:
    for module in modules:
        try:
            __import__(module)
        except Exception as error:  # What cannot be imported by itself, the tests import.
            print(f"{module}: not imported beforehand: {error}")


def _record(files: Sequence[str], sources: Sequence[str], folder: Path, *, quick: bool) -> int:
    from mutant_tests import record_tests

    return record_tests(files, sources, folder, quick=quick)


def _host(works: Sequence[Work], folder: Path, note: Callable[[str, int | None, str, float], None]) -> int:
    from mutant_tests import host_tests

    return host_tests(works, folder, GRACE, note)


def _run(chosen: Mapping[str, float], folder: Path) -> int:
    from mutant_tests import run_tests

    put_in_place(os.environ[VARIABLE])
    return run_tests(chosen, folder)
