"""The weights that ship: the registry of their names, files and hashes, and loading by name or from a file."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import cast

from comdefend_cli.errors import WeightsError, explain
from comdefend_cli.network.weight_file import Header, Weights, parse_header, parse_weights
from comdefend_cli.runtime.files import find_weights_folder, refuse_absent
from comdefend_cli.runtime.tensor_files import read_file

#: What `purify` takes when nothing is said, for colour and for grey images.
DEFAULT_COLOR = "comdefend-fast"
DEFAULT_GRAY = "comdefend-fast-gray"
REINSTALL = "install comdefend-cli again"


@cache
def read_registry() -> dict[str, dict[str, str]]:
    """The weights that ship: name to {"file", "sha256", "about"}.

    Raises:
        WeightsError: the registry is missing or damaged.
    """
    path = find_weights_folder() / "registry.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if any(not isinstance(entry[key], str) for entry in entries.values() for key in ("file", "sha256", "about")):
            raise ValueError("an entry is not a string")
        return cast(dict[str, dict[str, str]], entries)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: damaged registry ({type(error).__name__}: {explain(error)}); {REINSTALL}") from error


def locate_weights(name_or_path: str) -> tuple[str, Path, str | None]:
    """Name, path and expected SHA-256 (None for a user's own file) of weights.

    Raises:
        UsageError: neither a name in the registry nor a file.
    """
    entry = read_registry().get(name_or_path)
    if entry is not None:
        return name_or_path, find_weights_folder() / entry["file"], entry["sha256"]
    path = Path(name_or_path)
    refuse_absent(path, f"no such weights; give a file or one of: {', '.join(sorted(read_registry()))}")
    return path.name, path, None


def load_weights(name_or_path: str) -> Weights:
    """Read weights by the registry's name or from a file, checking hash, header and shapes.

    Raises:
        UsageError: no such weights.
        WeightsError: the file cannot be read, was changed, or does not fit its architecture.
    """
    name, path, data, sha256 = _read_checked(name_or_path)
    return parse_weights(data, path, name, sha256)


def read_weights_header(name_or_path: str) -> tuple[Header, str, Path]:
    """Header, SHA-256 and path of a weight file; the hash of one that ships is checked, the tensors are not.

    Raises:
        UsageError, WeightsError: as :func:`load_weights`.
    """
    _, path, data, sha256 = _read_checked(name_or_path)
    return parse_header(data, path), sha256, path


def _read_checked(name_or_path: str) -> tuple[str, Path, bytes, str]:
    """Name, path, content and SHA-256 of weights; those that ship must have the registry's."""
    name, path, expected = locate_weights(name_or_path)
    data = read_file(path, REINSTALL if expected else "give another file")
    sha256 = hashlib.sha256(data).hexdigest()
    if expected is not None and sha256 != expected:
        raise WeightsError(f"{path}: its SHA-256 is not the registry's, so it was changed; {REINSTALL}")
    return name, path, data, sha256
