"""What this process may use of the machine: cores and memory, in a container too (Linux; elsewhere what Python says)."""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Where the kernel tells of itself; tests put their own in its place.
ROOT = Path("/")


def count_cores(root: Path = ROOT) -> int:
    """Cores that this process may use, at least 1: by its affinity, and by the CPU quota of its cgroups (v1 or v2), rounded up."""
    quotas = [quota for folder in _list_cgroups(root, "cpu") if (quota := _read_quota(folder)) is not None]
    return max(1, min([_count_allowed(), *map(math.ceil, quotas)]))


def find_memory_limit(root: Path = ROOT) -> int | None:
    """Bytes of memory that this process may use with all others of its container, or None where that is not known."""
    found = re.search(r"^MemTotal:\s*(\d+) kB", _read_text(root / "proc/meminfo"), re.MULTILINE)
    limits = [int(found[1]) * 1024] if found else []
    for folder in _list_cgroups(root, "memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            text = _read_text(folder / name).strip()
            limits += [int(text)] if text.isdigit() else []
    return min(limits, default=None)


def choose_thread_count(root: Path = ROOT) -> int | None:
    """Threads for the network where PyTorch would take more than the cores that may be used, else None.

    PyTorch counts the machine's cores, and knows nothing of a container's quota: with more threads than that allows, each waits for all.
    """
    if "OMP_NUM_THREADS" in os.environ:  # A person, or Ray, has said how many.
        return None
    count = count_cores(root)
    return count if count < _count_allowed() else None


def limit_threads() -> None:
    """Let PyTorch take no more :func:`choose_thread_count` than that, in this whole process: for programs, not libraries."""
    count = choose_thread_count()
    if count is not None:
        import torch

        torch.set_num_threads(count)


@contextmanager
def use_one_thread() -> Iterator[None]:
    """PyTorch's operations on the CPU by one thread each, in this whole process, until this is left.

    Beside threads that keep all cores busy, an operation that is split waits until the last of its parts has been given a core: copying
    an image takes several times as long so.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def read_cpu(root: Path = ROOT) -> tuple[str, set[str]]:
    """The CPU's name, and the names of its instruction sets as Linux lists them; elsewhere what Python knows, and none."""
    text = _read_text(root / "proc/cpuinfo")
    name, flags = (re.search(rf"^{key}\s*:\s*(.*)$", text, re.MULTILINE) for key in ("model name", "(?:flags|Features)"))
    return name[1].strip() if name else platform.processor() or platform.machine(), set(flags[1].split()) if flags else set()


def _count_allowed() -> int:
    """Cores by this process's affinity, which is what PyTorch counts."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _list_cgroups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the cgroups this process is in, from its own to the outermost; a limit of any of them holds.

    In a container, the own cgroup is mounted as if it were the outermost, and its path may lead nowhere.
    """
    base = root / "sys/fs/cgroup"
    for line in _read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        mount = base / controller if controllers else base
        below = Path(path.lstrip("/"))
        if ".." not in below.parts:
            yield from (mount / part for part in (below, *below.parents))


def _read_quota(folder: Path) -> float | None:
    """Cores' worth of CPU time that a cgroup may use, or None without a limit."""
    quota, _, period = _read_text(folder / "cpu.max").strip().partition(" ")
    if not quota:
        quota, period = (_read_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(quota) and int(period) else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
