"""Weight files of other defences' networks: safetensors, with one JSON object under "comdefend-baseline" in its metadata.

Nothing in them is executed, and a network is made only after the tensors were seen to fit it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialize_tensors
from torch import Tensor, nn

from comdefend_cli.errors import UsageError, WeightsError, reason
from comdefend_cli.runtime.files import write_atomically
from comdefend_cli.runtime.tensor_files import read_file, read_metadata

KEY = "comdefend-baseline"
FORMAT_VERSION = 1
#: BatchNorm's count of batches, which nothing reads and which is not a float.
_UNREAD = "num_batches_tracked"

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class StoredNetwork(Generic[Network]):
    """A loaded network.

    Attributes:
        model: in evaluation mode on the CPU, float32, gradients off.
        training: what the file says of its training, as JSON values.
        sha256: of the whole file, hexadecimal.
    """

    model: Network
    training: dict[str, Any]
    sha256: str


def save_network(path: Path, kind: str, model: nn.Module, training: dict[str, Any], *, overwrite: bool = False) -> str:
    """Write a weight file atomically and return its SHA-256.

    Args:
        kind: "pixelcnn" or "hgd".
        model: its attribute `architecture` is a dataclass of JSON values, from which `load_network` makes the network again.
        training: how the weights came to be, as JSON values.

    Raises:
        UsageError: the file is there and `overwrite` is false.
        ComdefendError: it cannot be written.
    """
    header = {"format_version": FORMAT_VERSION, "kind": kind, "architecture": asdict(cast(Any, model).architecture), "training": training}
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in _tensors(model).items()}
    data = serialize_tensors(tensors, {KEY: json.dumps(header, sort_keys=True)})
    write_atomically(path, data, overwrite=overwrite)
    return hashlib.sha256(data).hexdigest()


def load_network(path: Path, kind: str, build: Callable[[dict[str, Any]], Network]) -> StoredNetwork[Network]:
    """Read a weight file.

    Args:
        kind: that it must be of.
        build: makes the network of an architecture; raises ValueError or TypeError for one that cannot be.

    Raises:
        UsageError: no such file.
        WeightsError: it cannot be read, is of another kind, or its tensors do not fit its architecture.
    """
    remedy = f"make one with comdefend train-baseline {kind}"
    try:
        there = path.exists()
    except OSError:  # A name that no file can have; before Python 3.12 it raises.
        there = False
    if not there:
        raise UsageError(f"{path}: no such file; {remedy}")
    data = read_file(path, remedy)
    try:
        header = read_metadata(data, KEY)
        if header["kind"] != kind:
            raise ValueError(f"it holds the weights of {header['kind']!r}")
        if header["format_version"] != FORMAT_VERSION:
            raise ValueError("its format version is unknown")
        training = dict(header["training"])
        with torch.device("meta"):  # Takes no memory, whatever the header says.
            model = build(dict(header["architecture"]))
    except KeyError as error:
        raise WeightsError(f"{path}: not a weight file for {kind}: its header has no {error}; {remedy}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise WeightsError(f"{path}: not a weight file for {kind}: {reason(error)[:200]}; {remedy}") from error
    try:
        tensors = parse_tensors(data)
        _check(_tensors(model), tensors)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsError(f"{path}: damaged weight file: {reason(error)[:200]}; {remedy}") from error
    model = build(dict(header["architecture"]))
    model.load_state_dict(tensors, strict=False)
    return StoredNetwork(model.eval().requires_grad_(False), training, hashlib.sha256(data).hexdigest())


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(_UNREAD)}


def _check(wanted: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    """Refuse tensors that are missing, left over, misshapen or not finite."""
    shapes, there = ({name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (wanted, given))
    for name in sorted(wanted.keys() | given.keys()):
        if shapes.get(name) != there.get(name):
            raise ValueError(f"tensor {name[:80]!r} is {there.get(name, 'missing')}, not {shapes.get(name, 'there')}")
    if any(tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()) for tensor in given.values()):
        raise ValueError("it holds values that are not float32 or not finite")
