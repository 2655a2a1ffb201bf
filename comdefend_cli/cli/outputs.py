"""What `comdefend purify` writes: refused before the work, written after it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from comdefend_cli.cli import console
from comdefend_cli.cli.console import notice
from comdefend_cli.cli.naming import STANDARD
from comdefend_cli.errors import UsageError

if TYPE_CHECKING:
    from comdefend_cli.batch.options import Options
    from comdefend_cli.cli.naming import Pair
    from comdefend_cli.imaging.raster import Raster


@dataclass(frozen=True)
class Output:
    """What is to be written, and how, as the options say; `wanted` is the format that was asked for."""

    target: Path
    wanted: str | None
    compare: Path | None
    quality: int | None
    strip: bool
    overwrite: bool

    @classmethod
    def of(cls, pair: Pair, chosen: Options, compare: Path | None) -> Output:
        """That of an image; a format that was asked for has gone into a target's name that the person did not choose."""
        return cls(pair.target, chosen.format if pair.named else None, compare, chosen.quality, chosen.strip, chosen.overwrite)

    @property
    def format(self) -> str:
        """Pillow's name of OUT's format."""
        from comdefend_cli.imaging.formats import find_format

        if self.target == STANDARD:
            return find_format(Path(f"standard-output.{(self.wanted or 'png').lstrip('.')}"))
        if self.wanted is not None:
            raise UsageError("--format is for standard output; a file's format is its ending's")
        return find_format(self.target)

    def refuse(self, source: Path, *, make_folder: bool) -> None:
        """Find out before the work what would fail after it; make the folder of several outputs."""
        from comdefend_cli.imaging.formats import find_format, refuse_quality
        from comdefend_cli.runtime.files import refuse_existing, refuse_unwritable_folder

        if self.compare is not None:
            for path, name in ((source, "IN"), (self.target, "OUT")):
                if self.compare.resolve() == path.resolve():
                    raise UsageError(f"{self.compare}: is {name} too; give --compare another file")
        if self.target == STANDARD:
            console.refuse_closed_out()
        for output in (self.target, self.compare):
            if output is not None and output != STANDARD:
                refuse_existing(output, overwrite=self.overwrite)
                find_format(output)
                if make_folder:
                    _make_folder(output.parent)
                refuse_unwritable_folder(output)
        refuse_quality(self.format, self.quality)  # Also what is wrong with `wanted`.

    def write(self, cleaned: Raster, quiet: bool) -> None:
        """Write OUT; its format may change it again."""
        from comdefend_cli.imaging.formats import LOSSY
        from comdefend_cli.imaging.writing import encode_image
        from comdefend_cli.runtime.files import write_atomically

        if self.format in LOSSY:
            notice(f"{LOSSY[self.format]} changes the purified pixels again; write .png to keep them exactly", quiet=quiet)
        data = encode_image(cleaned, self.format, quality=self.quality, strip=self.strip)
        if self.target == STANDARD:
            console.write_out(data)
        else:
            write_atomically(self.target, data, overwrite=self.overwrite)


def _make_folder(folder: Path) -> None:
    from comdefend_cli.runtime.files import make_write_error

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise make_write_error(str(folder), error, "cannot make this folder") from error
