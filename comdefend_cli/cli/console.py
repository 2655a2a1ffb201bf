"""What all commands share: consoles, results on standard output, errors as one line, notices, interruption."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, NoReturn, TypeVar, cast

import typer
import typer.main
from rich.console import Console

from comdefend_cli.errors import ComdefendError, UsageError, explain
from comdefend_cli.runtime.files import make_write_error

if not os.environ.get("COLUMNS", "1").strip("0"):
    del os.environ["COLUMNS"]  # Of no columns, as some say who start programs, nothing at all would be shown.


class _Aside:
    """Standard error, whatever it is just now, but that nothing comes of it if nobody reads it or its disk is full: the work goes on."""

    def write(self, text: str) -> int:
        self._try(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(lambda stream: stream.flush())

    def _try(self, use: Callable[[Any], object]) -> None:
        if (stream := self._find()) is None:
            return
        try:
            use(stream)
        except OSError:
            _abandon(stream)

    def _find(self) -> Any:
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # Beside a bar, rich puts a stream of its own before it.

    def __getattr__(self, name: str) -> Any:
        return getattr(self._find(), name)


#: Results go to standard output; everything said to a person goes to standard error.
out = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
err = Console(file=cast("IO[str]", _Aside()), soft_wrap=True, highlight=False, markup=False, emoji=False)

INTERRUPTED = 130

Function = TypeVar("Function", bound=Callable[..., Any])

#: Whether a signal has asked the command to end.
_interrupted = threading.Event()


def run_app(app: typer.Typer) -> int:
    """Run the command that the command line names; what is wrong with the line itself is an error on one line too.

    Returns:
        The exit code.
    """
    wrong_usage: Any = next(each for each in typer.BadParameter.__mro__ if each.__name__ == "ClickException")
    try:
        _refuse_empty(sys.argv[1:])
        code = typer.main.get_command(app).main(standalone_mode=False)
    except UsageError as error:
        print_error(error)
        return error.exit_code
    except wrong_usage as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
        else:
            err.print(f"error: {escape_unprintable(_describe_usage(error))}", style="red")
        return UsageError.exit_code
    _forget_interrupt()
    return code if isinstance(code, int) else 0


def _refuse_empty(words: Sequence[str]) -> None:
    """Refuse a name or value that is empty: as a path, it would be the current folder."""
    for word in words:
        if not word or (word.startswith("--") and word.find("=") == len(word) - 1):
            raise UsageError(f"{word or 'a name or value'} is empty, as of a variable that is not set; leave it out, or say what it is")


def _forget_interrupt() -> None:
    """Let the exit code be the command's where its work was interrupted within source text.

    Where KeyboardInterrupt leaves :func:`exec` or :func:`eval` of a text, as of a data class that is made while modules are imported,
    Python notes it, and `python -m` ends itself by SIGINT whatever became of it. The next text that is run takes the note away.
    """
    exec("")  # noqa: S102


def _describe_usage(error: Any) -> str:
    """What is wrong with a command line, and where its help is."""
    text = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    where = context.command_path if context else "comdefend"
    if context and "unexpected extra argument" in text:  # Mostly OUT, which other programs take there.
        text += next((f"; where to write is {each.opts[-1]}" for each in context.command.params if "--out" in each.opts), "")
    return f"{text[:1].lower()}{text[1:]}; see {where} --help"


def fail(error: ComdefendError) -> NoReturn:
    """Print an error on one line and exit with its code."""
    print_error(error)
    raise typer.Exit(error.exit_code)


def escape_unprintable(text: str) -> str:
    """A text that may hold a file's name, and so anything, without what could move a terminal's cursor."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def command(function: Function) -> Function:
    """Turn what a command raises into one line and an exit code."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            with end_on_signals():
                return function(*args, **kwargs)
        except ComdefendError as error:
            fail(error)
        except KeyboardInterrupt:
            err.print("interrupted", style="yellow")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            abandon_output()  # Whoever read it has left.
            raise typer.Exit(1) from None
        except OSError as error:  # Such as a folder that may not be entered, wherever it was looked into first.
            if error.filename is None:
                raise
            fail(ComdefendError(f"{error.filename}: {explain(error)}; check the path and its permissions"))
        except (MemoryError, RuntimeError) as error:
            from comdefend_cli.runtime.device import is_out_of_memory

            if not is_out_of_memory(error):
                raise
            fail(ComdefendError("out of memory: use a smaller --tile or --batch-size, or another --device"))

    return guarded  # type: ignore[return-value]


def abandon_output() -> None:
    """Let nothing more go to standard output: what could not be written would be tried, and complained of, again at exit."""
    if sys.stdout is not None:
        _abandon(sys.stdout)


def _abandon(stream: IO[str]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def read_in() -> bytes:
    """All of standard input.

    Raises:
        ComdefendError: it is closed, or cannot be read.
    """
    if sys.stdin is None:
        raise ComdefendError("standard input: is closed; give it an image, or name a file")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise ComdefendError(f"standard input: cannot read: {explain(error)}; name a file") from error


def refuse_closed_out() -> None:
    """Find out before the work that standard output is closed.

    Raises:
        ComdefendError: it is.
    """
    if sys.stdout is None:
        raise ComdefendError("standard output: is closed; leave it open, or name a file")


def write_out(data: bytes) -> None:
    """Write a result to standard output, all of it.

    Raises:
        ComdefendError: it is closed, or cannot be written.
        BrokenPipeError: nobody reads it any more.
    """
    refuse_closed_out()
    rest = memoryview(data)
    try:
        while rest:  # Under PYTHONUNBUFFERED, `write` takes what a nearly full disk has room for, and is content.
            rest = rest[sys.stdout.buffer.write(rest) :]
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise make_write_error("standard output", error) from error


def print_line(text: str) -> None:
    """Write a line to standard output; errors as of :func:`write_out`."""
    write_out(text.encode(errors="surrogateescape") + b"\n")


def print_json(value: object, *, indent: int | None = None) -> None:
    """Write a record to standard output, for scripts; errors as of :func:`write_out`."""
    print_line(json.dumps(value, indent=indent))


@contextmanager
def end_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the command as Ctrl-C does, so that it leaves nothing half-written; see :func:`check_interrupt`."""

    def interrupt(number: int, frame: Any) -> NoReturn:
        _interrupted.set()
        raise KeyboardInterrupt

    _interrupted.clear()
    main = threading.current_thread() is threading.main_thread()  # No other may say what a signal does.
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if main and hasattr(signal, name)]
    # Who said that SIGHUP is to be ignored, as nohup does, meant it; and a handler that is not Python's could not be set back.
    kept = (signal.SIG_IGN, None)
    before = {number: signal.signal(number, interrupt) for number in numbers if signal.getsignal(number) not in kept}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_interrupt() -> None:
    """Raise the KeyboardInterrupt of an earlier signal again: one that comes while C calls Python back is dropped, and the work went on."""
    if _interrupted.is_set():
        raise KeyboardInterrupt


@contextmanager
def catch_interrupts(ask: Callable[[int], object]) -> Iterator[None]:
    """Let the first Ctrl-C (or SIGTERM) only call `ask` with its number, so that the work ends in order; the second ends it at once.

    One that came before, and was dropped (see :func:`check_interrupt`), ends the work before it begins.
    """

    def first(number: int, frame: Any) -> None:
        ask(number)
        for each in before:
            signal.signal(each, signal.default_int_handler)

    check_interrupt()
    before = {number: signal.signal(number, first) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def print_error(error: ComdefendError) -> None:
    """Say an error on one line, where others of the kind may follow."""
    err.print(f"error: {escape_unprintable(explain(error))}", style="red")


def print_done(target: object, width: int, height: int, weights: str, noise: float, seconds: float, *, quiet: bool) -> None:
    """Say what became of an image: where it went, its size in pixels, with which weights and noise in 8-bit levels, in what time."""
    if not quiet:
        where = "standard output" if str(target) == "-" else escape_unprintable(str(target))
        how = f"noise {noise:g}" if noise else "no noise"
        err.print(f"{where}  {width}x{height}  {weights}  {how}  {seconds:.1f} s")


def notice(message: str, *, quiet: bool = False) -> None:
    """Say something that a person should know and a script need not."""
    if not quiet:
        err.print(f"note: {message}", style="yellow")


def show_warnings(quiet: bool) -> None:
    """Send Python warnings of ours (out of GPU memory, say) to the person as notices."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, RuntimeWarning):
            notice(str(message), quiet=quiet)

    warnings.simplefilter("always", RuntimeWarning)
    warnings.showwarning = show
