"""Images of few pixels, which to networks that see squares of pixels are all border: they go through enlarged."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

#: Both sides below which an image is tiny, and which the shorter one at least has when it is enlarged.
TINY = 16


def find_enlargement(height: int, width: int, scale: int) -> int:
    """How many times as large an image goes through networks that see squares of `scale` pixels a side; 1 for one that is not tiny."""
    return ceil(TINY / min(height, width)) if scale > 1 and max(height, width) < TINY else 1


def purify_enlarged(x: Tensor, factor: int, purify: Callable[[Tensor], Tensor]) -> Tensor:
    """Each pixel as a square of `factor` pixels a side, and back the mean of what `purify` makes of it.

    Args:
        x: (N, C, H, W), float in [0, 1] or uint8.
        factor: from :func:`find_enlargement`.
        purify: float32 (N, C, H, W) in [0, 1] to the same.

    Returns:
        Of x's shape and dtype.
    """
    levels = x.dtype == torch.uint8
    enlarged = (x.float() / 255 if levels else x.float()).repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    result = avg_pool2d(purify(enlarged), factor)
    return (result * 255).round().to(torch.uint8) if levels else result.to(x.dtype)
