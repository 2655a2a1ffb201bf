"""`comdefend weights list|show|verify|import`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from comdefend_cli.cli import console, options
from comdefend_cli.cli.origin import tell_origin
from comdefend_cli.cli.preparation import refuse_tensor_file
from comdefend_cli.cli.tables import print_table
from comdefend_cli.errors import ComdefendError, WeightsError, explain

app = typer.Typer(help="The weight files that ship, and yours: list, show, verify, import.", no_args_is_help=True)
Which = Annotated[str, typer.Argument(metavar="NAME|PATH", help="A name that `comdefend weights list` prints, or a weight file.")]


@app.command("list")
@console.command
def list_(as_json: options.Json = False) -> None:
    """List the weights that ship."""
    rows = _list_rows()
    if as_json:
        console.print_json(rows, indent=2)
        return
    heads = ("name", "channels", "bits", "noise", "PSNR dB", "about")
    lines = [
        (r["name"], str(r["channels"]), str(r["bits"]), f"{r['input_noise']:g}", _format_decibels(r["psnr_db"]), r["about"]) for r in rows
    ]
    if console.out.is_terminal:
        table = Table(*(Column(head, no_wrap=head != "about") for head in heads))
        for line in lines:
            table.add_row(*line)
        print_table(table)
    else:  # One line each, never cut or wrapped to a width that is not there.
        widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
        for line in (heads, *lines):
            console.print_line("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _list_rows() -> list[dict[str, Any]]:
    from comdefend_cli.network.registry import read_registry, read_weights_header

    rows = []
    for name, entry in read_registry().items():
        header, sha256, _ = read_weights_header(name)
        shape, training = header.architecture, header.training
        rows.append(
            {
                "name": name,
                "channels": shape.channels,
                "bits": shape.bits,
                "input_noise": header.input_noise,
                "psnr_db": training.get("psnr_db"),
                "ssim": training.get("ssim"),
                "sha256": sha256,
                "about": entry["about"],
            }
        )
    return rows


def _format_decibels(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, (int, float)) else "-"


@app.command(short_help="Print the header of a weight file as JSON.")
@console.command
def show(which: Which) -> None:
    """Print a weight file's header as JSON: architecture, PSNR in dB, how it was trained, and the file's SHA-256."""
    from comdefend_cli.network.registry import read_weights_header

    header, sha256, path = read_weights_header(which)
    top = {"file": str(path), "sha256": sha256, "psnr_db": header.training.get("psnr_db")}
    console.print_json({**top, **asdict(header)}, indent=2)


@app.command(short_help="Load weights completely, and check their hash.")
@console.command
def verify(
    which: Annotated[str | None, typer.Argument(metavar="[NAME|PATH]", help="Only this one, in place of all that ship.")] = None,
) -> None:
    """Load weights completely: hash (of those that ship), header, shapes, finite values, int8 networks where OpenVINO is installed."""
    from comdefend_cli.backends.openvino import openvino_is_installed, read_int8
    from comdefend_cli.network.registry import load_weights, read_registry

    failed = 0
    for name in [which] if which is not None else list(read_registry()):
        try:
            loaded = load_weights(name)
            if loaded.quantized and openvino_is_installed():
                read_int8(loaded.quantized, loaded.header.architecture.channels)
            console.print_line(f"ok {name} {loaded.sha256}")
            tell_origin([loaded.sha256], quiet=False)
        except WeightsError as error:  # Go on: a person wants to know of all that are damaged.
            if which is not None:
                raise
            console.err.print(f"error: {explain(error)}", style="red")
            failed += 1
    if failed:
        raise typer.Exit(ComdefendError.exit_code)


@app.command("import", short_help="Convert the authors' checkpoints to a weight file.")
@console.command
def import_(
    encoder: Annotated[Path, typer.Argument(metavar="ENC.npy", help="The authors' checkpoint of ComCNN.", **options.UNCHECKED)],
    decoder: Annotated[Path, typer.Argument(metavar="DEC.npy", help="The authors' checkpoint of RecCNN.", **options.UNCHECKED)],
    target: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The weight file to write.", **options.UNCHECKED)],
    overwrite: options.Overwrite = False,
) -> None:
    """Convert your own copy of the authors' released checkpoints, safely: arrays are read and nothing else."""
    from comdefend_cli import __version__
    from comdefend_cli.network.authors import convert_checkpoints
    from comdefend_cli.network.weight_file import save_weights

    refuse_tensor_file(target, overwrite=overwrite)
    model = convert_checkpoints(encoder, decoder)
    training = {"imported_from": [encoder.name, decoder.name], "comdefend_version": __version__}
    sha256 = save_weights(target, model, training, overwrite=overwrite)
    shape = model.architecture
    console.print_line(f"wrote {target} ({shape.channels} channel{'s' * (shape.channels > 1)}, {shape.bits} bits, SHA-256 {sha256})")
