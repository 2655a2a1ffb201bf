"""The official files of data sets: their addresses and checksums, and fetching them."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from comdefend_cli.errors import ComdefendError, DatasetError, explain
from comdefend_cli.runtime.files import open_atomically

#: Called with bytes done and bytes in all (0 when the server does not say).
DownloadProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Archive:
    """A file on an official server.

    Attributes:
        url: where it is.
        md5: its checksum, as the data set's authors publish it.
        sha256: a stronger one, of a file with that MD5 checksum.
    """

    url: str
    md5: str
    sha256: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[1]


#: MD5 checksums: https://www.cs.toronto.edu/~kriz/cifar.html and https://github.com/zalandoresearch/fashion-mnist;
#: MNIST's are those of the four files on its mirror, as torchvision lists them. SHA-256: as TensorFlow Datasets lists them.
ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "cifar10": (
        Archive(
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "c32a1d4ab5d03f1284b67883e8d87530",
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    ),
    "fashion-mnist": tuple(
        Archive(f"https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/{name}", *checksums)
        for name, *checksums in (
            (
                "train-images-idx3-ubyte.gz",
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            ),
            (
                "train-labels-idx1-ubyte.gz",
                "25c81989df183df01b3e8a0aad5dffbe",
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            ),
            (
                "t10k-images-idx3-ubyte.gz",
                "bef4ecab320f06d8554ea6380940ec79",
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            ),
            (
                "t10k-labels-idx1-ubyte.gz",
                "bb300cfdad3c16e7a12a480ee83cd310",
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
        )
    ),
    "mnist": tuple(
        Archive(f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}", *checksums)
        for name, *checksums in (
            (
                "train-images-idx3-ubyte.gz",
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            ),
            (
                "train-labels-idx1-ubyte.gz",
                "d53e105ee54ea40749a09fcbcd1e9432",
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            ),
            (
                "t10k-images-idx3-ubyte.gz",
                "9fb629c4189551a2d022fa330f9573f3",
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            ),
            (
                "t10k-labels-idx1-ubyte.gz",
                "ec29112dd5afa0611ce80d1b7f02629c",
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            ),
        )
    ),
}
#: Guards against files that are more than a data set's can be: CIFAR-10's archive takes 170 MB, a batch in it 31 MB; MNIST's
#: largest file 47 MB, unpacked.
MAX_DOWNLOAD = 2**28
MAX_FILE = 2**26
#: Seconds a server may keep silent.
TIMEOUT = 30.0


def obtain_archive(
    name: str, archive: Archive, paths: list[Path], folder: Path, what: str, download_absent: bool, progress: DownloadProgress | None
) -> Path:
    """The first of `paths` that exists, or the first of all after downloading the official file there."""
    for path in paths:
        if path.exists():
            return path
    target = paths[0]
    remedy = f"download {archive.url} yourself and put it into {target.parent}, or point --data-dir at a folder that holds {what}"
    if not download_absent:
        raise DatasetError(f"{name} is not in {folder}: {remedy}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        download_archive(archive, target, progress)
    except (ComdefendError, OSError) as error:
        raise DatasetError(f"{name} is not in {folder}, and downloading it failed ({explain(error)}): {remedy}") from error
    return target


def download_archive(archive: Archive, path: Path, progress: DownloadProgress | None = None, *, timeout: float = TIMEOUT) -> None:
    """Fetch a file to `path`, which appears only when whole and with the right checksums.

    Args:
        archive: what to fetch.
        path: where to; replaced if it came to be meanwhile, as when several processes of one run download.
        progress: called after each piece.
        timeout: seconds the server may keep silent.

    Raises:
        DatasetError: the server cannot be reached, the transfer broke, or a checksum is another.
        ComdefendError: `path` cannot be written.
    """
    checks = [(hashlib.md5(usedforsecurity=False), archive.md5), (hashlib.sha256(), archive.sha256)]
    done = total = 0
    with open_atomically(path, overwrite=True) as file:
        for chunk, total in _transfer(archive.url, timeout):
            file.write(chunk)
            for digest, _ in checks:
                digest.update(chunk)
            done += len(chunk)
            if done > MAX_DOWNLOAD:
                raise DatasetError(f"{archive.url}: sends more than {MAX_DOWNLOAD >> 20} MiB")
            if progress:
                progress(done, total)
        if done < total:
            raise DatasetError(f"{archive.url}: the transfer ended after {done} of {total} bytes")
        if any(digest.hexdigest() != expected for digest, expected in checks):
            raise DatasetError(f"{archive.url}: the file's checksum is not the published one")


def _transfer(url: str, timeout: float) -> Iterator[tuple[bytes, int]]:
    """The pieces of a file on a server, each with the bytes that the server promised in all, or 0."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:  # noqa: S310  # Addresses are ours, above.
            if url.startswith("https:") and not response.url.startswith("https:"):
                raise DatasetError(f"{url}: the server sends elsewhere, without encryption")
            total = int(response.headers.get("Content-Length") or 0)
            while chunk := response.read(1 << 16):
                yield chunk, total
    except urllib.error.HTTPError as error:
        raise DatasetError(f"{url}: the server says {error.code} {explain(Exception(error.reason))}") from error
    except urllib.error.URLError as error:
        cause = error.reason if isinstance(error.reason, OSError) else error
        raise DatasetError(f"{url}: {explain(cause)}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DatasetError(f"{url}: the transfer broke: {explain(error)}") from error
