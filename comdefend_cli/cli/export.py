"""`comdefend export OUT` and `comdefend quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from comdefend_cli.cli import console, options, progress
from comdefend_cli.cli.console import notice
from comdefend_cli.cli.origin import load_told
from comdefend_cli.cli.preparation import fetch_dataset, refuse_tensor_file
from comdefend_cli.errors import UsageError
from comdefend_cli.runtime.extras import require

if TYPE_CHECKING:
    from torch import Tensor

    from comdefend_cli.backends.export import Exported
    from comdefend_cli.network.weight_file import Weights

#: Pixels a side that are compared: the networks take them at once, of which more would fill the memory.
SIDE = 512


@console.command
def export(
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write: .onnx, .xml or .pt2.", **options.UNCHECKED)],
    format: Annotated[str, typer.Option("--format", metavar="onnx|openvino|torch-export", help="What to write.")],
    weights: options.ColorWeights = None,
    precision: Annotated[
        str, typer.Option("--precision", metavar="NAME", help="Number format: float32, or int8 with weights of `comdefend quantize`.")
    ] = "float32",
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
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write weights for other software, after comparing its output with PyTorch's.

    The file takes an image, float32 (N, channels, H, W) in [0, 1] of any size, and returns the purified one likewise. Noise that
    the weights are made for is not in it: add it to the image, as a note says. openvino writes two files, OUT.xml and OUT.bin.
    """
    from comdefend_cli.backends import export as exports
    from comdefend_cli.network.registry import DEFAULT_COLOR
    from comdefend_cli.runtime.files import refuse_existing, refuse_unwritable_folder
    from comdefend_cli.runtime.machine import limit_threads

    if precision not in exports.LEAST:
        raise UsageError(f"unknown precision {precision!r}: use {' or '.join(exports.LEAST)}")
    refuse_existing(target, overwrite=overwrite)
    refuse_unwritable_folder(target)
    limit_threads()
    loaded = load_told(weights or DEFAULT_COLOR, quiet=quiet)
    images = [_read(path, loaded.header.architecture.channels) for path in check or ()]
    done = exports.export(loaded, format, target, images=images, int8=precision == "int8", overwrite=overwrite)
    _tell(done, loaded, "images" if check else "made images", as_json=as_json, quiet=quiet)


def _read(path: Path, channels: int) -> Tensor:
    """The middle of an image, uint8 (1, channels, H, W); grey ones are repeated for networks for colour."""
    import torch

    from comdefend_cli.imaging.reading import prepare_pillow, read_image

    prepare_pillow()
    pixels = torch.from_numpy(read_image(path).pixels).permute(2, 0, 1)[None]
    if pixels.shape[1] > channels:
        raise UsageError(f"{path}: is in colour, and the weights are for grey images: check on another")
    top, left = (max(0, (side - SIDE) // 2) for side in pixels.shape[2:])
    return pixels[:, :, top : top + SIDE, left : left + SIDE].expand(-1, channels, -1, -1).contiguous()


def _tell(done: Exported, loaded: Weights, compared: str, *, as_json: bool, quiet: bool) -> None:
    """What was written, how near it is, and the noise that its user has to add."""
    names = [str(path) for path in done.paths]
    psnr_db = done.psnr_db if done.psnr_db < float("inf") else None
    noise = loaded.header.input_noise
    if as_json:
        fidelity = {"psnr_db": psnr_db, "pictures": done.images}
        console.print_json({"written": names, **fidelity, "input_noise": noise, "weights_sha256": loaded.sha256})
    elif not quiet:
        near = "the same levels as" if psnr_db is None else f"at least {psnr_db:.1f} dB to"
        console.print_line(f"wrote {' and '.join(names)}: {near} PyTorch's float32 output on {done.images} {compared}")
    if noise:
        said = f"Gaussian noise of standard deviation {noise:g}/255, clipped to [0, 1] with the image"
        notice(f"these networks are made for images with noise, which the file does not add: give it {said}", quiet=quiet or as_json)


@console.command
def quantize(
    data: options.Data,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The weight file to write, .safetensors.", **options.UNCHECKED)],
    data_dir: options.DataDir = Path("data"),
    weights: options.ColorWeights = None,
    count: Annotated[
        int, typer.Option("--pictures", min=1, help="Crops that the ranges of the activations are taken from; large images are best.")
    ] = 64,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the choice of crops.")] = 0,
    no_download: options.NoDownload = False,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Add networks of 8-bit integers to weights, for --backend openvino: nearly twice as fast as bfloat16, a little less exact.

    The new file holds the old networks too, and serves everywhere the old one did.
    """
    from comdefend_cli.backends import quantize as quantizing
    from comdefend_cli.data.calibration import draw_calibration_images
    from comdefend_cli.network.registry import DEFAULT_COLOR
    from comdefend_cli.network.weight_file import save_weights
    from comdefend_cli.runtime.machine import limit_threads

    refuse_tensor_file(out, overwrite=overwrite)
    for module in ("openvino", "nncf"):  # Before the data, which may have to be downloaded.
        require(module, extra="int8")
    limit_threads()
    loaded = load_told(weights or DEFAULT_COLOR, quiet=quiet)
    dataset = fetch_dataset(data, data_dir, download=not no_download, quiet=quiet)
    crops = draw_calibration_images(dataset, count, seed)
    with progress.show_spinner("quantizing, which takes a minute or so", quiet=quiet):
        quantized = quantizing.quantize(loaded.model, crops)
    about = {"data": dataset.name, "pictures": count, "side": crops.shape[-1], "seed": seed, "from_sha256": loaded.sha256}
    training = {**loaded.header.training, "quantized": about}
    sha256 = save_weights(out, loaded.model, training, quantized=quantized, overwrite=overwrite)
    notice(f"wrote {out} (SHA-256 {sha256})", quiet=quiet)
