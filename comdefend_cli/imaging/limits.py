"""How large an image may be, read and written. Imports nothing large: the command line reads the default for its help."""

from __future__ import annotations

from comdefend_cli.errors import ImageError

#: Largest image that is decoded unless asked otherwise; a small file can claim any size.
MAX_MEGAPIXELS = 512
#: Longest side in pixels of formats that hold less than 2**31.
MAX_SIDE = {"WEBP": 16383, "JPEG": 65500, **dict.fromkeys(("GIF", "TGA", "PCX", "SGI", "AVIF"), 65535)}


def refuse_megapixels(name: str, width: int, height: int, max_megapixels: float) -> None:
    """Raise :class:`ImageError` when an image that errors call `name` has no pixels, or more than are to be decoded."""
    if width < 1 or height < 1:
        raise ImageError(f"{name}: has no pixels ({width}x{height}); nothing to purify")
    if width * height > max_megapixels * 1e6:
        raise ImageError(
            f"{name}: {width}x{height} is {width * height / 1e6:.0f} megapixels, over the limit of {max_megapixels:g}; "
            "raise it with --max-megapixels if you trust the file"
        )


def refuse_sides(format_name: str, width: int, height: int) -> None:
    """Raise :class:`ImageError` when a format has no place for so many pixels a side."""
    if max(height, width) > MAX_SIDE.get(format_name, 2**31 - 1):
        raise ImageError(f"{format_name} holds at most {MAX_SIDE[format_name]} pixels a side, not {width}x{height}; write .png or .tiff")
