"""The command line: the only part that prints or exits. Nothing here imports torch, or much else, until a command runs."""

import sys

import typer

from comdefend_cli.cli import (
    certify,
    console,
    detect,
    doctor,
    evaluate,
    export,
    purify,
    purify_dir,
    train,
    train_baseline,
    train_classifier,
    weights,
)
from comdefend_cli.cli.helping import Command
from comdefend_cli.runtime.files import make_write_error

app = typer.Typer(
    name="comdefend",
    help="Purify images: squeeze each pixel to a 12-bit code and rebuild it, so that adversarial noise mostly does not survive.",
    epilog="Exit codes: 0 all done, 1 something failed, 2 wrong usage, 3 an image was flagged (detect), 4 too little protection (evaluate "
    "--fail-under), 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("purify", cls=Command)(purify.purify)
app.command("purify-dir", cls=Command)(purify_dir.purify_dir)
app.command("train", cls=Command)(train.train)
app.command("evaluate", cls=Command, short_help="Measure how much a purifier protects a classifier.")(evaluate.evaluate)
app.command("certify", cls=Command, short_help="Prove how far a classifier's answer holds.")(certify.certify)
app.command("calibrate-detector", cls=Command, short_help="Make a detector of attacked images.")(detect.calibrate_detector)
app.command("detect", cls=Command, short_help="Tell which images are attacked.")(detect.detect)
app.command("train-classifier", cls=Command)(train_classifier.train_classifier)
app.command("train-baseline", cls=Command, short_help="Train the network of another defence.")(train_baseline.train_baseline)
app.command("export", cls=Command, short_help="Write weights for other software.")(export.export)
app.command("quantize", cls=Command, short_help="Add networks of 8-bit integers to weights.")(export.quantize)
app.command("doctor", cls=Command, short_help="Check the installation and its speed.")(doctor.doctor)
app.add_typer(weights.app, name="weights", short_help="List, show, verify and import weight files.")


def _print_version(wanted: bool) -> None:
    if wanted:
        from comdefend_cli import __version__

        typer.echo(f"comdefend {__version__}")
        raise typer.Exit


@app.callback()
def _take_options(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    try:
        sys.exit(console.run_app(app))
    except OSError as error:  # Of help and version, which a full disk has no room for.
        if error.filename is not None:
            raise
        console.abandon_output()
        sys.exit(f"error: {make_write_error('standard output', error)}")
