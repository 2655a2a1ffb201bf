"""`python -m comdefend_cli`."""

from comdefend_cli.cli import main

if __name__ == "__main__":
    main()
