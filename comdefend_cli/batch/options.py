"""How a folder is gone through and its outputs are written, as it was asked for."""

from __future__ import annotations

from dataclasses import dataclass

from comdefend_cli.errors import UsageError
from comdefend_cli.imaging.limits import MAX_MEGAPIXELS


@dataclass(frozen=True)
class Options:
    """How a folder is gone through and its outputs are written.

    Attributes:
        recursive: also go through subfolders, which the output folder then mirrors.
        format: "png", "jpg" and so on for all outputs, or None to keep each file's own.
        quality: 1 to 100 of lossy formats, or None for the default.
        strip: leave ICC profile and EXIF out.
        overwrite: do all again, and replace files that are not ours.
        max_megapixels: refuse larger images.
        on_collision: "error" where two outputs would have one name, or "number" to number the later one.

    Raises:
        UsageError: a format that cannot be written, or that has no quality where one is given; another `on_collision`.
    """

    recursive: bool = False
    format: str | None = None
    quality: int | None = None
    strip: bool = False
    overwrite: bool = False
    max_megapixels: float = MAX_MEGAPIXELS
    on_collision: str = "error"

    def __post_init__(self) -> None:
        if self.on_collision not in ("error", "number"):
            raise UsageError(f"--on-collision {self.on_collision}: use error or number")
        if self.ending is None:
            return
        from comdefend_cli.imaging.formats import list_suffixes, refuse_quality  # Imports Pillow.

        able = list_suffixes(writable=True)
        if self.ending not in able:
            raise UsageError(f"cannot write images of the format {self.format!r}; use png, jpg, webp, tiff or bmp")
        refuse_quality(able[self.ending], self.quality)

    @property
    def ending(self) -> str | None:
        """The ending that `format` asks for, ".png" say."""
        return None if self.format is None else f".{self.format.lower().lstrip('.')}"
