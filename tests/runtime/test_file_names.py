"""Names that a disk takes for one."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from comdefend_cli.runtime import names
from comdefend_cli.runtime.names import folds_case


def fold(path: Path) -> bool:
    """Whether a file is there, on a disk that folds case."""
    return path.name.lower() in {each.name.lower() for each in path.parent.iterdir()}


@pytest.mark.parametrize("folds", [True, False])
def test_a_folder_is_asked_and_left_as_it_was(folds: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the nearest one above it that is there."""
    path = SimpleNamespace(lexists=fold if folds else lambda path: path in path.parent.iterdir())
    monkeypatch.setattr(names, "os", SimpleNamespace(path=path))
    assert folds_case(tmp_path) is folds_case(tmp_path / "absent" / "folder") is folds
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("system", "folds"), [("linux", False), ("darwin", True), ("win32", True)])
def test_a_folder_that_cannot_be_asked_goes_by_the_system(system: str, folds: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of one that is read-only."""

    def refuse(**_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(names, "tempfile", SimpleNamespace(NamedTemporaryFile=refuse))
    monkeypatch.setattr(sys, "platform", system)
    assert folds_case(Path.cwd()) is folds
