"""PSNR and SSIM of 8-bit images."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

#: Stands for the infinite PSNR of an exact image in a mean; one level off in one value of 32x32x3 is 83 dB.
TOP_PSNR = 100.0
#: Side of SSIM's uniform window.
_WINDOW = 7
#: Pixels computed at a time, so that memory stays bounded: 8 bytes each, for a dozen intermediate values a channel.
_STRIP = 2**19


def squared_error(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error of each image, (N,), float64, of two uint8 batches (N, C, H, W)."""
    step = max(1, _STRIP // (len(a) * a.shape[3]))
    total = torch.zeros(len(a), dtype=torch.float64)
    for top in range(0, a.shape[2], step):
        difference = a[:, :, top : top + step].int() - b[:, :, top : top + step].int()
        total += difference.square().sum((1, 2, 3), dtype=torch.float64).cpu()
    return total / a[0].numel()


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image, (N,), float64; infinite where they are equal.

    Args:
        a, b: uint8 (N, C, H, W).
    """
    return 10 * torch.log10(255**2 / squared_error(a, b))


def mean_psnr(a: Tensor, b: Tensor) -> float:
    """Mean over images of :func:`psnr`; an exact one, such as a black crop, counts as `TOP_PSNR`, lest the mean be infinite."""
    return float(psnr(a, b).clamp(max=TOP_PSNR).mean())


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity (Wang et al., 2004) of one image: 7x7 uniform windows, mean over channels.

    Args:
        a, b: uint8 (1, C, H, W).

    Returns:
        -1 to 1, as scikit-image's `structural_similarity` with its defaults; NaN under 7 pixels a side.
    """
    if min(a.shape[2:]) < _WINDOW:
        return math.nan
    total, count = 0.0, 0
    step = max(_WINDOW, _STRIP // a.shape[3])
    for top in range(0, a.shape[2] - _WINDOW + 1, step):
        rows = slice(top, top + step + _WINDOW - 1)
        strip = _ssim_map(a[:, :, rows].double(), b[:, :, rows].double())
        total, count = total + float(strip.sum()), count + strip.numel()
    return total / count


def _ssim_map(x: Tensor, y: Tensor) -> Tensor:
    def mean(values: Tensor) -> Tensor:
        return avg_pool2d(avg_pool2d(values, (_WINDOW, 1), 1), (1, _WINDOW), 1)

    unbiased = _WINDOW**2 / (_WINDOW**2 - 1)
    mx, my = mean(x), mean(y)
    vx, vy, vxy = (unbiased * (mean(p * q) - mp * mq) for p, q, mp, mq in ((x, x, mx, mx), (y, y, my, my), (x, y, mx, my)))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
