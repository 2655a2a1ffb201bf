"""The command, as `comdefend` and as `python -m comdefend_cli`."""

import os
import signal


def main() -> None:
    """Run it; also while its first modules are imported, Ctrl-C ends it without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until a command listens itself, the exception of Python's own handler would be shown, or dropped where C code calls Python back.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _fill_closed()
    from comdefend_cli.cli import main as run

    run()


def _fill_closed() -> None:
    """Let no output get the number of a standard stream that is closed: what a library says to that stream would go into the file."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


if __name__ == "__main__":
    main()
