"""The state file of an output folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from comdefend_cli.batch.engine import BEGUN, Result, adopt_begun, report_known
from comdefend_cli.batch.journal import STATE, Journal, open_journal
from comdefend_cli.batch.plan import Plan
from comdefend_cli.batch.storage.folder import Folder
from comdefend_cli.batch.storage.listing import Found
from comdefend_cli.errors import ComdefendError, UsageError


def status(path: Path) -> os.stat_result:
    path.touch()
    return path.stat()


def test_the_state_file_survives_torn_and_strange_lines(tmp_path: Path) -> None:
    """After a line cut short anywhere, all lines before it and after it count."""
    stamp = status(tmp_path / "file")
    out = tmp_path / "out"
    with open_journal(Folder(out)) as state:
        state.begin(["a", "b"])
        state.finish("a", "a", stamp, stamp, "key")
        state.finish("b", "b", stamp, stamp, "key")
    path = out / STATE
    whole = path.read_bytes()
    for cut in range(len(whole.splitlines(keepends=True)[-1]) + 1):
        path.write_bytes(b"[1]\n\xff\n" + whole[: len(whole) - cut])
        with open_journal(Folder(out)) as state:
            assert state.is_finished("a", "a", stamp, stamp, "key")
            assert state.is_finished("b", "b", stamp, stamp, "key") == (cut <= 1)
            assert state.knows("b")
            state.finish("c", "c", stamp, stamp, "key")
        assert b"\n\n" not in path.read_bytes()
        with open_journal(Folder(out)) as state:
            assert state.is_finished("c", "c", stamp, stamp, "key")
            assert not state.is_finished("c", "c", stamp, stamp, "other")
            assert not state.is_finished("c", "a", stamp, stamp, "key")
    path.write_text('{"comdefend_state": 2}\n')
    with pytest.raises(UsageError, match="another version"), open_journal(Folder(out)):
        pass


def test_what_may_appear_is_on_the_disk_before_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The beginning of outputs, what is asked for, and all at the end; what can be done again is not waited for."""
    durable: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda number: durable.append((tmp_path / STATE).read_bytes()))
    stamp = status(tmp_path / "file")
    with open_journal(Folder(tmp_path)) as state:
        state.begin(["a", "b"])
        assert [len(each.splitlines()) for each in durable] == [2]
        state.finish("a", "a", stamp, stamp, "key")
        state.drop("b")
        assert len(durable) == 1
        state.sync()
        assert [len(each.splitlines()) for each in durable] == [2, 4]
        state.finish("c", "c", stamp, stamp, "key")
    assert [len(each.splitlines()) for each in durable] == [2, 4, 5]


def test_a_dropped_output_is_not_ours(tmp_path: Path) -> None:
    """Nor in the same run, nor in the next one, unless it is begun again."""
    with open_journal(Folder(tmp_path)) as state:
        state.begin(["a", "b"])
        state.drop("a")
        state.drop("never begun")
        assert not state.knows("a") and state.knows("b")
        assert list(state.list_leftovers()) == ["b"]
        state.begin(["c"])
        state.drop("c")
        state.begin(["c"])
    with open_journal(Folder(tmp_path)) as state:
        assert not state.knows("a") and state.knows("b") and state.knows("c")


def test_after_a_full_disk_the_next_line_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a line, a part was written: that is an error, and what is said next, once there is room, is understood."""
    with open_journal(Folder(tmp_path)) as state:
        state.begin(["a"])
        write = os.write
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda number, data: write(number, data[: len(data) // 2]))
            with pytest.raises(ComdefendError, match="no space left"):
                state.begin(["b"])
        assert not state.knows("b")
        state.begin(["c"])
        state.begin(["d"])
    assert len((tmp_path / STATE).read_text().splitlines()) == 5
    with open_journal(Folder(tmp_path)) as state:
        assert [state.knows(name) for name in "abcd"] == [True, False, True, True]


def test_only_our_own_leftovers_are_removed(tmp_path: Path) -> None:
    """Of the half-written files, those of outputs that were begun and not finished go; all others stay."""
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    with open_journal(Folder(out)) as state:
        state.begin(["a.png", "sub/b.png", "c.png", "../out-of-it.png"])
        state.finish("c.png", "c.png", status(out / "c.png"), status(out / "c.png"), "key")
    ours = [out / ".a.png.0123abcd.part", out / "sub" / ".b.png.0123abcd.part"]
    others = [out / ".c.png.0123abcd.part", out / ".x.png.0123abcd.part", out / ".a.png.part", tmp_path / ".out-of-it.png.0123abcd.part"]
    for path in (*ours, *others):
        path.touch()
    with open_journal(Folder(out)) as state:
        Folder(out).sweep(state.list_leftovers())
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in others)


def test_what_workers_began_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From whole files of theirs, each once that is durable; those of another shape and half-written ones only go."""
    left: list[int] = []
    notes = {"1": b'{"outputs": ["a.png", "sub/b.png"]}', "2": b"[]", "3": b"cut", "4": b'{"outputs": 7}', "5": b"{}"}
    for name, content in notes.items():
        (tmp_path / f"{BEGUN}{name}").write_bytes(content)
    (tmp_path / f".{BEGUN}6.part").touch()
    (tmp_path / "c.png").touch()
    with open_journal(Folder(tmp_path)) as state:
        monkeypatch.setattr(state, "_put", lambda: left.append(len(list(tmp_path.glob(f"{BEGUN}*")))))
        adopt_begun(Folder(tmp_path), state)
        assert left == [5, 4, 3, 2, 1]
        assert sorted(state.list_leftovers()) == ["a.png", "sub/b.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [STATE, "c.png"]
    with open_journal(Folder(tmp_path)) as state:
        assert state.knows("a.png")


def test_what_needs_no_work_is_reported(tmp_path: Path) -> None:
    """Kept outputs, then folders that cannot be listed."""
    plan = Plan([], [("a.jpg", "a.png")], Found(unreadable=[("sub", "permission denied")]))
    source, out = Folder(tmp_path / "in"), Folder(tmp_path / "out")
    assert list(report_known(plan, source, out)) == [
        Result(tmp_path / "in" / "a.jpg", tmp_path / "out" / "a.png", "kept", "", 0, None, None, 0.0, (), ""),
        Result(tmp_path / "in" / "sub", tmp_path / "out" / "sub", "failed", "permission denied", 0, None, None, 0.0, (), ""),
    ]


def test_refused_work_leaves_no_folder(tmp_path: Path) -> None:
    """A journal that nothing was written to takes itself and the folders it made away, and leaves those it found."""
    (tmp_path / "there").mkdir()
    for out in (tmp_path / "new" / "newer", tmp_path / "there"):
        with open_journal(Folder(out)):
            assert (out / STATE).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]
    assert not list((tmp_path / "there").iterdir())


@pytest.mark.parametrize("remove", [shutil.rmtree, lambda out: out.rename(out.with_name("moved"))])
def test_an_output_folder_that_goes_meanwhile_ends_in_an_error(tmp_path: Path, remove: Callable[[Path], object]) -> None:
    """Outputs that no journal knows of would be refused as another's by the next run."""
    out = tmp_path / "out"
    with pytest.raises(ComdefendError, match=r"was removed while the run went on"), open_journal(Folder(out)) as journal:
        journal.begin(["a.png"])
        remove(out)
        for name in ("a.png", "sub/b.png"):
            with pytest.raises((ComdefendError, OSError)):
                Folder(out).write(name, b"", overwrite=False)
        journal.begin(["b.png"])
    assert not out.exists()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files by /proc")
def test_a_journal_that_cannot_be_written_is_closed_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a place that takes nothing, nor a file that cannot be locked or looked at, leaves a file open or the folder held."""
    out = Folder(tmp_path / "out")
    files = len(os.listdir("/proc/self/fd"))

    def fail(*arguments: object) -> None:
        raise ComdefendError("the store does not answer")

    with pytest.raises(ComdefendError, match="does not answer"):
        journal = Journal(tmp_path / STATE, fail)
        journal.begin(["a.png"])
        journal.close()
    with pytest.raises(ComdefendError, match="does not answer"), open_journal(out) as journal:
        journal.begin(["a.png"])
        monkeypatch.setattr(journal, "_put", fail)
    assert len(os.listdir("/proc/self/fd")) == files
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "samestat", lambda *arguments: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(ComdefendError, match="input/output error"), open_journal(out):
            pass
    assert len(os.listdir("/proc/self/fd")) == files
    with open_journal(out) as journal:
        assert journal.knows("a.png")
