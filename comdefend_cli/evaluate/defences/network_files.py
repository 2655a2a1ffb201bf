"""Weight files of other defences' networks: safetensors, with one JSON object under "comdefend-baseline" in its metadata.

Nothing in them is executed, and a network is made only after the tensors were seen to fit it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from comdefend_cli.runtime.files import refuse_absent
from comdefend_cli.runtime.tensor_files import TensorFormat, read_file

KEY = "comdefend-baseline"
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
    header = {"kind": kind, "architecture": asdict(cast(Any, model).architecture), "training": training}
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in _get_tensors(model).items()}
    return _get_format(kind).write(path, header, tensors, overwrite=overwrite)


def load_network(path: Path, kind: str, build: Callable[[dict[str, Any]], Network]) -> StoredNetwork[Network]:
    """Read a weight file.

    Args:
        kind: that it must be of.
        build: makes the network of an architecture; raises ValueError or TypeError for one that cannot be.

    Raises:
        UsageError: no such file.
        WeightsError: it cannot be read, is of another kind, or its tensors do not fit its architecture.
    """
    form = _get_format(kind)
    refuse_absent(path, f"no such file; {form.remedy}")
    data = read_file(path, form.remedy)

    def read(fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], Network]:
        if fields["kind"] != kind:
            raise ValueError(f"it holds the weights of {fields['kind']!r}")
        architecture = dict(fields["architecture"])
        with torch.device("meta"):  # Takes no memory, whatever the header says.
            return architecture, dict(fields["training"]), build(architecture)

    architecture, training, shapes = form.read_header(data, path, read)
    tensors = form.read_tensors(data, path)
    form.check(tensors, _get_tensors(shapes), path)
    model = build(architecture)
    model.load_state_dict(tensors, strict=False)
    return StoredNetwork(model.eval().requires_grad_(False), training, hashlib.sha256(data).hexdigest())


def _get_format(kind: str) -> TensorFormat:
    return TensorFormat(KEY, f"weight file for {kind}", f"make one with comdefend train-baseline {kind}")


def _get_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(_UNREAD)}
