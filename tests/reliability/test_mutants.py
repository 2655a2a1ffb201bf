"""Mutation testing itself: which faults are made, and what becomes of them in the place of a module."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent.parent / "reliability"

SOURCE = '''
"""A module."""
from __future__ import annotations

LIMIT = 255


def clip(x: int | None) -> int:
    """Into the range."""
    if x is None:
        raise ValueError(f"no number up to {LIMIT + 1}")
    return min(x, LIMIT)


def count(n: int) -> int:
    steps = 0
    while n > 0:
        n -= 1
        steps += 1
    return steps


def forget(x: int) -> int:
    return x + 7
'''
TESTS = """
import subprocess, sys
import toy

def test_clip():
    assert (toy.clip(7), toy.clip(255), toy.clip(256)) == (7, 255, 255)

def test_count():
    assert toy.count(3) == 3

def test_refused():
    command = "import toy\\ntry: toy.clip(None)\\nexcept ValueError: print('refused')"
    assert b"refused" in subprocess.run([sys.executable, "-c", command], capture_output=True).stdout
"""
#: Runs the script on the module above, whose tests are quick.
RUN = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import mutants, mutant_tests
mutants.ROOT, mutants.PACKAGES, mutants.REASONS = pathlib.Path.cwd(), {"toy": (("toy.py",), ("test_toy.py",))}, pathlib.Path("reasons.json")
mutant_tests.SECONDS = 0.2
mutants.main(["--packages", "toy", "--log", "log", "--out", "out.json"])
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy.py").write_text(SOURCE)
    (folder / "test_toy.py").write_text(TESTS)
    reason = {"toy.py::forget::return x + 7 -> return x - 7": "nobody asks"}
    (folder / "reasons.json").write_text(json.dumps(reason))
    done = subprocess.run([sys.executable, "-c", RUN, str(FOLDER)], cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_faults_and_what_becomes_of_them(toy: Path) -> None:
    """One change each, none in annotations, docstrings and messages; killed by a test, by one that starts a process, by taking too long.

    What no test runs survives, for the reason that is given or for none.
    """
    entries = [json.loads(line) for line in (toy / "log").read_text().splitlines()]
    found = {(entry["before"], entry["after"]): (entry["state"], entry["test"]) for entry in entries}
    clip, count = (("killed", f"test_toy.py::test_{name}") for name in ("clip", "count"))
    assert found == {
        ("LIMIT = 255", "LIMIT = 256"): clip,
        ("x is None", "x is not None"): clip,
        ("raise ValueError(f'no number up to {LIMIT + 1}')", "pass"): ("killed", "test_toy.py::test_refused"),
        ("return min(x, LIMIT)", "return None"): clip,
        ("return min(x, LIMIT)", "return max(x, LIMIT)"): clip,
        ("steps = 0", "steps = 1"): count,
        ("n > 0", "n >= 0"): count,
        ("n > 0", "n <= 0"): count,
        ("n > 0", "n > 1"): count,
        ("n -= 1", "pass"): ("timeout", "test_toy.py::test_count"),
        ("n -= 1", "n += 1"): ("timeout", "test_toy.py::test_count"),
        ("n -= 1", "n -= 2"): count,
        ("steps += 1", "pass"): count,
        ("steps += 1", "steps -= 1"): count,
        ("steps += 1", "steps += 2"): count,
        ("return steps", "return None"): count,
        ("return x + 7", "return None"): ("survived", ""),
        ("return x + 7", "return x - 7"): ("survived", ""),
        ("return x + 7", "return x + 8"): ("survived", ""),
    }
    (package,) = json.loads((toy / "out.json").read_text())["packages"]
    counts = {"mutants": 19, "tried": 19, "killed by a failing test": 14, "by taking too long": 2, "survived": 3, "survivors explained": 1}
    assert package.items() >= counts.items() and package["killed, %"] == 84.2
    alive = json.loads((toy / "survivors.json").read_text())["survivors"]
    assert [(row["where"], row["why it survives"]) for row in alive].count(("toy.py:24 forget", "nobody asks")) == 1
    assert [row["why it survives"] for row in alive].count("not explained yet") == 2
