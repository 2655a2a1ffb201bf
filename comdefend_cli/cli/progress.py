"""How far a command is: a bar on a terminal, nothing or a notice elsewhere.

Each function is a context manager around the work. It yields what the work calls as it goes on, or None where nothing is shown.
Bars go when the work ends, but for :func:`show_steps`, whose last line says how training ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from comdefend_cli.cli.console import check_interrupt, err, notice

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, Task
    from rich.text import Text

#: Called with what is done since the last call; a negative number takes some back.
Advance = Callable[[int], None]


#: Columns of a bar, on a terminal that is `_WIDE`, and on a narrower one, which has none where it is `_NARROW`.
_BAR, _SHORT_BAR, _WIDE, _NARROW = 40, 10, 110, 60
#: Columns that numbers and time take, with the gaps between them.
_NUMBERS = 29


class Forecast:
    """Says once how long work will take, where no bar does: after `AFTER` seconds of it, if more than `LEAST` are left.

    Args:
        total: of what is counted.
        quiet: say nothing.
    """

    AFTER, LEAST = 10.0, 60.0

    def __init__(self, total: int, *, quiet: bool) -> None:
        self._total, self._done, self._began = total, 0, time.perf_counter()
        self._waiting = not quiet and not err.is_terminal

    def add(self, part: int) -> None:
        """Count what is done since the last call."""
        self._done += part
        passed = time.perf_counter() - self._began
        if not self._waiting or passed < self.AFTER or self._done <= 0:
            return
        self._waiting = False
        left = passed * (self._total - self._done) / self._done
        if left > self.LEAST:
            notice(f"about {say_duration(left)} to go")


def say_duration(seconds: float) -> str:
    """A time in its largest unit: "8 s", "12 min", "3.5 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@contextmanager
def show_pixels(total: int, *, quiet: bool) -> Iterator[Advance]:
    """A bar of an image's pixels, in percent; shown or not, a signal to end is heard at every step of it at the latest."""
    from rich.progress import TaskProgressColumn

    forecast = Forecast(total, quiet=quiet)
    with _open_bar(TaskProgressColumn(), shown=not quiet) as bar:
        show = _make_advance(bar, "purifying", total)

        def advance(pixels: int) -> None:
            check_interrupt()
            forecast.add(pixels)
            if show:
                show(pixels)

        yield advance


@contextmanager
def show_images(what: str, total: int, *, quiet: bool) -> Iterator[Advance | None]:
    """A bar of images of which each goes through `what`, such as "purifying the images"; elsewhere a notice that it begins."""
    from rich.progress import MofNCompleteColumn

    notice(what, quiet=quiet or err.is_terminal)
    with _open_bar(MofNCompleteColumn(), shown=not quiet) as bar:
        yield _make_advance(bar, what, total)


@contextmanager
def show_files(count: int, size: int, pixels: Callable[[], int], *, quiet: bool) -> Iterator[Callable[[int, str], None] | None]:
    """A bar of files, to be called with each one's bytes and a text that goes before their number.

    Args:
        count: files in all.
        size: their bytes, which tell the time left better than a count of files of all sizes.
        pixels: tells how many have left the networks, so that the speed moves within a large image.
        quiet: show nothing.
    """
    forecast = Forecast(size, quiet=quiet)
    with _open_bar(_make_speed_column(pixels), shown=not quiet and size > 0) as bar:
        if bar is None:
            yield None if quiet or err.is_terminal else lambda part, before: forecast.add(part)
            return
        task = bar.add_task(f"0/{count} files", total=size)
        done = 0

        def show(part: int, before: str) -> None:
            nonlocal done
            done += 1
            bar.update(task, advance=part, description=f"{before}{done}/{count} files")

        yield show


@contextmanager
def show_steps(total: int, *, done: int = 0, quiet: bool) -> Iterator[Callable[[int, str], None] | None]:
    """A line of training steps, to be called with the steps done in all and what to say of them."""
    from rich.progress import MofNCompleteColumn

    with _open_bar(MofNCompleteColumn(), shown=not quiet, transient=False) as bar:
        if bar is None:
            yield None
            return
        task = bar.add_task("training", total=total, completed=done)
        yield lambda step, text: bar.update(task, completed=step, description=text)


@contextmanager
def show_cells(total: int, *, quiet: bool) -> Iterator[Callable[[int, str, int, int], None] | None]:
    """A bar of an evaluation's cells, and one of what is measured; called with cells done, what it is, its done and its count."""
    from rich.progress import MofNCompleteColumn

    with _open_bar(MofNCompleteColumn(), shown=not quiet, elapsed=True) as bar:
        if bar is None:
            yield None
            return
        whole, part = bar.add_task("cells", total=total), bar.add_task("")

        def show(finished: int, label: str, done: int, count: int) -> None:
            bar.update(part, description=label, completed=done, total=count)
            bar.update(whole, completed=finished)

        yield show


@contextmanager
def show_reading(name: str, *, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar of reading a data set, and of its download, to be called with the bytes done and those in all, 0 where nobody knows."""
    with _open_bar(_make_download_column(), shown=not quiet, elapsed=True) as bar:
        if bar is None:
            yield None
            return
        task = bar.add_task(f"reading {name}", total=None)

        def show(done: int, total: int) -> None:
            whole = 0 < total <= done
            bar.update(task, description=f"{'reading' if whole else 'downloading'} {name}", completed=done, total=total or None)

        yield show


@contextmanager
def show_waiting(what: str, *, quiet: bool) -> Iterator[None]:
    """Of seconds that cannot be counted: what it is, moving on a terminal, nothing elsewhere."""
    with err.status(what) if err.is_terminal and not quiet else nullcontext():
        yield


@contextmanager
def show_spinner(what: str, *, quiet: bool) -> Iterator[None]:
    """Of work that cannot be counted: what it is, moving on a terminal, a notice elsewhere."""
    if quiet or not err.is_terminal:
        notice(what, quiet=quiet)
        yield
        return
    with err.status(what):
        yield


@contextmanager
def _open_bar(column: ProgressColumn, *, shown: bool, transient: bool = True, elapsed: bool = False) -> Iterator[Progress | None]:
    """Description, bar, `column`, and the time left or, for parts of unlike length, elapsed; on a terminal."""
    if not (shown and err.is_terminal):
        yield None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Column

    # What is longer than its place is cut: a line that wraps would leave its beginning behind when the bar moves on.
    width = _BAR if err.width >= _WIDE else _SHORT_BAR if err.width >= _NARROW else 0
    place = Column(no_wrap=True, overflow="ellipsis", max_width=max(err.width - width - _NUMBERS, 8))
    text = TextColumn("{task.description}", markup=False, table_column=place)
    columns = (text, *([BarColumn(width)] if width else []), column, TimeElapsedColumn() if elapsed else TimeRemainingColumn())
    with Progress(*columns, console=err, transient=transient) as bar:
        yield bar


def _make_advance(bar: Progress | None, what: str, total: int) -> Advance | None:
    if bar is None:
        return None
    task = bar.add_task(what, total=total)
    return lambda part: bar.advance(task, part)


def _make_download_column() -> ProgressColumn:
    """The bytes of a download, once there are any."""
    from rich.progress import DownloadColumn, ProgressColumn
    from rich.text import Text

    class Downloaded(ProgressColumn):
        _column = DownloadColumn()

        def render(self, task: Task) -> Text:
            return self._column.render(task) if task.completed else Text()

    return Downloaded()


def _make_speed_column(pixels: Callable[[], int]) -> ProgressColumn:
    from rich.progress import ProgressColumn
    from rich.text import Text

    began = time.perf_counter()

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{pixels() / 1e6 / max(time.perf_counter() - began, 1e-3):.2f} megapixels/s")

    return Speed()
