"""Windows of images on their way to the networks and back: batches of one shape, stacked, counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from comdefend_cli.inference.tiles import Tile

#: Windows of one shape, each with the index of its image.
Batch = list[tuple[int, Tile]]
#: Batches that a device has still to compute when the next one is given to it.
IN_FLIGHT = {"cpu": 0, "cuda": 1, "mps": 0}


def batches(grid: list[Tile], count: int, pixels: int) -> Iterator[Batch]:
    """Windows of one shape at a time over all images, at most `pixels` together but at least one."""
    by_shape: dict[tuple[int, int], Batch] = {}
    for index in range(count):
        for tile in grid:
            batch = by_shape.setdefault(tile.shape, [])
            batch.append((index, tile))
            if (len(batch) + 1) * tile.shape[0] * tile.shape[1] > pixels:
                yield by_shape.pop(tile.shape)
    yield from by_shape.values()


def stacked(x: Tensor, batch: Batch, device: torch.device) -> Tensor:
    """The windows of a batch, stacked on the device, float32 in [0, 1], channels last."""
    windows = joined(x, batch)
    if windows.dtype != torch.uint8:
        return _moved(windows.float(), device).contiguous(memory_format=torch.channels_last)  # A device may not know the dtype.
    # Levels are moved and turned as bytes, so that there is one copy in float32 and not three.
    return _moved(windows, device).contiguous(memory_format=torch.channels_last).float().div_(255)


def joined(x: Tensor, batch: Batch) -> Tensor:
    """The windows of a batch (N, C, H, W), their channels last where they are so in x: to turn them round takes three times as long."""
    if run := _whole_images(x, batch):
        return x[run]
    windows = [x[index, :, tile.rows.window, tile.columns.window] for index, tile in batch]
    if x.stride(1) != 1:
        return torch.stack(windows)
    return torch.stack([window.permute(1, 2, 0) for window in windows]).permute(0, 3, 1, 2)


def filled(out: Tensor, batch: Batch, result: Tensor) -> None:
    """Put the cores of a batch's windows, which the networks made `result` of, into their places."""
    if run := _whole_images(out, batch):
        out[run] = result
        return
    for (index, tile), window in zip(batch, result, strict=True):
        out[index, :, tile.rows.core, tile.columns.core] = window[:, tile.rows.inner, tile.columns.inner]


def _whole_images(x: Tensor, batch: Batch) -> slice | None:
    """Which images a batch has where each window is a whole one: thousands of thumbnails are not copied one by one."""
    (first, tile), (last, _) = batch[0], batch[-1]
    cores = tile.rows.core, tile.columns.core
    return slice(first, last + 1) if all(core == slice(0, side) for core, side in zip(cores, x.shape[2:], strict=True)) else None


def _moved(windows: Tensor, device: torch.device) -> Tensor:
    """The windows on the device; a GPU fetches them from pinned memory by itself, while this process goes on."""
    if device.type == "cuda" and windows.device.type == "cpu" and not windows.requires_grad:
        return windows.pin_memory().to(device, non_blocking=True)
    return windows.to(device)


def fetched(result: Tensor, device: torch.device) -> Callable[[], Tensor]:
    """Begin to move a result to the device; the function returned waits for it, so that a GPU computes on in the meantime."""
    if result.device.type != "cuda" or device.type != "cpu" or result.requires_grad:
        moved = result.to(device)
        return lambda: moved
    # Of the same memory format, so that the GPU copies it as it lies and the CPU need not turn it round.
    host = torch.empty_like(result, device=device, pin_memory=True).copy_(result, non_blocking=True)
    copied = torch.cuda.current_stream(result.device).record_event()

    def wait() -> Tensor:
        copied.synchronize()
        return host

    return wait


def counted(parts: Iterator[Tensor], height: int, area: int, count: Callable[[int], None]) -> Iterator[Tensor]:
    """The parts of windows, of which `count` is told as they come: `area` pixels for `height` rows."""
    rows = 0
    for part in parts:
        before, rows = area * rows // height, rows + part.shape[2]
        count(area * rows // height - before)
        yield part


_switch = threading.Lock()
#: How many are within :func:`true_float32` now, and what the switch was before the first of them.
_within, _before = 0, True


@contextmanager
def true_float32(device: torch.device) -> Iterator[None]:
    """Keep CUDA's convolutions from rounding float32 to TF32, which would make float32 results depend on the tiling.

    The switch is the whole process's: the first of several threads sets it, the last one sets it back.
    """
    global _within, _before
    if device.type != "cuda":
        yield
        return
    with _switch:
        if _within == 0:
            _before = torch.backends.cudnn.allow_tf32
            torch.backends.cudnn.allow_tf32 = False
        _within += 1
    try:
        yield
    finally:
        with _switch:
            _within -= 1
            if _within == 0:
                torch.backends.cudnn.allow_tf32 = _before
