"""`comdefend weights list|show|verify|import`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from comdefend_cli.cli import console

app = typer.Typer(help="The weight files that ship, and yours: list, show, verify, import.", no_args_is_help=True)
Which = Annotated[str, typer.Argument(metavar="NAME|PATH", help="A name that `comdefend weights list` prints, or a weight file.")]


@app.command("list")
@console.command
def list_() -> None:
    """List the weights that ship."""
    from comdefend_cli import weights

    table = Table("name", "channels", "bits", "PSNR dB", "about")
    for name, entry in weights.registry().items():
        header, _, _ = weights.read_header(name)
        shape, psnr = header.architecture, header.training.get("psnr_db")
        table.add_row(name, str(shape.channels), str(shape.bits), f"{psnr:.2f}" if psnr else "-", entry["about"])
    console.out.print(table)


@app.command()
@console.command
def show(which: Which) -> None:
    """Print a weight file's header, with its PSNR in dB and its SHA-256, as JSON."""
    from comdefend_cli import weights

    header, sha256, path = weights.read_header(which)
    typer.echo(json.dumps({"file": str(path), "sha256": sha256, **asdict(header)}, indent=2))


@app.command()
@console.command
def verify(which: Annotated[str | None, typer.Argument(metavar="[NAME|PATH]", help="Default: all that ship.")] = None) -> None:
    """Load weights completely: hash (of those that ship), header, shapes, finite values."""
    from comdefend_cli import weights

    for name in [which] if which else list(weights.registry()):
        loaded = weights.load(name)
        console.out.print(f"ok {name} {loaded.sha256}")


@app.command("import")
@console.command
def import_(
    encoder: Annotated[Path, typer.Argument(metavar="ENC.npy", help="The authors' checkpoint of ComCNN.")],
    decoder: Annotated[Path, typer.Argument(metavar="DEC.npy", help="The authors' checkpoint of RecCNN.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The weight file to write.")],
    overwrite: console.Overwrite = False,
) -> None:
    """Convert your own copy of the authors' released checkpoints, safely: arrays are read and nothing else."""
    from comdefend_cli import files, weights
    from comdefend_cli.authors import convert, read_checkpoint

    files.refuse_existing(target, overwrite=overwrite)
    model = convert(read_checkpoint(encoder), read_checkpoint(decoder))
    sha256 = weights.save(target, model, {"imported_from": [encoder.name, decoder.name]}, overwrite=overwrite)
    console.out.print(f"wrote {target} ({model.architecture.channels} channels, {model.architecture.bits} bits, SHA-256 {sha256})")
