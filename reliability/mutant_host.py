"""One process for many mutants: tests are collected once, and each mutant meets them in a fork of it, in which functions got its code.

That serves faults within functions; what runs at import, such as constants and defaults of arguments, needs an import of its own.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import mutant_tests
import pytest
from _pytest.runner import runtestprotocol
from mutant_place import MISPLACED, TOO_LONG, end_group


@dataclass(frozen=True)
class Work:
    """A mutant, what its module's source is, the module's code with it, and what the tests that it meets took without it."""

    key: str
    path: str
    code: CodeType
    seconds: Mapping[str, float]


def differs_at_import(one: CodeType, other: CodeType) -> bool:
    """Whether two codes of a module differ in what runs when it is imported, and not only within functions."""
    return list(_list_imported(one)) != list(_list_imported(other))


def _list_imported(code: CodeType, *, whole: bool = False) -> Iterator[object]:
    yield code.co_code
    yield code.co_names
    for constant in code.co_consts:
        if not isinstance(constant, CodeType):
            yield repr(constant)
        # Bodies of classes run at import, and so may comprehensions, generators and lambdas that stand outside of functions.
        elif whole or not constant.co_flags & CO_OPTIMIZED or constant.co_name.startswith("<"):
            yield from _list_imported(constant, whole=whole or bool(constant.co_flags & CO_OPTIMIZED))


def _list_functions(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _list_functions(constant)


def _name(code: CodeType) -> tuple[str, int]:
    return code.co_name, code.co_firstlineno


class Host:
    """A plugin that runs no tests after they are collected, but forks for each mutant and runs its tests there until one fails.

    Args:
        works: the mutants; one without a path is none, but the code as it is.
        folder: where the test that runs is written to.
        grace: seconds beyond those of its tests that a process may take.
        note: called with key, exit status, the last test and seconds; the status is None where a process had to be ended.
    """

    def __init__(self, works: Sequence[Work], folder: Path, grace: float, note: Callable[[str, int | None, str, float], None]) -> None:
        self._works, self._folder, self._grace, self._note = works, folder, grace, note

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Try all mutants."""
        items = {item.nodeid: item for item in session.items}
        paths = {work.path for work in self._works}
        functions: dict[str, list[FunctionType]] = {path: [] for path in paths}
        for thing in gc.get_objects():
            if type(thing) is FunctionType and thing.__code__.co_filename in paths:
                functions[thing.__code__.co_filename].append(thing)
        gc.collect()
        gc.freeze()  # What is there already, no process of a mutant need look through.
        for work in self._works:
            began = time.monotonic()
            status = self._try(work, functions.get(work.path, []), items)
            self._note(work.key, status, (self._folder / "test").read_text(), time.monotonic() - began)
        return True

    def _try(self, work: Work, functions: Sequence[FunctionType], items: Mapping[str, Any]) -> int | None:
        (self._folder / "test").write_text("")
        child = os.fork()
        if child == 0:
            status = 3
            try:
                os.setsid()
                signal.signal(signal.SIGALRM, lambda *_: os._exit(TOO_LONG))
                status = self._run(work, items) if not work.path or _put(work.code, functions) else MISPLACED
            finally:
                os._exit(status)
        return end_group(child, 10 * sum(work.seconds.values()) + self._grace)

    def _run(self, work: Work, items: Mapping[str, Any]) -> int:
        """The exit status after its tests: 1 as soon as one fails."""
        chosen = [items[name] for name in work.seconds]
        for item, following in zip(chosen, [*chosen[1:], None], strict=True):
            (self._folder / "test").write_text(item.nodeid)
            signal.setitimer(signal.ITIMER_REAL, mutant_tests.limit(work.seconds[item.nodeid]))
            if any(report.failed for report in runtestprotocol(item, log=False, nextitem=following)):
                return 1
            signal.setitimer(signal.ITIMER_REAL, 0)
        return 0


def _put(code: CodeType, functions: Sequence[FunctionType]) -> bool:
    """Give functions the code that a mutant has in their places; whether that was possible and changed something."""
    codes = list(_list_functions(code))
    several = {name for name, count in Counter(map(_name, codes)).items() if count > 1}
    changed = 0
    for function in functions:
        for new in codes:
            if _name(new) == _name(function.__code__) and new != function.__code__:
                if _name(new) in several or new.co_freevars != function.__code__.co_freevars:
                    return False
                function.__code__ = new
                changed += 1
                break
    return changed > 0
