"""Guarded reading of safetensors files: a bounded number of bytes, and the metadata before any tensor is made."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from comdefend_cli.errors import WeightsError, reason

#: The largest architecture that is allowed, in 8-bit integers too, stays under this, so a bigger file is not ours.
MAX_BYTES = 768 * 2**20
MAX_HEADER_BYTES = 2**20


def read_file(path: Path, remedy: str) -> bytes:
    """The bytes of a weight file, which may be no larger than `MAX_BYTES`.

    Raises:
        WeightsError: it cannot be read; the message ends in `remedy`.
    """
    try:
        if path.is_dir():
            raise WeightsError(f"{path}: is a folder; name a weight file in it")
        with path.open("rb") as file:  # Not by its size: a device or pipe has none.
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise WeightsError(f"{path}: cannot read the weights: {reason(error)}; {remedy}") from error
    if len(data) > MAX_BYTES:
        raise WeightsError(f"{path}: too large for a weight file of comdefend ({MAX_BYTES >> 20} MiB at most); give another file")
    return data


def read_metadata(data: bytes, key: str) -> Any:
    """The JSON value under `key` in the header of a safetensors file (a length in 8 bytes, then JSON).

    Raises:
        ValueError, KeyError, TypeError: there is none.
    """
    if len(data) < 8:
        raise ValueError("the file is empty" if not data else "the file is too short")
    (length,) = struct.unpack_from("<Q", data)
    if length > min(MAX_HEADER_BYTES, len(data) - 8):
        raise ValueError("its header's length is wrong")
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"][key])
