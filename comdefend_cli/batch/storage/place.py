"""From a path or URL, as it is given on the command line, to the place that it names.

All places have the methods of :class:`Folder` and :class:`Url`. Names of files are paths below the place, with forward slashes.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from comdefend_cli.batch.storage.folder import Folder
from comdefend_cli.batch.storage.url import Url
from comdefend_cli.errors import UsageError

Place = Folder | Url


def open_place(where: str | Path) -> Place:
    """The place that a path or URL names; "file:///" and "local:///" are paths.

    Raises:
        UsageError: as :class:`Url`, or a path of another machine.
    """
    if not is_url(where):
        return Folder(Path(where))
    protocol, _, rest = str(where).partition("://")
    if protocol.lower() not in ("file", "local"):
        return Url(str(where))
    machine, _, path = rest.partition("/")
    if machine not in ("", "localhost"):
        raise UsageError(f"{where}: names a machine, {machine}; a path of this one begins {protocol}:///")
    return Folder(Path(unquote(f"/{path}")))


def is_url(where: str | Path) -> bool:
    """Whether it has a protocol in front, as "s3://bucket"."""
    return "://" in str(where)


def choose_output(source: str) -> str:
    """`DIR-purified`, beside DIR; of a URL too.

    Raises:
        UsageError: DIR has no name, as "/"; a URL names no more than a bucket.
    """
    if is_url(source):
        if not source.partition("://")[2].strip("/").partition("/")[2]:
            raise UsageError(f"{source}: names no folder to make the output's name of; give --out")
        return f"{source.rstrip('/')}-purified"
    folder = Path(source)
    named = folder if folder.name not in ("", "..") else folder.resolve()
    if not named.name:
        raise UsageError(f"{folder}: has no name to make the output folder's of; give --out")
    return str(named.with_name(f"{named.name}-purified"))
