"""Finished parts of an evaluation on disk, so that one that was interrupted goes on where it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from comdefend_cli.errors import ComdefendError, explain
from comdefend_cli.runtime.files import write_atomically


def hash_identity(identity: dict[str, Any]) -> str:
    """A name for everything that decides a result: the SHA-256 of its JSON."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


class Cache:
    """Records and images by key. A damaged file counts as absent and is made again.

    Args:
        folder: where; made when something is put in. None keeps nothing.

    Raises:
        ComdefendError: from the methods that write, when the folder cannot be written.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def read_record(self, key: str) -> dict[str, Any] | None:
        """A JSON object, or None."""
        if self.folder is None:
            return None
        try:
            record = json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return record if isinstance(record, dict) else None

    def write_record(self, key: str, record: dict[str, Any]) -> None:
        """Keep a JSON object."""
        self._write(f"{key}.json", json.dumps(record).encode())

    def read_images(self, key: str, shape: torch.Size) -> Tensor | None:
        """A batch of images of that shape, uint8, or float32 in [0, 1]; or None."""
        if self.folder is None:
            return None
        try:
            found = load((self.folder / f"{key}.safetensors").read_bytes())["pictures"]
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
        fits = found.dtype == torch.uint8 or (found.dtype == torch.float32 and bool(((found >= 0) & (found <= 1)).all()))
        return found if fits and found.shape == shape else None

    def write_images(self, key: str, images: Tensor) -> None:
        """Keep a batch of images."""
        self._write(f"{key}.safetensors", save({"pictures": images.cpu().contiguous()}))

    def _write(self, name: str, data: bytes) -> None:
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ComdefendError(f"{self.folder}: cannot make this folder: {explain(error)}") from error
        write_atomically(self.folder / name, data, overwrite=True)
