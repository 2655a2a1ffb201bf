"""What `speed.py` compares with: the authors' way, plain PyTorch, ART's defences, and the machine's limit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, elu

from comdefend_cli.network.layers import Conv3x3
from comdefend_cli.network.model import ComDefend, Network
from comdefend_cli.runtime.device import cpu_has_bfloat16

PATCH = 32
#: Side of the matrices whose product is the machine's limit.
MATRIX = 2048


class PlainComDefend(nn.Module):
    """The networks of PyTorch's own layers alone, which is what others write."""

    def __init__(self, model: ComDefend) -> None:
        super().__init__()
        self.com, self.rec = copy.deepcopy(model.com), copy.deepcopy(model.rec)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] to the same."""
        code = (_plainly(self.com, x - 0.5) > 0).to(x.dtype)
        return torch.sigmoid(_plainly(self.rec, code))


def _plainly(network: Network, x: Tensor) -> Tensor:
    for layer in network:
        x = conv2d(x, layer.weight, layer.bias, padding=1) if isinstance(layer, Conv3x3) else elu(x)
    return x


@dataclass(frozen=True)
class Method:
    """Something to time.

    Attributes:
        name: for the table.
        call: does it once.
        pixels: how many it purifies; of the limit, how many those multiply-adds would.
        note: on what it was measured.
    """

    name: str
    call: Callable[[], object]
    pixels: int
    note: str = ""


def flops_a_pixel(model: ComDefend) -> int:
    """Floating-point operations of both networks for one pixel, a multiply-add counted as two."""
    weights = sum(parameter.numel() for name, parameter in model.named_parameters() if name.endswith("weight"))
    return 2 * weights // model.architecture.scale**2


def authors_way(model: ComDefend, x: Tensor, patches: int) -> Method:
    """float32 patches of 32x32, one after another, in plain PyTorch.

    Args:
        model: the networks.
        x: the image, float32 (1, 3, H, W) in [0, 1].
        patches: how many, from the left of the top row on.
    """
    plain = PlainComDefend(model)
    rows, columns = (side // PATCH for side in x.shape[2:])
    places = [(PATCH * (index // columns), PATCH * (index % columns)) for index in range(min(patches, rows * columns))]

    @torch.no_grad()
    def call() -> list[Tensor]:
        return [plain(x[:, :, top : top + PATCH, left : left + PATCH]) for top, left in places]

    return Method("authors' way: float32 patches of 32x32, one by one", call, len(places) * PATCH**2, f"{len(places)} patches")


def plain_pytorch(model: ComDefend, x: Tensor) -> list[Method]:
    """Plain PyTorch on a whole image: float32, float32 channels last, and bfloat16 channels last where the CPU multiplies it."""
    kinds = [("float32", torch.float32, torch.contiguous_format), ("float32, channels last", torch.float32, torch.channels_last)]
    if cpu_has_bfloat16():
        kinds.append(("bfloat16, channels last", torch.bfloat16, torch.channels_last))
    return [_plain(model, x, name, dtype, layout) for name, dtype, layout in kinds]


def _plain(model: ComDefend, x: Tensor, name: str, dtype: torch.dtype, layout: torch.memory_format) -> Method:
    plain = PlainComDefend(model).to(dtype).to(memory_format=layout)  # type: ignore[call-overload]
    image = x.to(dtype).contiguous(memory_format=layout)

    @torch.no_grad()
    def call() -> Any:
        return plain(image)

    return Method(f"plain PyTorch, {name}", call, x[0, 0].numel(), _size(x))


def limits(model: ComDefend) -> list[Method]:
    """A large matrix product in float32, and in bfloat16 where the CPU multiplies it."""
    kinds = [torch.float32, *[torch.bfloat16] * cpu_has_bfloat16()]
    return [_product(dtype, flops_a_pixel(model)) for dtype in kinds]


def _product(dtype: torch.dtype, flops: int) -> Method:
    a = torch.randn(MATRIX, MATRIX, generator=torch.Generator().manual_seed(0)).to(dtype)
    name = str(dtype).removeprefix("torch.")
    return Method(f"limit: {name} matrix product", lambda: a @ a, 2 * MATRIX**3 // flops, f"{MATRIX}x{MATRIX}")


def art_defences(x: Tensor, small: int) -> list[Method]:
    """ART's defences with their defaults, but quality 75 for JPEG; none where ART is absent.

    Args:
        x: the image, float32 (1, 3, H, W) in [0, 1].
        small: side of the crop for total variation, which takes seconds for a few thousand pixels.
    """
    if find_spec("art") is None:
        return []
    from art.defences.preprocessor import JpegCompression, SpatialSmoothing, TotalVarMin

    image = x.permute(0, 2, 3, 1).contiguous().numpy().astype(np.float32)
    crop = image[:, :small, :small].copy()
    made = [
        ("JPEG, quality 75", JpegCompression(clip_values=(0, 1), quality=75), image),
        ("median, 3x3", SpatialSmoothing(window_size=3, clip_values=(0, 1)), image),
        ("total variation", TotalVarMin(clip_values=(0, 1)), crop),
    ]
    return [
        Method(f"ART: {name}", lambda defence=defence, array=array: defence(array.copy()), array.shape[1] * array.shape[2], _shape(array))
        for name, defence, array in made
    ]


def _size(x: Tensor) -> str:
    return f"{x.shape[2]}x{x.shape[3]}"


def _shape(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[2]}"
