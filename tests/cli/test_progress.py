"""Bars are shown on a terminal that wants them, and nowhere else; what folders leave out is told."""

from __future__ import annotations

import io
import re
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from comdefend_cli.cli import console, preparation, progress

BARS: dict[str, tuple[Callable[[bool], AbstractContextManager[Any]], tuple[Any, ...], str]] = {
    "pixels": (lambda quiet: progress.show_pixels(100, quiet=quiet), (50,), "50%"),
    "images": (lambda quiet: progress.show_images("purifying the images", 10, quiet=quiet), (3,), "3/10"),
    "files": (lambda quiet: progress.show_files(4, 1000, lambda: 0, quiet=quiet), (250, "stopping  "), "stopping  1/4 files"),
    "steps": (lambda quiet: progress.show_steps(20, done=5, quiet=quiet), (6, "loss 0.5"), "loss 0.5"),
    "cells": (lambda quiet: progress.show_cells(8, quiet=quiet), (2, "PGD", 5, 50), "5/50"),
    "reading": (lambda quiet: progress.show_reading("cifar10", quiet=quiet), (1000, 2000), "1.0/2.0 kB"),
}


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> io.StringIO:
    """What is written to a terminal, or to a file where the test asks for none."""
    file = io.StringIO()
    err = Console(file=file, force_terminal=getattr(request, "param", True), width=100, color_system=None)
    for module in (console, progress):
        monkeypatch.setattr(module, "err", err)
    return file


@pytest.mark.parametrize("name", BARS)
def test_bars_say_how_far_the_work_is(name: str, said: io.StringIO) -> None:
    """On a terminal each bar shows what it was told last."""
    show, arguments, expected = BARS[name]
    with show(False) as update:
        update(*arguments)
    assert expected in said.getvalue()


@pytest.mark.parametrize("width", [40, 80])
def test_bars_fit_into_narrow_terminals(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they say, each row of a bar is one line with its numbers whole, so that nothing is left behind when it moves on."""
    long = "APGD + FMN + Square through comdefend-12bit-denoise:input-noise=20,votes=8, straight-through gradient, 8/255"
    for show, arguments, expected in (
        (lambda: progress.show_cells(480, quiet=False), (123, long, 45, 500), "45/500"),
        (lambda: progress.show_steps(20000, quiet=False), (12345, "loss 0.001234  31.25 dB  12345.6 images/s"), "12345/20000"),
        (lambda: progress.show_reading("fashion-mnist", quiet=False), (10**8, 2 * 10**8), "100.0/200.0 MB"),
        (lambda: progress.show_files(123, 9, lambda: 10**6, quiet=False), (1, ""), "1/123 files"),
    ):
        file = io.StringIO()
        monkeypatch.setattr(progress, "err", Console(file=file, force_terminal=True, width=width, color_system=None))
        with show() as update:
            update(*arguments)
        lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", file.getvalue())]
        assert max(map(len, lines)) <= width
        assert any(expected in line for line in lines), lines


@pytest.mark.parametrize("name", BARS)
def test_quiet_shows_no_bar(name: str, said: io.StringIO) -> None:
    """With --quiet nothing is written; only the bar of pixels, which hears signals, is to be called."""
    bar, arguments, _ = BARS[name]
    with bar(True) as update:
        assert (update is None) == (name != "pixels")
        if update:
            update(*arguments)
    assert said.getvalue() == ""


@pytest.mark.parametrize("said", [False], indirect=True)
@pytest.mark.parametrize("name", BARS)
def test_no_bar_goes_into_a_file(name: str, said: io.StringIO) -> None:
    """Where standard error is no terminal no bar is drawn; long work is at most named once."""
    bar, arguments, _ = BARS[name]
    with bar(False) as update:
        assert (update is None) == (name not in ("pixels", "files"))  # Which say how long it will take.
        if update:
            update(*arguments)
    assert said.getvalue().count("\n") <= 1 and "%" not in said.getvalue()


@pytest.mark.parametrize(("said", "quiet", "expected"), [(False, False, "note: quantizing\n"), (False, True, "")], indirect=["said"])
def test_work_that_cannot_be_counted_is_named(said: io.StringIO, quiet: bool, expected: str) -> None:
    """Where there is no terminal for a spinner, a notice says what takes so long, unless nothing is to be said."""
    with progress.show_spinner("quantizing", quiet=quiet):
        pass
    assert said.getvalue() == expected


def test_files_that_a_folder_leaves_out_are_told(tmp_path: Path, said: io.StringIO) -> None:
    """Images smaller than the crops, which every training command may ask for, are counted in a notice."""
    for name, side in (("a", 64), ("b", 64), ("small", 40)):
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(tmp_path / f"{name}.png")
    dataset = preparation.fetch_dataset(str(tmp_path), tmp_path, download=False, quiet=False, crop=48)
    assert dataset.skipped == 1
    assert f"1 file in {tmp_path} is no image of 48x48 pixels or more" in " ".join(said.getvalue().split())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_library_swallowed_ends_the_work_at_the_next_step(number: int) -> None:
    """An exception raised while C calls Python back is dropped: the bar, shown or not, raises it again."""
    before = signal.signal(number, signal.default_int_handler)  # It is ignored where the tests run in the background of a script.
    try:
        with console.end_on_signals(), progress.show_pixels(100, quiet=True) as advance:
            advance(1)
            with suppress(KeyboardInterrupt):
                signal.raise_signal(number)
            with pytest.raises(KeyboardInterrupt):
                advance(1)
            with pytest.raises(KeyboardInterrupt), console.catch_interrupts(lambda number: None):
                pytest.fail("longer work was begun")
        with console.end_on_signals(), progress.show_pixels(100, quiet=True) as advance:
            advance(1)
    finally:
        signal.signal(number, before)
