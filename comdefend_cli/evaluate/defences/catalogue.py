"""Defences at test time, made from a spec: ComDefend and those that the paper compares with.

none                                                      the images as they are
NAME or PATH.safetensors[:noise-std=0,input-noise=S,samples=1,votes=1,tiling=exact,backend=torch]
                                                          ComDefend, by weights that ship or by a file; noise that is given is new
                                                          in each call, the weights' own is what `comdefend purify` puts there
bits[:depth=3], median[:size=3]                           feature squeezing (Xu et al., NDSS 2018)
jpeg[:quality=75]                                         JPEG compression (Dziugaite et al., 2016)
tv[:weight=0.1]                                           total variation (Rudin et al., 1992; Guo et al., ICLR 2018)
resize-pad[:output=same,votes=1]                          random resizing and padding (Xie et al., ICLR 2018)
pixeldefend:weights=FILE[,epsilon=16]                     PixelDefend (Song et al., ICLR 2018)
hgd:weights=FILE                                          the guided denoiser (Liao et al., CVPR 2018)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comdefend_cli.errors import UsageError
from comdefend_cli.evaluate.defences import simple
from comdefend_cli.evaluate.defences.base import Defence
from comdefend_cli.evaluate.defences.comdefend import ComDefendDefence
from comdefend_cli.evaluate.defences.hgd import HGDDefence
from comdefend_cli.evaluate.defences.pixeldefend import PixelDefend
from comdefend_cli.evaluate.defences.spec import (
    Option,
    allow_file,
    allow_one_of,
    allow_real,
    allow_whole,
    parse_options,
    split_spec,
    write_spec,
)
from comdefend_cli.network.registry import read_registry
from comdefend_cli.runtime.device import resolve_device

#: Most predictions that one is averaged over.
MOST_VOTES = 10_000


@dataclass(frozen=True)
class _Kind:
    """A defence that specs know: how it is made of its canonical name, its values and a device; its options."""

    make: Callable[[str, dict[str, Any], str], Defence]
    options: dict[str, Option]


_KINDS: dict[str, _Kind] = {
    "none": _Kind(lambda name, values, device: simple.NoDefence(name, {"defence": "none"}), {}),
    "bits": _Kind(
        lambda name, values, device: simple.BitDepth(name, **values),
        {"depth": allow_whole(1, 8, 3, shown=True)},
    ),
    "median": _Kind(
        lambda name, values, device: simple.Median(name, **values),
        {"size": allow_whole(1, 15, 3, shown=True)},
    ),
    "jpeg": _Kind(
        lambda name, values, device: simple.Jpeg(name, **values),
        {"quality": allow_whole(1, 100, 75, shown=True)},
    ),
    "tv": _Kind(
        lambda name, values, device: simple.TotalVariation(name, **values),
        {"weight": allow_real(0, 0.1, above=True, shown=True)},
    ),
    "resize-pad": _Kind(
        lambda name, values, device: simple.ResizePad(name, **values),
        {"output": allow_one_of("same", "larger"), "votes": allow_whole(1, MOST_VOTES, 1)},
    ),
    "pixeldefend": _Kind(
        lambda name, values, device: PixelDefend(name, Path(values["weights"]), values["epsilon"], resolve_device(device)),
        {"weights": allow_file(), "epsilon": allow_whole(0, 255, 16, shown=True)},
    ),
    "hgd": _Kind(
        lambda name, values, device: HGDDefence(name, Path(values["weights"]), resolve_device(device)),
        {"weights": allow_file()},
    ),
}
_COMDEFEND: dict[str, Option] = {
    "noise-std": allow_real(0, 0.0),
    "input-noise": allow_real(0, None),
    "samples": allow_whole(1, MOST_VOTES, 1),
    "votes": allow_whole(1, MOST_VOTES, 1),
    "tiling": allow_one_of("exact", "paper"),
    "backend": allow_one_of("torch", "openvino", "triton"),
}

#: What a spec may begin with, beside the names of weights that ship and the paths of weight files.
NAMES: tuple[str, ...] = tuple(_KINDS)


def make_defence(spec: str, *, device: str = "auto", precision: str = "auto") -> Defence:
    """The defence that a spec names.

    Args:
        spec: NAME[:key=value[,key=value...]], as the module's head lists them.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps", for those with networks.
        precision: of ComDefend's networks, see :meth:`comdefend_cli.Purifier.from_pretrained`. The others compute in float32.

    Returns:
        In evaluation mode; its `name` is the canonical spec.

    Raises:
        UsageError: an unknown name, option or value; an absent file, device or library.
        WeightsError: a weight file cannot be read.
    """
    name, values, options = _parse(spec)
    full = write_spec(name, values, options)
    if name in _KINDS:
        return _KINDS[name].make(full, values, device).eval()
    arguments = {key.replace("-", "_"): value for key, value in values.items()}
    arguments["noise"] = arguments.pop("noise_std")
    return ComDefendDefence(full, name, **arguments, device=device, precision=precision).eval()


def _parse(spec: str) -> tuple[str, dict[str, Any], dict[str, Option]]:
    """Name, values and options of a spec."""
    name, text = split_spec(spec)
    if name in _KINDS:
        options = _KINDS[name].options
    elif name in read_registry() or name.endswith(".safetensors"):
        options = _COMDEFEND
    else:
        kind = name.partition(":")[0]
        if kind in _KINDS or kind in read_registry():
            raise UsageError(f"{spec}: options are key=value, with commas between them, as in jpeg:quality=75")
        known = ", ".join((*NAMES, *sorted(read_registry())))
        raise UsageError(f"unknown defence {name!r}: use a .safetensors file of ComDefend's, or one of {known}")
    if options is _COMDEFEND and re.search(r"(?:^|,)noise=", text):
        raise UsageError(f"{spec}: say input-noise, which is on the image, or noise-std, which is on the code")
    return name, parse_options(name, text, options), options
