#!/usr/bin/env python3
"""The paper's figure 3: what noise in training does for the rounded code.

    python benchmarks/paper/figure3.py --data-dir DATA --out FOLDER [--steps N] [--batch-size N] [--shown N] [--images N]

Trains ComDefend on CIFAR-10 twice for a small budget, without noise and with noise of standard deviation 20, and shows originals,
codes and reconstructions: (a) without noise, the code not rounded; (b) without noise, rounded; (c) with noise, rounded. Weights that
FOLDER/figure3 holds are not trained again. Writes FOLDER/figure3.png, figure3.md and figure3.json.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from measuring import hardware, make_folder, write
from options import parser, run
from PIL import Image, ImageDraw, ImageFont
from published import FIGURE3_CAPTION
from side_by_side import grid
from torch import Tensor
from training import trained

from comdefend_cli.data.datasets import load_dataset
from comdefend_cli.errors import UsageError
from comdefend_cli.inference.compare import draw_code
from comdefend_cli.network.metrics import mean_psnr
from comdefend_cli.network.model import ComDefend
from comdefend_cli.runtime.device import resolve_device
from comdefend_cli.runtime.files import write_atomically
from comdefend_cli.training.config import TrainConfig
from comdefend_cli.training.loop import resolve_training_precision

NOISE = 20.0
#: How many times each pixel is repeated; pixels between cells, between panels, and of a line of text.
ZOOM, GAP, SPACE, TEXT = 3, 4, 24, 24
INK = (28, 33, 39)


@torch.no_grad()
def rebuilt(model: ComDefend, pixels: Tensor, *, rounded: bool) -> tuple[Tensor, Tensor]:
    """Code, float32 (N, bits, H, W) in [0, 1], and reconstruction, uint8 (N, C, H, W), of images, uint8 (N, C, H, W)."""
    codes, results = [], []
    device = next(model.parameters()).device
    for part in torch.split(pixels, 128):
        code = torch.sigmoid(model.com(part.to(device).float() / 255).float())
        code = (code > 0.5).float() if rounded else code
        codes.append(code.cpu())
        results.append((model.rec(code) * 255).round().byte().cpu())
    return torch.cat(codes), torch.cat(results)


def panel(pixels: Tensor, code: Tensor, result: Tensor, title: str, note: str) -> Image.Image:
    """Rows of originals, codes and reconstructions under a title; one column an image."""
    channels = pixels.shape[1]
    before, bits, after = (each.permute(0, 2, 3, 1).numpy() for each in (pixels, code, result))
    rows = [list(before), [draw_code(each, channels) for each in bits], list(after)]
    height, width = (ZOOM * side + GAP for side in pixels.shape[2:])
    image = Image.new("RGB", (width * len(pixels), 3 * height + 2 * TEXT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    draw.text((0, TEXT - 6), title, INK, font, anchor="ls")
    for row, cells in enumerate(rows):
        for column, cell in enumerate(cells):
            large = Image.fromarray(np.ascontiguousarray(cell)).resize((width - GAP, height - GAP), Image.Resampling.NEAREST)
            image.paste(large, (column * width, TEXT + row * height))
    draw.text((0, image.height - 6), note, INK, font, anchor="ls")
    return image


def abreast(panels: Sequence[Image.Image]) -> Image.Image:
    """Panels beside each other on white."""
    size = sum(each.width + SPACE for each in panels) + SPACE, max(each.height for each in panels) + SPACE
    image, left = Image.new("RGB", size, "white"), SPACE
    for each in panels:
        image.paste(each, (left, SPACE // 2))
        left += each.width + SPACE
    return image


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is absent, draw, write."""
    made = parser(__doc__)
    made.add_argument("--data-dir", type=Path, required=True, help="official files of CIFAR-10")
    made.add_argument("--steps", type=int, default=800, help="of training, each; default 800")
    made.add_argument("--batch-size", type=int, default=8, help="images a step; default 8")
    made.add_argument("--shown", type=int, default=4, help="test images that are shown; default 4")
    made.add_argument("--images", type=int, default=200, help="test images that PSNR is measured on; default 200")
    arguments = made.parse_args(argv)
    if not 1 <= arguments.shown <= arguments.images:
        raise UsageError("--shown must be at least 1 and at most --images")
    make_folder(arguments.out / "figure3")
    dataset = load_dataset("cifar10", arguments.data_dir, download=False)
    device = resolve_device(arguments.device)
    precision = resolve_training_precision(arguments.precision, device)
    models = {}
    for noise in (0.0, NOISE):
        config = TrainConfig(dataset.name, arguments.steps, arguments.batch_size, arguments.seed, noise_std=noise, precision=precision)
        models[noise] = trained(config, dataset, arguments.device, arguments.out / "figure3").model.to(device)
    pixels = dataset.test.pixels[: arguments.images]
    panels, rows, records = [], [], []
    for name, noise, rounded in (("(a)", 0.0, False), ("(b)", 0.0, True), ("(c)", NOISE, True), ("", NOISE, False)):
        code, result = rebuilt(models[noise], pixels, rounded=rounded)
        decibels = mean_psnr(pixels, result)
        trained_how = f"noise of {noise:g} in training" if noise else "no noise in training"
        code_how = "rounded" if rounded else "not rounded"
        gray = float(((code > 0.1) & (code < 0.9)).float().mean())
        rows.append([name or "not in the figure", trained_how, code_how, f"{decibels:.2f}", f"{100 * gray:.1f}"])
        records.append({"panel": name, "noise_std": noise, "rounded": rounded, "psnr_db": round(decibels, 3), "grey_share": round(gray, 4)})
        if name:
            first = slice(arguments.shown)
            title, note = f"{name} {trained_how}", f"code {code_how}, {decibels:.1f} dB"
            panels.append(panel(pixels[first], code[first], result[first], title, note))
    file = io.BytesIO()
    abreast(panels).save(file, "PNG", optimize=True)
    write_atomically(arguments.out / "figure3.png", file.getvalue(), overwrite=True)
    about = (
        f"{arguments.steps} steps of {arguments.batch_size} images each, one seed; mean PSNR in dB over {len(pixels)} test images of "
        f"CIFAR-10; “grey” is the share of code values between 0.1 and 0.9, in %. {hardware(arguments.device)}, torch {torch.__version__}."
    )
    claim = "The paper says that the reconstructed quality in (c) is the same as in (a)."
    head = ["panel", "training", "code", "measured dB", "grey"]
    parts = ["### Figure 3", f"The paper's: “{FIGURE3_CAPTION}”", grid(head, rows), claim, about, arguments.note]
    text = "\n\n".join(part for part in parts if part) + "\n"
    print(text)
    write(arguments.out / "figure3", text, {"figure": 3, "panels": records, "about": about, "note": arguments.note})


if __name__ == "__main__":
    run(main)
