#!/usr/bin/env python3
"""What purification does to colours and drawings, which are not what photographs are made of.

    python benchmarks/colors.py [--weights NAME|PATH ...] [--input-noise S] [--photographs DIR] [--save DIR]

For each weight file, with the noise that it is made for unless told otherwise:
flat fields, 64x64, of all colours of a 9x9x9 grid of the cube (33 levels of grey for grey weights): the largest mean error of a channel;
drawings that this script makes, none of which is in the training data: PSNR of each kind, mean and least;
images of 6x6 and 2x2 pixels of pure colours, likewise;
photographs: PSNR, and the mean shift of each channel over all of them, in levels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fidelity import folder
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from comdefend_cli.imaging.conversion import from_pillow
from comdefend_cli.imaging.writing import write_image
from comdefend_cli.inference.purifier import Purifier
from comdefend_cli.inference.settings import Settings
from comdefend_cli.network.metrics import TOP_PSNR, psnr
from comdefend_cli.network.registry import read_registry, read_weights_header

Color = tuple[int, int, int]
BLACK, WHITE, RED, GREEN, BLUE = (0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)
CYAN, YELLOW, NAVY, CREAM = (0, 255, 255), (255, 255, 0), (20, 40, 120), (250, 240, 200)
PAIRS = ((BLACK, WHITE), (WHITE, BLACK), (RED, BLUE), (NAVY, CREAM))
LEVELS = (0, 32, 64, 96, 128, 160, 191, 223, 255)
TEXT = (
    "The structure survives,",
    "the perturbation mostly",
    "does not. 0123456789 %",
    "if (x > 0) { return y[i]; }",
    "Black quartz",
)


def make_text(size: int, ink: Color, paper: Color) -> Image.Image:
    """Lines of text, as a screenshot has them."""
    image = Image.new("RGB", (192, 128), paper)
    pen = ImageDraw.Draw(image)
    for row in range(128 // (size + 4)):
        pen.text((4, 2 + row * (size + 4)), TEXT[row % len(TEXT)], fill=ink, font=ImageFont.load_default(size))
    return image


def make_lines(ink: Color, paper: Color, scale: int) -> Image.Image:
    """A fan of thin lines, and circles; smooth where `scale` is above 1."""
    image = Image.new("RGB", (160 * scale, 120 * scale), paper)
    pen = ImageDraw.Draw(image)
    for end in range(0, 161, 16):
        pen.line((0, 0, end * scale, 119 * scale), fill=ink, width=scale)
    for radius in range(10, 60, 12):
        box = ((100 - radius) * scale, (60 - radius) * scale, (100 + radius) * scale, (60 + radius) * scale)
        pen.ellipse(box, outline=ink, width=scale)
    return image.resize((160, 120), Image.Resampling.BOX)


def make_diagram() -> Image.Image:
    """Boxes in flat colours with arrows and labels."""
    image = Image.new("RGB", (200, 120), WHITE)
    pen = ImageDraw.Draw(image)
    for number, color in enumerate(((66, 133, 244), (234, 67, 53), (52, 168, 83))):
        left = 10 + number * 64
        pen.rectangle((left, 40, left + 48, 80), fill=color, outline=BLACK)
        pen.text((left + 6, 52), f"Box {number + 1}", fill=WHITE, font=ImageFont.load_default(12))
        if number < 2:
            pen.line((left + 48, 60, left + 64, 60), fill=BLACK)
    return image


def make_stripes(width: int, colors: tuple[Color, ...], *, upright: bool) -> Image.Image:
    """Stripes of pure colours."""
    place = np.arange(96) // width % len(colors)
    image = np.broadcast_to(np.array(colors, np.uint8)[place][None], (96, 96, 3))
    return Image.fromarray(np.ascontiguousarray(image if upright else image.swapaxes(0, 1)))


def make_chequers(cell: int, first: Color, second: Color) -> Image.Image:
    """A board of two colours."""
    rows, columns = np.mgrid[:96, :96] // cell
    return Image.fromarray(np.array([first, second], np.uint8)[(rows + columns) % 2])


def make_drawings() -> dict[str, list[Image.Image]]:
    """All of them, by kind."""
    rng = np.random.default_rng(15)
    pure = np.array([BLACK, WHITE, RED, GREEN, BLUE, CYAN, YELLOW, (255, 0, 255)], np.uint8)
    text = [make_text(size, *pair) for size, pair in product((10, 14, 20), PAIRS)]
    thirds = (RED, GREEN, BLUE)
    return {
        "text": text,
        "lines": [make_lines(*pair, scale) for pair, scale in product(PAIRS, (1, 4))],
        "diagram": [make_diagram()],
        "stripes": [make_stripes(width, thirds, upright=upright) for width, upright in product((1, 2, 4, 8), (True, False))],
        "chequers": [make_chequers(cell, *pair) for cell, pair in product((1, 2), (*PAIRS, (RED, CYAN), (YELLOW, BLUE)))],
        "one bit": [make_text(14, *PAIRS[0]).convert("1").convert("RGB"), make_lines(*PAIRS[0], 4).convert("1").convert("RGB")],
        "6x6": [Image.fromarray(rng.choice(pure, 3, replace=False)[rng.integers(0, 3, (6, 6))]) for _ in range(16)],
        "2x2": [Image.fromarray(rng.choice(pure, (2, 2))) for _ in range(16)],
    }


def to_batch(image: Image.Image, channels: int) -> Tensor:
    """Uint8 (1, channels, H, W)."""
    return (
        torch.from_numpy(np.array(image.convert("RGB" if channels == 3 else "L")))
        .reshape(image.height, image.width, -1)
        .permute(2, 0, 1)[None]
    )


def measure_fields(purifier: Purifier, channels: int) -> dict[str, Any]:
    """The largest mean error of a channel of flat fields, in levels, and whose it is."""
    colors = list(product(LEVELS, repeat=3)) if channels == 3 else [(8 * level - (level > 0),) for level in range(33)]
    fields = torch.tensor(colors, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 64, 64).contiguous()
    errors = torch.cat([(purifier.purify(part).float() - part).mean((2, 3)) for part in fields.split(81)])
    worst = int(errors.abs().amax(1).argmax())
    return {
        "n": len(colors),
        "largest": round(float(errors.abs().max()), 2),
        "of": colors[worst],
        "error": [round(value, 2) for value in errors[worst].tolist()],
        "mean": round(float(errors.abs().mean()), 2),
    }


def measure_drawings(purifier: Purifier, channels: int, keep: Callable[[str, Tensor], None]) -> dict[str, Any]:
    """PSNR in dB by kind, and over all images."""
    found: dict[str, list[float]] = {}
    for kind, images in make_drawings().items():
        for number, image in enumerate(images):
            clean = to_batch(image, channels)
            result = purifier.purify(clean)
            keep(f"{kind}-{number}", torch.cat([clean, result], 3))
            found.setdefault(kind, []).append(float(psnr(clean, result).clamp(max=TOP_PSNR)))
    values = [value for kind in found.values() for value in kind]
    by_kind = {kind: {"n": len(each), "mean": round(float(np.mean(each)), 2), "least": round(min(each), 2)} for kind, each in found.items()}
    return {"n": len(values), "mean": round(float(np.mean(values)), 2), "least": round(min(values), 2), "kinds": by_kind}


def measure_photographs(purifier: Purifier, batches: list[Tensor]) -> dict[str, Any]:
    """Mean PSNR in dB, and the mean of result minus original of each channel over all images, in levels."""
    decibels, shifts = [], []
    for batch in batches:
        result = purifier.purify(batch)
        decibels.append(float(psnr(batch, result).mean()))
        shifts.append((result.float() - batch).mean((0, 2, 3)))
    shift = torch.stack(shifts).mean(0).tolist()
    return {"n": len(batches), "psnr_db": round(float(np.mean(decibels)), 2), "shift": [round(value, 2) for value in shift]}


def main() -> None:
    """Measure, print a line a result, and all as JSON at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="*", default=sorted(read_registry()), help="names or files; default all that ship")
    parser.add_argument("--input-noise", type=float, help="in 8-bit levels; default: what the weights are made for")
    parser.add_argument("--photographs", type=Path, nargs="*", default=[], help="folders of photographs")
    parser.add_argument("--save", type=Path, help="a folder for the drawings, each beside what became of it")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name in arguments.weights:
        header, _, _ = read_weights_header(name)
        channels = header.architecture.channels
        purifier = Purifier.from_pretrained(name, device="cpu", precision="float32", settings=Settings(input_noise=arguments.input_noise))

        def keep(what: str, pair: Tensor, name: str = name) -> None:
            if arguments.save:
                arguments.save.mkdir(parents=True, exist_ok=True)
                image = Image.fromarray(pair[0].permute(1, 2, 0).squeeze(2).numpy())
                write_image(arguments.save / f"{Path(name).stem}-{what.replace(' ', '-')}.png", from_pillow(image), overwrite=True)

        found = {"fields": measure_fields(purifier, channels), "drawings": measure_drawings(purifier, channels, keep)}
        for path in arguments.photographs:
            found[path.name] = measure_photographs(purifier, folder(path, channels))
        results[name] = {"input_noise": purifier.input_noise(channels), **found}
        print(name, json.dumps(results[name]), flush=True)
    print(json.dumps({"results": results, "torch": torch.__version__, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
