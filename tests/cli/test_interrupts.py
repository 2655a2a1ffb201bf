"""Commands that are interrupted where Python itself would have a say in how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

#: A module that runs the command, with a signal that comes while a module is imported, and from within a text that Python runs.
MODULE = """
import signal, sys
from comdefend_cli.__main__ import main
class Finder:
    def find_spec(self, name, *_):
        if name == "comdefend_cli.network.registry":
            exec("import signal; signal.raise_signal(signal.{})")
signal.signal(signal.SIGINT, signal.default_int_handler)  # It is ignored where the tests run in the background of a script.
sys.meta_path.insert(0, Finder())
main()
"""


@pytest.mark.skipif(os.name != "posix", reason="processes end by signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_ends_with_its_own_exit_code(tmp_path: Path, number: signal.Signals) -> None:
    """Also where the signal comes while source text is run, as of data classes at import: Python would make it a death by SIGINT."""
    (tmp_path / "early.py").write_text(MODULE.format(number.name))
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "NO_COLOR": "1"}
    command = [sys.executable, "-m", "early", "weights", "list"]
    done = subprocess.run(command, capture_output=True, env=environment, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"interrupted\n")
