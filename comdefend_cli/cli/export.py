"""`comdefend export OUT` and `comdefend quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comdefend_cli.cli import console, options
from comdefend_cli.cli.console import notice
from comdefend_cli.errors import UsageError
from comdefend_cli.runtime.extras import require

if TYPE_CHECKING:
    from torch import Tensor

#: Pixels a side that are compared: the networks take them at once, of which more would fill the memory.
SIDE = 512

Precision = Annotated[str, typer.Option("--precision", metavar="NAME", help="float32, or int8 with weights of `comdefend quantize`.")]


@console.command
def export(
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file: .onnx, .xml or .pt2.", **options.UNCHECKED)],
    format: Annotated[str, typer.Option("--format", metavar="onnx|openvino|torch-export", help="What to write.")],
    weights: options.ColorWeights = None,
    precision: Precision = "float32",
    check: Annotated[
        list[Path] | None,
        typer.Option(
            "--check",
            metavar="IMAGE",
            help=f"Compare on the middle {SIDE}x{SIDE} pixels of this image; may be given often. Default: made ones.",
            **options.UNCHECKED,
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON record of what was written.")] = False,
) -> None:
    """Write weights for other software, after comparing its output with PyTorch's.

    The file takes an image, float32 (N, channels, H, W) in [0, 1] of any size, and returns the purified one likewise. Noise that
    the weights are made for is not in it: add it to the image, as a note says. openvino writes two files, OUT.xml and OUT.bin.
    """
    from comdefend_cli.backends import export as exports
    from comdefend_cli.network.registry import DEFAULT_COLOR, load_weights
    from comdefend_cli.runtime.files import refuse_existing, refuse_unwritable_folder
    from comdefend_cli.runtime.machine import limit_threads

    if precision not in exports.LEAST:
        raise UsageError(f"unknown precision {precision!r}: use {' or '.join(exports.LEAST)}")
    refuse_existing(target, overwrite=overwrite)
    refuse_unwritable_folder(target)
    limit_threads()
    loaded = load_weights(weights or DEFAULT_COLOR)
    images = [_read(path, loaded.header.architecture.channels) for path in check or ()]
    done = exports.export(loaded, format, target, images=images, int8=precision == "int8", overwrite=overwrite)
    names = [str(path) for path in done.paths]
    noise = loaded.header.input_noise
    if as_json:
        fidelity = {"psnr_db": _finite(done.psnr_db), "pictures": done.images}
        console.print_json({"written": names, **fidelity, "input_noise": noise, "weights_sha256": loaded.sha256})
    else:
        near = "the same levels as" if _finite(done.psnr_db) is None else f"at least {done.psnr_db:.1f} dB to"
        console.print_line(
            f"wrote {' and '.join(names)}: {near} PyTorch's float32 output on {done.images} {'images' if check else 'made images'}"
        )
    if noise:
        said = f"Gaussian noise of standard deviation {noise:g}/255, clipped to [0, 1] with the image"
        notice(f"these networks are made for images with noise, which the file does not add: give it {said}", quiet=as_json)


@console.command
def quantize(
    data: Annotated[
        str,
        typer.Option("--data", metavar="NAME|DIR", help="cifar10, fashion-mnist, mnist, or a folder of clean images, larger is better."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The weight file to write, .safetensors.", **options.UNCHECKED)],
    data_dir: Annotated[
        Path, typer.Option("--data-dir", help="Where the official files of NAME are, or go when they are downloaded.")
    ] = Path("data"),
    weights: options.ColorWeights = None,
    count: Annotated[int, typer.Option("--pictures", min=1, help="Crops that the ranges of the activations are taken from.")] = 64,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the choice of crops.")] = 0,
    no_download: options.NoDownload = False,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Add networks of 8-bit integers to weights, for --backend openvino: nearly twice as fast as bfloat16, a little less exact.

    The new file holds the old networks too, and serves everywhere the old one did.
    """
    from comdefend_cli.backends import quantize as quantizing
    from comdefend_cli.cli.train import download_bar, tell_skipped
    from comdefend_cli.data.calibration import draw_calibration_images
    from comdefend_cli.data.datasets import load_dataset
    from comdefend_cli.imaging.reading import lift_pillow_limit
    from comdefend_cli.network.registry import DEFAULT_COLOR, load_weights
    from comdefend_cli.network.weight_file import save_weights
    from comdefend_cli.runtime.files import refuse_existing, refuse_unwritable_folder
    from comdefend_cli.runtime.machine import limit_threads

    if out.suffix != ".safetensors":
        raise UsageError(f"{out}: a weight file ends in .safetensors")
    refuse_existing(out, overwrite=overwrite)
    refuse_unwritable_folder(out)
    for module in ("openvino", "nncf"):  # Before the data, which may have to be downloaded.
        require(module, extra="int8")
    lift_pillow_limit()
    limit_threads()
    loaded = load_weights(weights or DEFAULT_COLOR)
    with download_bar(quiet) as progress:
        dataset = load_dataset(data, data_dir, download=not no_download, progress=progress)
    tell_skipped(dataset, data, quiet)
    chosen = draw_calibration_images(dataset, count, seed)
    notice("quantizing, which takes a minute or so", quiet=quiet)
    made = quantizing.quantize(loaded.model, chosen)
    about: dict[str, Any] = {
        "data": dataset.name,
        "pictures": count,
        "side": chosen.shape[-1],
        "seed": seed,
        "from_sha256": loaded.sha256,
    }
    training = {**loaded.header.training, "quantized": about}
    sha256 = save_weights(out, loaded.model, training, quantized=made, overwrite=overwrite)
    notice(f"wrote {out} (SHA-256 {sha256})", quiet=quiet)


def _read(path: Path, channels: int) -> Tensor:
    """The middle of an image, uint8 (1, channels, H, W); grey ones are repeated for networks for colour."""
    import torch

    from comdefend_cli.imaging.reading import read_image

    pixels = torch.from_numpy(read_image(path).pixels).permute(2, 0, 1)[None]
    if pixels.shape[1] > channels:
        raise UsageError(f"{path}: is in colour, and the weights are for grey images: check on another")
    top, left = (max(0, (side - SIDE) // 2) for side in pixels.shape[2:])
    return pixels[:, :, top : top + SIDE, left : left + SIDE].expand(-1, channels, -1, -1).contiguous()


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None
