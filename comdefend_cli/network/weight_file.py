"""Weight files: what they say of themselves, checking and writing them.

A weight file is safetensors: tensors "com.N.weight" (out, in, 3, 3), "com.N.bias" (out,), and the
same for "rec", with N = 0, 2, ... 16, all float32, and where `comdefend quantize` put them the bytes of "int8.graph" and
"int8.constants", the networks in 8-bit integers as OpenVINO's two files; the header's metadata holds one JSON object under
"comdefend" with the architecture, the noise that images get before it, how the weights came to be, and a SHA-256 of these and
of all tensors, so that a byte that changed on the way is noticed. Nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialize_tensors

from comdefend_cli.errors import WeightsError, reason
from comdefend_cli.network.model import Architecture, ComDefend
from comdefend_cli.runtime.files import write_atomically
from comdefend_cli.runtime.tensor_files import read_metadata

KEY = "comdefend"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Header:
    """What a weight file says of itself.

    Attributes:
        architecture: channels, bits and widths of the networks.
        training: data, steps, settings, PSNR in dB and so on, as JSON values; free form.
        input_noise: standard deviation of the noise that images get before these networks unless told otherwise, in 8-bit levels.
    """

    architecture: Architecture
    training: dict[str, Any] = field(default_factory=dict)
    input_noise: float = 0.0

    def to_json(self) -> str:
        """One JSON object, as it stands in the file's metadata."""
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, sort_keys=True)


@dataclass(frozen=True)
class Quantized:
    """The networks in 8-bit integers: OpenVINO's intermediate representation.

    Attributes:
        graph: its .xml file.
        constants: its .bin file.
    """

    graph: bytes
    constants: bytes


@dataclass(frozen=True)
class Weights:
    """Loaded weights.

    Attributes:
        name: the registry's name, or the file's.
        sha256: of the whole file, hexadecimal.
        header: what the file says of itself.
        model: the networks in evaluation mode on the CPU, float32, gradients off.
        quantized: the same in 8-bit integers, or None.
    """

    name: str
    sha256: str
    header: Header
    model: ComDefend
    quantized: Quantized | None = None


def save_weights(
    path: Path, model: ComDefend, training: dict[str, Any], *, quantized: Quantized | None = None, overwrite: bool = False
) -> str:
    """Write a weight file atomically and return its SHA-256.

    Raises:
        UsageError: the file is there and `overwrite` is false.
        ComdefendError: it cannot be written.
    """
    header = Header(model.architecture, training, model.input_noise)
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in model.state_dict().items()}
    for part, content in asdict(quantized).items() if quantized else ():
        tensors[f"int8.{part}"] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    fields = json.loads(header.to_json())
    fields["sha256"] = _digest(fields, serialize_tensors(tensors))
    data = serialize_tensors(tensors, {KEY: json.dumps(fields, sort_keys=True)})
    write_atomically(path, data, overwrite=overwrite)
    return hashlib.sha256(data).hexdigest()


def parse_weights(data: bytes, path: Path, name: str, sha256: str) -> Weights:
    """The weights in a file's content, its header, shapes and values checked.

    Args:
        data: the content.
        path: the file's, for messages.
        name: what the weights are called.
        sha256: of the content.

    Raises:
        WeightsError: the content was changed since it was saved, or does not fit its architecture.
    """
    header = parse_header(data, path)
    tensors = _parse_tensors(data, path)
    _refuse_changed(data, path)
    quantized = _take_quantized(tensors, path)
    _check(header.architecture, tensors, path)
    model = ComDefend(header.architecture, header.input_noise)
    model.load_state_dict(tensors)
    return Weights(name, sha256, header, model.eval().requires_grad_(False), quantized)


def parse_header(data: bytes, path: Path) -> Header:
    """What a weight file's content says of itself; its tensors are not looked at.

    Raises:
        WeightsError: it is not a weight file.
    """
    try:
        fields = read_metadata(data, KEY)
        version = fields["format_version"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise WeightsError(f"{path}: written by a newer comdefend; upgrade with pip install -U comdefend-cli")
        if version != FORMAT_VERSION:
            raise ValueError("its format version is unknown")
        shape = fields["architecture"]
        architecture = Architecture(_whole(shape["channels"]), _whole(shape["bits"]), tuple(map(_whole, shape["hidden"])))
        return Header(architecture, dict(fields["training"]), _level(fields.get("input_noise", 0.0)))
    except KeyError as error:
        problem = f"its header has no {error}"
    except (ValueError, TypeError, RecursionError) as error:
        problem = reason(error)
    raise WeightsError(f"{path}: not a weight file of comdefend: {problem}; make one with comdefend train or comdefend weights import")


def _digest(fields: dict[str, Any], data: bytes) -> str:
    """SHA-256 of the header's fields but its own, and of the tensors in a safetensors file."""
    (length,) = struct.unpack_from("<Q", data)
    text = json.dumps({name: value for name, value in fields.items() if name != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode() + memoryview(data)[8 + length :]).hexdigest()


def _refuse_changed(data: bytes, path: Path) -> None:
    """Refuse a file that is not as it was saved; those from before it said so are taken as they are."""
    fields = read_metadata(data, KEY)
    if "sha256" in fields and fields["sha256"] != _digest(fields, data):
        raise WeightsError(f"{path}: not as it was saved: a byte was changed; copy or make it again")


def _whole(value: object) -> int:
    """An integer as JSON has it, not a number or string that could be taken for one."""
    if type(value) is not int:
        raise ValueError("its architecture holds something else than whole numbers")
    return value


def _level(value: object) -> float:
    """A standard deviation in 8-bit levels."""
    if type(value) not in (int, float) or not 0 <= cast(float, value) <= 255:
        raise ValueError("its input noise is not a number from 0 to 255")
    return float(cast(float, value))


def _parse_tensors(data: bytes, path: Path) -> dict[str, torch.Tensor]:
    try:
        return parse_tensors(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsError(f"{path}: damaged or truncated weight file: {reason(error)}; copy or make it again") from error


def _take_quantized(tensors: dict[str, torch.Tensor], path: Path) -> Quantized | None:
    """Take the networks in 8-bit integers, where there are some, out of a file's tensors."""
    parts = [tensors.pop(f"int8.{part}", None) for part in ("graph", "constants")]
    if all(part is None for part in parts):
        return None
    if any(part is None or part.dtype != torch.uint8 or part.ndim != 1 for part in parts):
        raise WeightsError(f"{path}: its int8 networks are damaged; make them again with comdefend quantize")
    return Quantized(*(cast(torch.Tensor, part).numpy().tobytes() for part in parts))


def _shapes(architecture: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor in a weight file."""
    widths = (architecture.channels, *architecture.hidden, architecture.bits)
    for network, sizes in (("com", widths), ("rec", widths[::-1])):
        for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
            yield f"{network}.{2 * layer}.weight", (outputs, inputs, 3, 3)
            yield f"{network}.{2 * layer}.bias", (outputs,)


def _check(architecture: Architecture, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Refuse tensors that are missing, left over, misshapen or not finite, before networks of that size are made."""
    wanted = dict(_shapes(architecture))
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
    if wrong:
        name = wrong[0]
        raise WeightsError(
            f"{path}: tensor {name[:80]!r} is {given.get(name, 'missing')}, its header's architecture "
            f"has {wanted.get(name, 'none')}; make the weights again"
        )
    if any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        raise WeightsError(f"{path}: holds tensors that are not float32; make the weights again")
    # NumPy's, which starts no threads: where other programs keep the cores busy, PyTorch's took a seventh of `purify` on a thumbnail.
    if not all(bool(np.isfinite(tensor.numpy()).all()) for tensor in tensors.values()):
        raise WeightsError(f"{path}: holds values that are not finite; make the weights again")
