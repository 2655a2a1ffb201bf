"""What places tell of the files in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from comdefend_cli.errors import ImageError, explain


class Stamp(Protocol):
    """What tells a file's versions apart: size in bytes and time of change in nanoseconds, or what stands for that."""

    @property
    def st_size(self) -> int:
        """Bytes."""

    @property
    def st_mtime_ns(self) -> int:
        """Nanoseconds, or a number made of the store's own mark of the version."""


@dataclass
class Found:
    """What going through a place found; names are paths below it, with forward slashes.

    Attributes:
        names: files that were looked for, sorted within each folder.
        skipped: number of other files, hidden ones not counted.
        subfolders: number of subfolders left out because only the upper level was wanted.
        unreadable: subfolders that could not be listed, with the reason.
        linked: device and inode of those of `names` that are symbolic links.
    """

    names: list[str] = field(default_factory=list)
    skipped: int = 0
    subfolders: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    linked: set[tuple[int, int]] = field(default_factory=set)


def make_read_error(name: object, error: OSError) -> ImageError:
    """The error to raise where a file of a place could not be read."""
    return ImageError(f"{name}: cannot read: {explain(error)}; name an image that is there and that you may read")
