"""What a process may use: cores and memory by affinity and by the cgroups of either version."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from comdefend_cli.batch.budget import BUDGET, fit_budget
from comdefend_cli.runtime.machine import choose_thread_count, count_cores, find_memory_limit, use_one_thread

GB = 2**30


def machine_of(root: Path, *, cgroup: str, files: dict[str, str], total: int = 16 * GB) -> Path:
    """A made machine: what `/proc/self/cgroup` says, and files below `/sys/fs/cgroup`."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(cgroup)
    (root / "proc" / "meminfo").write_text(f"MemTotal:       {total // 1024} kB\nMemFree:  1 kB\n")
    for name, text in files.items():
        path = root / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process might run on 64 cores, and nobody had said how many threads to take."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_limits_of_version_2_hold_from_the_outermost_to_the_own_cgroup(tmp_path: Path, many_cores: None) -> None:
    """The smallest of all limits on the way counts, and a quota of part of a core is rounded up."""
    files = {"a/cpu.max": "max 100000", "a/memory.max": str(4 * GB), "a/b/cpu.max": "250000 100000", "a/b/memory.max": "max"}
    root = machine_of(tmp_path, cgroup="0::/a/b\n", files=files)
    assert (count_cores(root), find_memory_limit(root), choose_thread_count(root)) == (3, 4 * GB, 3)


def test_limits_of_version_1_are_in_a_folder_for_each_controller(tmp_path: Path, many_cores: None) -> None:
    """Quota and period in microseconds; -1 and the huge number that stands for no limit are none."""
    lines = "12:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n0::/\n"
    files = {
        "cpu/docker/x/cpu.cfs_quota_us": "50000",
        "cpu/docker/x/cpu.cfs_period_us": "100000",
        "cpu/cpu.cfs_quota_us": "-1",
        "memory/docker/x/memory.limit_in_bytes": "9223372036854771712",
        "memory/memory.limit_in_bytes": str(2 * GB),
    }
    root = machine_of(tmp_path, cgroup=lines, files=files)
    assert (count_cores(root), find_memory_limit(root)) == (1, 2 * GB)


def test_a_container_sees_its_own_cgroup_as_the_outermost(tmp_path: Path, many_cores: None) -> None:
    """A path that is the host's and leads nowhere inside does not hide the limits that are mounted."""
    files = {"cpu.max": "400000 100000", "memory.max": str(GB)}
    root = machine_of(tmp_path, cgroup="0::/kubepods/pod1/x\n", files=files)
    assert (count_cores(root), find_memory_limit(root)) == (4, GB)


def test_without_limits_the_machine_counts(tmp_path: Path, many_cores: None) -> None:
    """No cgroups, broken files and no /proc at all: affinity and total memory, or None; PyTorch's own choice of threads stays."""
    root = machine_of(tmp_path / "a", cgroup="nonsense\n", files={"cpu.max": "?", "memory.max": "?"})
    assert (count_cores(root), find_memory_limit(root), choose_thread_count(root)) == (64, 16 * GB, None)
    (root / "proc" / "self" / "cgroup").write_text("0::/../..\n")
    assert count_cores(root) == 64
    assert (count_cores(tmp_path / "no"), find_memory_limit(tmp_path / "no")) == (64, None)


def test_threads_that_somebody_set_stay(tmp_path: Path, many_cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """OMP_NUM_THREADS, a person's or Ray's, is not overruled by a quota."""
    root = machine_of(tmp_path, cgroup="0::/\n", files={"cpu.max": "200000 100000"})
    assert choose_thread_count(root) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert choose_thread_count(root) is None


def test_what_is_in_work_follows_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small container holds fewer megapixels at a time, a large machine no more than the most."""
    monkeypatch.setattr("comdefend_cli.batch.budget.find_memory_limit", lambda: GB)
    assert 5 < fit_budget() < 20
    assert fit_budget(0.5) == fit_budget() / 2
    assert fit_budget(most=1000.0) == fit_budget()
    monkeypatch.setattr("comdefend_cli.batch.budget.find_memory_limit", lambda: 512 * GB)
    assert fit_budget() == BUDGET
    assert fit_budget(most=100.0) == 100.0
    monkeypatch.setattr("comdefend_cli.batch.budget.find_memory_limit", lambda: None)
    assert fit_budget() == BUDGET
    assert fit_budget(most=1000.0) == BUDGET


def test_one_thread_holds_in_threads_that_begin_within(request: pytest.FixtureRequest) -> None:
    """Within, PyTorch's operations take one thread, also in a thread that is new; after it, also after an error, as many as before."""
    before = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(before))
    torch.set_num_threads(3)
    seen: list[int] = []
    with pytest.raises(KeyError), use_one_thread():
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        seen.append(torch.get_num_threads())
        raise KeyError
    assert seen == [1, 1]
    assert torch.get_num_threads() == 3
