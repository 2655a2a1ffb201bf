"""What colour images become where networks are for grey ones."""

from __future__ import annotations

from torch import Tensor

#: ITU-R BT.601, as Pillow turns colour into grey.
LUMA = (0.299, 0.587, 0.114)


def take_luma(x: Tensor) -> Tensor:
    """The luma (N, 1, H, W) of (N, 3, H, W), floating point."""
    return (x * x.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
