"""The command, as `comdefend` and as `python -m comdefend_cli`."""

import signal


def main() -> None:
    """Run it; also while its first modules are imported, Ctrl-C ends it without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until a command listens itself, the exception of Python's own handler would be shown, or dropped where C code calls Python back.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from comdefend_cli.cli import main as run

    run()


if __name__ == "__main__":
    main()
