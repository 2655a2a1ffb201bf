"""From weights to networks where and in what they compute."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from comdefend_cli.backends.select import Engine, make_engine, resolve_backend
from comdefend_cli.network.architecture import PaperArchitecture
from comdefend_cli.network.model import ComDefend
from comdefend_cli.network.registry import DEFAULT_COLOR, DEFAULT_GRAY, load_weights
from comdefend_cli.network.weight_file import Weights
from comdefend_cli.runtime.device import FUSED_PRECISIONS, dtype_name, resolve_device, resolve_precision, warn_of_emulation


@dataclass(frozen=True)
class Networks:
    """Networks by the number of channels they take.

    Attributes:
        models: PyTorch's.
        engines: what computes in their place, where something does.
        names: of their weights.
    """

    models: dict[int, ComDefend]
    engines: dict[int, Engine] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)


def load_by_name(weights: str | Path | None) -> list[Weights]:
    """The weights of that name or file; None is the default for colour and that for grey."""
    return [load_weights(name) for name in ((str(weights),) if weights else (DEFAULT_COLOR, DEFAULT_GRAY))]


def make_networks(
    loaded: Iterable[Weights], device: str | torch.device, precision: str | torch.dtype, backend: str, *, noisy: bool
) -> Networks:
    """The networks of weights, which stay as they are.

    Args:
        loaded: weights for colour, for grey, or both.
        device, precision, backend: as of :meth:`comdefend_cli.Purifier.from_pretrained`.
        noisy: whether noise will be added to the logits.

    Raises:
        UsageError: a device, precision or backend that is not there.
    """
    loaded = list(loaded)
    if isinstance(precision, torch.dtype):
        precision = dtype_name(precision)
    if device == "auto" and backend == "openvino":
        device = "cpu"
    target = resolve_device(str(device))
    quantized = any(item.quantized for item in loaded)
    paper = all(isinstance(item.header.architecture, PaperArchitecture) for item in loaded)
    chosen = resolve_backend(backend, target, precision, noisy=noisy, quantized=quantized, paper=paper)
    if chosen == "torch":
        warn_of_emulation(precision, target)
    # PyTorch's networks, which stand behind those of 8 bits, are in what the device computes fastest.
    dtype = resolve_precision("auto" if precision in FUSED_PRECISIONS else precision, target)
    made = Networks({})
    for item in loaded:
        channels = item.header.architecture.channels
        model = made.models[channels] = copy.deepcopy(item.model).to(target, dtype)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        made.names[channels] = item.name
        if engine := make_engine(chosen, item, model, precision):
            made.engines[channels] = engine
    return made
