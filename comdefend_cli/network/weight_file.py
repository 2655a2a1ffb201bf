"""Weight files: what they say of themselves, checking and writing them.

A weight file is safetensors: the tensors of both networks by their names in the model, such as "com.0.weight" (out, in, 3, 3),
float32, and where `comdefend quantize` put them the bytes of "int8.graph" and
"int8.constants", the networks in 8-bit integers as OpenVINO's two files; the header's metadata holds one JSON object under
"comdefend" with the architecture, the noise that images get before it, how the weights came to be, and a SHA-256 of these and
of all tensors, so that a byte that changed on the way is noticed. Nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from comdefend_cli.errors import WeightsError
from comdefend_cli.network.architecture import Architecture, PaperArchitecture, ResidualArchitecture
from comdefend_cli.network.model import ComDefend
from comdefend_cli.runtime.tensor_files import TensorFormat, read_metadata

FORMAT = TensorFormat("comdefend", "weight file of comdefend", "make one with comdefend train or comdefend weights import")


@dataclass(frozen=True)
class Header:
    """What a weight file says of itself.

    Attributes:
        architecture: of the networks, of either family.
        training: data, steps, settings, PSNR in dB and so on, as JSON values; free form.
        input_noise: standard deviation of the noise that images get before these networks unless told otherwise, in 8-bit levels.
    """

    architecture: Architecture
    training: dict[str, Any] = field(default_factory=dict)
    input_noise: float = 0.0


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
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in model.state_dict().items()}
    for part, content in asdict(quantized).items() if quantized else ():
        tensors[f"int8.{part}"] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    header = asdict(Header(model.architecture, training, model.input_noise))
    plain = FORMAT.serialize(header, tensors)
    return FORMAT.write(path, {**header, "sha256": _compute_digest(plain)}, tensors, overwrite=overwrite)


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
    tensors = FORMAT.read_tensors(data, path)
    # Those from before files said their hash are taken as they are.
    if read_metadata(data, FORMAT.key).get("sha256") not in (None, _compute_digest(data)):
        raise WeightsError(f"{path}: not as it was saved: a byte was changed; copy or make it again")
    quantized = _take_quantized(tensors, path)
    with torch.device("meta"):  # Takes no memory, whatever the header says; and the program's default device and dtype do not matter.
        model = ComDefend(header.architecture, header.input_noise).float()
    FORMAT.check(tensors, model.state_dict(), path)
    model.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
    return Weights(name, sha256, header, model.eval().requires_grad_(False), quantized)


def parse_header(data: bytes, path: Path) -> Header:
    """What a weight file's content says of itself; its tensors are not looked at.

    Raises:
        WeightsError: it is not a weight file.
    """

    def build(fields: dict[str, Any]) -> Header:
        return Header(_read_architecture(fields["architecture"]), dict(fields["training"]), _read_level(fields.get("input_noise", 0.0)))

    return FORMAT.read_header(data, path, build)


def _compute_digest(data: bytes) -> str:
    """SHA-256 of a file's JSON object but for the hash in it, and of its tensors."""
    (length,) = struct.unpack_from("<Q", data)
    text = json.dumps({name: value for name, value in read_metadata(data, FORMAT.key).items() if name != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode() + memoryview(data)[8 + length :]).hexdigest()


def _read_architecture(fields: dict[str, Any]) -> Architecture:
    """Of the paper's family where the widths of its hidden layers are said, else of the other one."""
    if "hidden" in fields:
        hidden = tuple(map(_read_whole, fields["hidden"]))
        return PaperArchitecture(_read_whole(fields["channels"]), _read_whole(fields["bits"]), hidden)
    return ResidualArchitecture(*(_read_whole(fields[name]) for name in ("channels", "bits", "downscale", "width", "blocks")))


def _read_whole(value: object) -> int:
    """An integer as JSON has it, not a number or string that could be taken for one."""
    if type(value) is not int:
        raise ValueError("its architecture holds something else than whole numbers")
    return value


def _read_level(value: object) -> float:
    """A standard deviation in 8-bit levels."""
    if type(value) not in (int, float) or not 0 <= cast(float, value) <= 255:
        raise ValueError("its input noise is not a number from 0 to 255")
    return float(cast(float, value))


def _take_quantized(tensors: dict[str, torch.Tensor], path: Path) -> Quantized | None:
    """Take the networks in 8-bit integers, where there are some, out of a file's tensors."""
    parts = [tensors.pop(f"int8.{part}", None) for part in ("graph", "constants")]
    if all(part is None for part in parts):
        return None
    if any(part is None or part.dtype != torch.uint8 or part.ndim != 1 for part in parts):
        raise WeightsError(f"{path}: its int8 networks are damaged; make them again with comdefend quantize")
    return Quantized(*(cast(torch.Tensor, part).numpy().tobytes() for part in parts))
