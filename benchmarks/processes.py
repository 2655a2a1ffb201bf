"""`comdefend purify` as a process of its own, watched from its start to its end (Linux)."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

#: Seconds between two looks at a process.
LOOK = 0.01


@dataclass(frozen=True)
class Run:
    """A process that was watched.

    Attributes:
        seconds: from its start to its end, or until it was ended.
        peak_mb: its largest resident memory, in 10^6 bytes.
        peak_mb_at_half: the same after half of the time that it was given, or None where it took less.
        finished: it came to its own end.
    """

    seconds: float
    peak_mb: float
    peak_mb_at_half: float | None
    finished: bool


def purify(source: Path, target: Path, **options: object) -> list[str]:
    """The command, on the CPU; an option that is True is a flag."""
    words = [str(word) for key, value in options.items() for word in ([_flag(key)] if value is True else [_flag(key), value])]
    command = [sys.executable, "-m", "comdefend_cli", "purify", str(source), str(target)]
    return [*command, "--device", "cpu", "--quiet", "--overwrite", *words]


def watch(command: list[str], seconds: float = 0.0) -> Run:
    """Run a command to its end, or for so many seconds at most.

    Raises:
        SystemExit: it failed.
    """
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    most, half = 0, None
    while process.poll() is None and not (seconds and time.perf_counter() - began > seconds):
        most = max(most, _peak(process))  # Not by `wait4`: that counts what this process had when it forked.
        if half is None and seconds and time.perf_counter() - began > seconds / 2:
            half = most / 1e6
        time.sleep(LOOK)
    taken, finished = time.perf_counter() - began, process.poll() is not None
    process.kill()
    process.wait()
    if finished and process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {' '.join(command)}")
    return Run(taken, most / 1e6, half, finished)


def _peak(process: subprocess.Popen[bytes]) -> int:
    """Bytes, or 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"
