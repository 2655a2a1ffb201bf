"""Windows of images on their way to the networks and back: stacked, computed batch by batch, and their cores put into place."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from comdefend_cli.inference.tiling import Batch, Tile, batch_windows, cut_patches, cut_tiles
from comdefend_cli.runtime.device import is_out_of_memory, keep_float32

#: Called with the number of pixels done since the last call; a negative one where memory ran out and they are done again.
Progress = Callable[[int], None]
#: From windows, float32 (N, C, H, W) in [0, 1], to their result, in one part or from top to bottom in several.
Network = Callable[[Tensor, Batch], Iterator[Tensor]]

#: Batches that a device has still to compute when the next one is given to it.
IN_FLIGHT = {"cpu": 0, "cuda": 1, "mps": 0}
#: Side of a tile below which it is not cut further when memory runs out.
SMALLEST_TILE = 32


@dataclass(frozen=True)
class Plan:
    """How an image is cut.

    Attributes:
        device: where windows are computed.
        tile: side of a tile, in pixels; None for the paper's patches.
        batch_pixels: pixels of the windows of a batch, at most, but one window goes through at any rate.
        halo: pixels that windows reach beyond their tiles.
        step: side of the squares of pixels whose grid windows begin on.
    """

    device: torch.device
    tile: int | None
    batch_pixels: int
    halo: int
    step: int = 1

    def cut(self, height: int, width: int) -> list[Tile]:
        """The grid of an image of that size."""
        return cut_patches(height, width) if self.tile is None else cut_tiles(height, width, self.tile, self.halo, self.step)

    def shrink(self) -> Plan | None:
        """One that takes less memory; None where there is none."""
        tile = self.tile and min(self.tile, max(self.tile // 2, SMALLEST_TILE))
        smaller = replace(self, tile=tile, batch_pixels=min(self.batch_pixels, max(self.batch_pixels // 4, SMALLEST_TILE**2)))
        return None if smaller == self else smaller

    def fit(self, other: Plan | None) -> Plan:
        """The same with tiles and batches no larger than another's, which the device's memory held."""
        if other is None or other.device != self.device:
            return self
        tile = self.tile if self.tile is None or other.tile is None else min(self.tile, other.tile)
        return replace(self, tile=tile, batch_pixels=min(self.batch_pixels, other.batch_pixels))


def run_in_tiles(
    x: Tensor, room: Callable[[Tensor], Tensor], network: Network, plan: Plan, progress: Progress | None
) -> tuple[Tensor, Plan]:
    """Run `network` over windows of x, and put each window's core into what `room` makes for x.

    When memory runs out, x is begun again in smaller tiles and batches.

    Returns:
        What `room` made, filled; and the plan that memory held.
    """
    done = 0

    def count(pixels: int) -> None:
        nonlocal done
        done += pixels
        if progress:
            progress(pixels)

    while True:
        try:
            return _stitch(x, room(x), network, plan, count), plan
        except (MemoryError, RuntimeError) as error:
            smaller = plan.shrink()
            if smaller is None or not is_out_of_memory(error):
                raise
        if plan.device.type == "cuda":
            torch.cuda.empty_cache()
        plan = smaller
        count(-done)
        size = f"batches of {plan.batch_pixels}" if plan.tile is None else f"tiles of {plan.tile}"
        warnings.warn(f"out of memory: going on with {size} pixels", RuntimeWarning, stacklevel=2)


def _stitch(x: Tensor, out: Tensor, network: Network, plan: Plan, count: Progress) -> Tensor:
    """`out`, filled batch by batch."""
    computing: deque[tuple[Batch, Callable[[], Tensor]]] = deque()

    def fill() -> None:
        batch, result = computing.popleft()
        fill_cores(out, batch, result())

    with keep_float32(plan.device):
        for batch in batch_windows(plan.cut(*x.shape[2:]), len(x), plan.batch_pixels):
            windows = stack_windows(x, batch, plan.device)
            area = sum(part.area for _, part in batch)
            result = torch.cat(list(_count_parts(network(windows, batch), windows.shape[2], area, count)), 2)
            computing.append((batch, _fetch(result, out.device)))
            if len(computing) > IN_FLIGHT[plan.device.type]:
                fill()
        while computing:
            fill()
    return out


def stack_windows(x: Tensor, batch: Batch, device: torch.device) -> Tensor:
    """The windows of a batch, stacked on the device, float32 in [0, 1], channels last."""
    windows = join_windows(x, batch)
    if windows.dtype != torch.uint8:
        return _move(windows.float(), device).contiguous(memory_format=torch.channels_last)  # A device may not know the dtype.
    # Levels are moved and turned as bytes, so that there is one copy in float32 and not three.
    return _move(windows, device).contiguous(memory_format=torch.channels_last).float().div_(255)


def join_windows(x: Tensor, batch: Batch) -> Tensor:
    """The windows of a batch (N, C, H, W), their channels last where they are so in x: to turn them round takes three times as long."""
    if run := _find_whole_images(x, batch):
        return x[run]
    windows = [x[index, :, tile.rows.window, tile.columns.window] for index, tile in batch]
    if x.stride(1) != 1:
        return torch.stack(windows)
    return torch.stack([window.permute(1, 2, 0) for window in windows]).permute(0, 3, 1, 2)


def fill_cores(out: Tensor, batch: Batch, result: Tensor) -> None:
    """Put the cores of a batch's windows, which the networks made `result` of, into their places."""
    if run := _find_whole_images(out, batch):
        out[run] = result
        return
    for (index, tile), window in zip(batch, result, strict=True):
        out[index, :, tile.rows.core, tile.columns.core] = window[:, tile.rows.inner, tile.columns.inner]


def _find_whole_images(x: Tensor, batch: Batch) -> slice | None:
    """Which images a batch has where each window is a whole one: thousands of thumbnails are not copied one by one."""
    (first, tile), (last, _) = batch[0], batch[-1]
    cores = tile.rows.core, tile.columns.core
    return slice(first, last + 1) if all(core == slice(0, side) for core, side in zip(cores, x.shape[2:], strict=True)) else None


def _move(windows: Tensor, device: torch.device) -> Tensor:
    """The windows on the device; a GPU fetches them from pinned memory by itself, while this process goes on."""
    if device.type == "cuda" and windows.device.type == "cpu" and not windows.requires_grad:
        return windows.pin_memory().to(device, non_blocking=True)
    return windows.to(device)


def _fetch(result: Tensor, device: torch.device) -> Callable[[], Tensor]:
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


def _count_parts(parts: Iterator[Tensor], height: int, area: int, count: Progress) -> Iterator[Tensor]:
    """The parts of windows, of which `count` is told as they come: `area` pixels for `height` rows."""
    rows = 0
    for part in parts:
        before, rows = area * rows // height, rows + part.shape[2]
        count(area * rows // height - before)
        yield part
