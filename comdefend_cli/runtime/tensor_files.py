"""Files of tensors: safetensors with one JSON object in the header's metadata, which says what the tensors are.

A file comes from outside: it is read up to a limit, its metadata before any tensor is made, and its tensors are compared with those that
its metadata call for before a network of that size is made. Nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialize_tensors
from torch import Tensor

from comdefend_cli.errors import WeightsError, explain
from comdefend_cli.runtime.files import write_atomically

#: The largest architecture that is allowed, in 8-bit integers too, stays under this, so a bigger file is not ours.
MAX_BYTES = 768 * 2**20
MAX_HEADER_BYTES = 2**20
#: Of what a file says of itself, how much stands in a message.
_SAID = 150

Header = TypeVar("Header")


@dataclass(frozen=True)
class TensorFormat:
    """A kind of file of tensors.

    Attributes:
        key: of the JSON object in the header's metadata.
        name: what such a file is called in messages, such as "weight file of comdefend".
        remedy: what a user does who has none.
        version: of the format, which the JSON object has as "format_version".
    """

    key: str
    name: str
    remedy: str
    version: int = 1

    def serialize(self, fields: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
        """The content of a file of these tensors, which lie contiguous on the CPU, and of these JSON values besides the version."""
        return serialize_tensors(tensors, {self.key: json.dumps({"format_version": self.version, **fields}, sort_keys=True)})

    def write(self, path: Path, fields: dict[str, Any], tensors: dict[str, Tensor], *, overwrite: bool = False) -> str:
        """Write a file atomically and return its SHA-256.

        Raises:
            UsageError: the file is there and `overwrite` is false.
            ComdefendError: it cannot be written.
        """
        data = self.serialize(fields, tensors)
        write_atomically(path, data, overwrite=overwrite)
        return hashlib.sha256(data).hexdigest()

    def read_header(self, data: bytes, path: Path, build: Callable[[dict[str, Any]], Header]) -> Header:
        """What `build` makes of a file's JSON object without the version.

        Args:
            data: the file's content.
            path: its path, for messages.
            build: may raise ValueError, KeyError, TypeError and AttributeError for values that cannot be.

        Raises:
            WeightsError: it is no such file.
        """
        try:
            fields = read_metadata(data, self.key)
            version = fields.pop("format_version")
            if isinstance(version, int) and version > self.version:
                raise WeightsError(f"{path}: written by a newer comdefend; upgrade with pip install -U comdefend-cli")
            if version != self.version:
                raise ValueError("its format version is unknown")
            return build(fields)
        except KeyError as error:
            problem = f"its header has no {error}"
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            problem = explain(error)
        raise WeightsError(f"{path}: not a {self.name}: {problem[:_SAID]}; {self.remedy}")

    def read_tensors(self, data: bytes, path: Path) -> dict[str, Tensor]:
        """The tensors of a file's content, by name, on the CPU.

        Raises:
            WeightsError: the content is damaged.
        """
        try:
            return parse_tensors(data)
        except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
            problem = explain(error)[:_SAID]
            raise WeightsError(f"{path}: damaged or truncated {self.name}: {problem}; copy it again, or {self.remedy}") from error

    def check(self, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
        """Refuse tensors that are missing, left over, misshapen, of another type or not finite.

        Args:
            given: the file's.
            wanted: those that its header calls for, whose values do not matter.
            path: the file's, for messages.

        Raises:
            WeightsError: they differ.
        """
        shapes, there = ({name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (wanted, given))
        problem = ""
        for name in sorted(shapes.keys() | there.keys()):
            if shapes.get(name) != there.get(name):
                called = f"its header's architecture has {shapes.get(name, 'none')}"
                problem = problem or f"tensor {name[:80]!r} is {there.get(name, 'missing')}, {called}"
            elif given[name].dtype != wanted[name].dtype:
                problem = problem or f"holds tensors that are not {str(wanted[name].dtype).removeprefix('torch.')}"
        # NumPy's, which starts no threads: where other programs keep the cores busy, PyTorch's took a seventh of `purify` on a thumbnail.
        if not problem and not all(bool(np.isfinite(tensor.numpy()).all()) for tensor in given.values()):
            problem = "holds values that are not finite"
        if problem:
            raise WeightsError(f"{path}: {problem}; {self.remedy}")


def read_file(path: Path, remedy: str) -> bytes:
    """The bytes of a file of tensors, which may be no larger than `MAX_BYTES`.

    Raises:
        WeightsError: it cannot be read; the message ends in `remedy`.
    """
    try:
        if path.is_dir():
            raise WeightsError(f"{path}: is a folder; name a weight file in it")
        with path.open("rb") as file:  # Not by its size: a device or pipe has none.
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise WeightsError(f"{path}: cannot read the weights: {explain(error)}; {remedy}") from error
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
