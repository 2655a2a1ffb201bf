"""The command, as `comdefend` and as `python -m comdefend_cli`."""

import sys


def main() -> None:
    """Run it; also while its first modules are imported, Ctrl-C ends it without a traceback."""
    try:
        from comdefend_cli.cli import main as run

        run()
    except KeyboardInterrupt:  # Within a command it is handled there.
        sys.exit(130)


if __name__ == "__main__":
    main()
