"""The command in a process of its own: started as a person does, or forked from this one, which has imported what takes long."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

#: One thread, and messages without colours on wide lines.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200"}


def start(arguments: list[str], before: Sequence[str] = (), **variables: str) -> subprocess.Popen[str]:
    """Start the command, by that of `before`, with a process group of its own, so that no terminal's signals reach it."""
    environment = {**os.environ, **ENVIRONMENT, **variables}
    command = [*before, sys.executable, "-m", "comdefend_cli", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", env=environment, start_new_session=True
    )


@dataclass
class Ended:
    """What came of a process.

    Attributes:
        code: its exit code, or a signal's number, negative.
        said: on standard error.
        late: whether it had ended before it was disturbed.
        lived: seconds that it lived on after that.
    """

    code: int
    said: str
    late: bool = False
    lived: float = 0.0


@dataclass
class Forked:
    """A process that :func:`fork` made."""

    number: int
    pipe: int
    said: bytearray = field(default_factory=bytearray)

    def wait(self, seconds: float) -> bool:
        """Whether it ends within so many seconds; what it says is read meanwhile."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if select.select([self.pipe], [], [], left)[0]:
                more = os.read(self.pipe, 2**16)
                if not more:  # Its end closed the pipe.
                    return True
                self.said += more
        return False

    def end(self) -> tuple[int, str]:
        """Wait until it has ended; exit code, and what it said."""
        while not self.wait(600):
            pass
        status = os.waitpid(self.number, 0)[1]
        os.close(self.pipe)
        return os.waitstatus_to_exitcode(status), self.said.decode(errors="replace")


def fork(arguments: list[str], **variables: str) -> Forked:
    """The command in a fork of this process, in which no thread may run."""
    import torch._dynamo  # noqa: F401  # Which takes as long as PyTorch itself, and is imported by the first step of an optimizer.

    from comdefend_cli.__main__ import main
    from comdefend_cli.cli import purify_dir, train  # noqa: F401
    from comdefend_cli.inference import purifier  # noqa: F401
    from comdefend_cli.training import purifier as trainer  # noqa: F401

    reading, writing = os.pipe()
    number = os.fork()
    if number:
        os.close(writing)
        return Forked(number, reading)
    try:
        os.setsid()
        os.close(reading)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(writing, 2)
        os.close(writing)
        os.environ.update({**ENVIRONMENT, **variables})
        tempfile.tempdir = None
        sys.argv = ["comdefend", *arguments]
        code: object = 0
        try:
            main()
        except SystemExit as error:
            code = error.code
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 1
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1 if code else 0)
    finally:
        os._exit(70)


def disturb(arguments: list[str], number: signal.Signals, after: float, *, cold: bool, **variables: str) -> Ended:
    """Run the command, with a signal after so many seconds; `cold` as a person starts it, else forked."""
    if not cold:
        forked = fork(arguments, **variables)
        late = forked.wait(after)
        if not late:
            os.kill(forked.number, number)
        began = time.monotonic()
        return Ended(*forked.end(), late, time.monotonic() - began)
    process = start(arguments, **variables)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
    late, began = process.returncode is not None, time.monotonic()
    said = process.communicate(timeout=600)[1]
    return Ended(process.returncode, said, late, time.monotonic() - began)
