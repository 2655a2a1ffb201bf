"""Half-written files, and what killed processes leave of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from comdefend_cli.runtime.files import write_atomically
from comdefend_cli.runtime.parts import find_parts, open_part

pytest.importorskip("fcntl", reason="without locks, nobody knows whose a half-written file is")


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    """Of the same file only, long names too; a link of that name is not followed, and a pipe is not waited for."""
    target = tmp_path / ("é" * 100 + ".png")
    with open_part(target) as (living, _):
        left = living.with_name(living.name.replace(living.name[-13:-5], "0123abcd"))
        others = [tmp_path / ".other.png.0123abcd.part", tmp_path / "a.0123abcd.part"]
        for path in (left, *others):
            path.touch()
        left.with_name(left.name.replace("0123abcd", "1123abcd")).symlink_to(others[0])
        pipe = left.with_name(left.name.replace("0123abcd", "2123abcd"))
        os.mkfifo(pipe)
        write_atomically(target, b"whole")
        assert target.read_bytes() == b"whole"
        assert not left.exists() and living.exists() and all(path.exists() for path in others)
    assert not living.exists()


def test_a_file_that_is_swept_before_it_was_locked_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between making and locking, another process may take it for abandoned."""
    import fcntl

    lock = fcntl.flock
    swept: list[Path] = []

    def sweep_first(descriptor: int, operation: int) -> None:
        if not swept:
            swept.extend(find_parts(tmp_path, {"a.png"}))
            swept[0].unlink()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", sweep_first)
    write_atomically(tmp_path / "a.png", b"whole")
    assert swept and [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"whole"
