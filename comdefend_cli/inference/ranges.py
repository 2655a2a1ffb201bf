"""Whether pixels are within [0, 1]: of an image on another scale, the networks would make something quietly wrong."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

#: By how much values may leave [0, 1] and still be on that scale: bicubic resizing overshoots at edges, by a tenth each way.
OVERSHOOT = 0.25


def check_range(x: Tensor) -> Callable[[], None]:
    """Begin to look at the smallest and largest value of floating-point pixels; the function returned ends it.

    On a GPU, the answer is fetched while other work goes on: call the function once that was given to the GPU. A graph that is being
    traced, compiled or captured does not look.

    Raises:
        ValueError: from here, or on a GPU from the function returned: the values are on another scale than [0, 1].
    """
    traced = torch.compiler.is_compiling() or (x.device.type == "cuda" and torch.cuda.is_current_stream_capturing())
    if traced or not x.is_floating_point():
        return _do_nothing
    ends = torch.stack(torch.aminmax(x.detach()))
    if x.device.type != "cuda":
        _refuse(*ends.tolist())
        return _do_nothing
    host = torch.empty_like(ends, device="cpu", pin_memory=True).copy_(ends, non_blocking=True)
    copied = torch.cuda.current_stream(x.device).record_event()

    def finish() -> None:
        copied.synchronize()
        _refuse(*host.tolist())

    return finish


def _do_nothing() -> None:
    pass


def _refuse(low: float, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high)):
        found = "NaN" if math.isnan(low) or math.isnan(high) else "infinity"
        raise ValueError(f"expected pixels in [0, 1], found {found}: look at what made the images")
    if not (low < -OVERSHOOT or high > 1 + OVERSHOOT):
        return
    found = f"expected pixels in [0, 1], found {low:.3g} to {high:.3g}"
    if low >= 0 and high <= 255:
        raise ValueError(f"{found}: divide by 255, or give a uint8 tensor")
    remedy = "put the purifier before Normalize, as Defended(purifier, classifier, normalize=(mean, std)) does"
    raise ValueError(f"{found}, which looks normalized: {remedy}")
