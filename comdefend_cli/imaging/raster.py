"""An image in memory as it is purified."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Raster:
    """A decoded image, turned upright.

    Attributes:
        pixels: uint8 (H, W, C), C = 1 (grey) or 3 (RGB).
        alpha: uint8 (H, W) or None.
        icc: ICC profile of the pixels, or None.
        exif: EXIF block without orientation, or None.
        xmp: XMP packet without orientation, UTF-8, or None.
        iptc: IPTC records, or None.
        source: the format it was read from, as Pillow names it, or "".
        notices: what was changed in reading, one sentence each.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    source: str = ""
    notices: list[str] = field(default_factory=list)

    @property
    def gray(self) -> bool:
        """Whether the image has one channel."""
        return bool(self.pixels.shape[2] == 1)

    @property
    def megapixels(self) -> float:
        """Height times width, in millions."""
        return float(self.pixels.shape[0] * self.pixels.shape[1]) / 1e6

    def to_pillow(self) -> Image.Image:
        """L, LA, RGB or RGBA, with ICC profile, EXIF and XMP in `info`."""
        pixels = self.pixels[..., 0] if self.gray else self.pixels
        image = Image.fromarray(np.ascontiguousarray(pixels))
        if self.alpha is not None:
            image.putalpha(Image.fromarray(self.alpha))
        image.info.update({key: value for key, value in (("icc_profile", self.icc), ("exif", self.exif), ("xmp", self.xmp)) if value})
        return image
