#!/usr/bin/env python3
"""What the weights that ship make of a face, text, sky and a grey photograph, side by side.

    python benchmarks/gallery.py --out docs/pictures/gallery.png

A row an image of scikit-image's, a column a weight file; grey images go through the weights for grey, colour ones through those for colour.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import skimage
from PIL import Image, ImageDraw, ImageFont

from comdefend_cli.imaging.conversion import from_pillow
from comdefend_cli.imaging.reading import read_image
from comdefend_cli.imaging.writing import write_image
from comdefend_cli.inference.purifier import Purifier

#: File, and the top left corner of what is shown of it.
PARTS = {"face": ("astronaut.png", 20, 150), "text": ("page.png", 20, 40), "sky": ("rocket.jpg", 60, 260), "grey": ("camera.png", 60, 180)}
SIDE, HEAD = 160, 18
COLOR = ("comdefend-fast", "comdefend-fast-cifar10", "comdefend-12bit-denoise", "comdefend-12bit")
GRAY = ("comdefend-fast-gray", "comdefend-4bit-gray")


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the image to write, replaced if it is there")
    arguments = parser.parse_args()
    purifiers = {name: Purifier.from_pretrained(name, device="cpu", precision="float32") for name in (*COLOR, *GRAY)}
    sheet = Image.new("RGB", ((1 + len(COLOR)) * SIDE, len(PARTS) * (SIDE + HEAD)), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for row, (title, (file, top, left)) in enumerate(PARTS.items()):
        pixels = read_image(Path(skimage.__file__).parent / "data" / file).pixels[top : top + SIDE, left : left + SIDE]
        names = COLOR if pixels.shape[2] == 3 else GRAY
        shown = [(title, pixels), *((name, purifiers[name](np.ascontiguousarray(pixels))) for name in names)]
        for column, (name, image) in enumerate(shown):
            place = column * SIDE, row * (SIDE + HEAD)
            pen.text((place[0] + 3, place[1] + 2), name, fill=(0, 0, 0), font=ImageFont.load_default(12))
            sheet.paste(Image.fromarray(np.broadcast_to(image, (*image.shape[:2], 3))), (place[0], place[1] + HEAD))
    write_image(arguments.out, from_pillow(sheet), overwrite=True)


if __name__ == "__main__":
    main()
