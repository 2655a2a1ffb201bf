"""Tests run by pytest in a process of their own: once to note what each of them runs, then those that a mutant concerns."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest
from hypothesis import Phase, settings
from mutant_place import TOO_LONG

#: The time that a test may take: so many times what it took without a mutant, and so many seconds.
TIMES, SECONDS = 10.0, 5.0
#: Under these names :class:`Recorder` notes what runs while tests are collected, and what runs outside of tests, or for several of them.
COLLECTION, BETWEEN = "collection", ""


def limit(seconds: float) -> float:
    """Seconds that a test may take."""
    return seconds * TIMES + SECONDS


class Recorder:
    """A plugin that notes of each test which lines of some files it runs, how long it takes, how it ends, and whether it starts a process.

    Args:
        sources: the files; absolute paths.
        quick: let no test start a process, so that those that would fail at once.
    """

    def __init__(self, sources: Sequence[str], *, quick: bool = False) -> None:
        self._sources, self._quick, self._now = frozenset(sources), quick, COLLECTION
        self.lines: dict[str, set[tuple[str, int]]] = {COLLECTION: set(), BETWEEN: set()}
        self.seconds: dict[str, float] = {}
        self.ends: dict[str, str] = {}
        self.starting: set[str] = set()
        sys.addaudithook(self._hear)
        threading.settrace(self._trace)
        sys.settrace(self._trace)

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename not in self._sources:
            return None
        self.lines[self._now].add((frame.f_code.co_filename, frame.f_lineno))
        return self._trace

    def _hear(self, event: str, arguments: object) -> None:
        if event in ("subprocess.Popen", "os.fork", "os.posix_spawn"):
            self.starting.add(self._now)
            if self._quick and self._now not in (COLLECTION, BETWEEN):
                raise RuntimeError("no process is to be started")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Note what runs from here on under the test's name."""
        self._now = item.nodeid
        self.lines.setdefault(self._now, set())
        sys.settrace(self._trace)
        try:
            return (yield)
        finally:
            self._now = BETWEEN

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None, Any, Any]:
        """What is made for several tests is of none."""
        before = self._now
        self._now = before if fixturedef.scope == "function" else BETWEEN
        try:
            return (yield)
        finally:
            self._now = before

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note time and end."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.outcome != "passed" or report.when == "call":
            self.ends[report.nodeid] = report.outcome


class Chooser:
    """A plugin that runs some tests alone, in their order, each as long as it may, and writes which one runs.

    Args:
        seconds: of each test to run, what it took without a mutant.
        note: the file for the name of the test that runs.
    """

    def __init__(self, seconds: Mapping[str, float], note: Path) -> None:
        self._seconds, self._note = seconds, note
        signal.signal(signal.SIGALRM, lambda *_: os._exit(TOO_LONG))

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out the others."""
        place = {name: number for number, name in enumerate(self._seconds)}
        items[:] = sorted((item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """End the process if the test takes too long."""
        self._note.write_text(item.nodeid)
        signal.setitimer(signal.ITIMER_REAL, limit(self._seconds[item.nodeid]))
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _run_pytest(files: Sequence[str], plugin: object, folder: Path, *options: str) -> int:
    """Run test files with a plugin; the exit status is pytest's. What pytest and Hypothesis keep between runs is kept nowhere."""
    # An example that fails is not looked for in a simpler form.
    settings.register_profile("mutants", database=None, deadline=None, phases=[Phase.explicit, Phase.generate])
    settings.load_profile("mutants")
    kept = ["-p", "no:cacheprovider", f"--basetemp={folder / 'temporary'}", "--hypothesis-seed=0", "--timeout=0"]
    # Nobody reads why a test failed.
    quick = ["--assert=plain", "-p", "no:unraisableexception", "-p", "no:threadexception"]
    return int(pytest.main(["-q", "-m", "", *kept, *quick, *options, *files], [plugin]))


def record_tests(files: Sequence[str], sources: Sequence[str], folder: Path, *, quick: bool) -> int:
    """Run test files without a mutant, and write what was noted and which modules were imported into `folder`/record.json.

    If `quick`, those that start processes may fail, since they cannot.
    """
    recorder = Recorder(sources, quick=quick)
    status = _run_pytest(files, recorder, folder)
    sys.settrace(None)
    if quick and {test for test, end in recorder.ends.items() if end == "failed"} <= recorder.starting:
        status = 0
    found = {
        "ends": recorder.ends,
        "seconds": recorder.seconds,
        "lines": {test: sorted(lines) for test, lines in recorder.lines.items()},
        "starting": sorted(recorder.starting),
        "modules": [name for name, module in sys.modules.items() if isinstance(module, ModuleType)],
    }
    (folder / "record.json").write_text(json.dumps(found))
    return status


def run_tests(seconds: Mapping[str, float], folder: Path) -> int:
    """Run some tests until the first one fails, whose name `folder`/test has then; pytest's exit status."""
    files = list(dict.fromkeys(name.partition("::")[0] for name in seconds))
    return _run_pytest(files, Chooser(seconds, folder / "test"), folder, "-x")


def host_tests(works: Sequence[Any], folder: Path, grace: float, note: Callable[[str, int | None, str, float], None]) -> int:
    """Try mutants in forks of this process, see :class:`mutant_host.Host`; pytest's exit status."""
    from mutant_host import Host

    files = dict.fromkeys(name.partition("::")[0] for work in works for name in work.seconds)
    return _run_pytest(list(files), Host(works, folder, grace, note), folder)
