"""Noise that depends on a seed and on a pixel's place alone: the same in every tiling, batch and strip, and on every device."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from comdefend_cli.inference.windows import Batch

#: Side of the squares that noise is drawn in.
BLOCK = 64
#: Pixels after which it repeats, down and across: what is drawn once serves images of any size.
PERIOD = 16 * BLOCK


def batch_noise(batch: Batch, channels: int, seed: int, top: int, device: torch.device, *, own: bool) -> Tensor:
    """Standard normal noise for the windows of a batch, (N, channels, rows, columns), float32.

    Args:
        batch: the windows.
        channels: of the noise.
        seed: 0 or more.
        top: the row of the image that the windows' rows are counted from.
        device: where it is wanted.
        own: whether each image of the batch has noise of its own. Otherwise it is drawn once for each place, and where all windows
            lie in one place, N is 1.
    """
    drawn: dict[tuple[int, int, int], Tensor] = {}
    places = []
    for index, part in batch:
        rows, columns = slice(part.rows.window.start + top, part.rows.window.stop + top), part.columns.window
        place = (index if own else 0, rows.start, columns.start)
        if place not in drawn and own:
            drawn[place] = window_noise(mixed_seed(seed, index), channels, rows, columns).to(device)
        elif place not in drawn:
            drawn[place] = kept_noise(seed, channels, rows, columns, device)
        places.append(place)
    return torch.stack([drawn[place] for place in (places if len(drawn) > 1 else places[:1])])


def window_noise(seed: int, channels: int, rows: slice, columns: slice) -> Tensor:
    """Standard normal noise for one window of an image, (channels, rows, columns), float32, on the CPU."""
    out = np.empty((channels, rows.stop - rows.start, columns.stop - columns.start), np.float32)
    for y in range(rows.start // BLOCK, (rows.stop - 1) // BLOCK + 1):
        for x in range(columns.start // BLOCK, (columns.stop - 1) // BLOCK + 1):
            place = (y % (PERIOD // BLOCK), x % (PERIOD // BLOCK))
            stream = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, *place))))
            block = stream.standard_normal((channels, BLOCK, BLOCK), np.float32)
            block_rows, out_rows = _overlap(rows, y * BLOCK)
            block_columns, out_columns = _overlap(columns, x * BLOCK)
            out[:, out_rows, out_columns] = block[:, block_rows, block_columns]
    return torch.from_numpy(out)


def kept_noise(seed: int, channels: int, rows: slice, columns: slice, device: torch.device) -> Tensor:
    """:func:`window_noise` on a device, from one period that is drawn once and kept, except for small windows on the CPU."""
    if device.type == "cpu" and (rows.stop - rows.start) * (columns.stop - columns.start) < PERIOD**2:
        return window_noise(seed, channels, rows, columns)
    down, across = (torch.arange(side.start, side.stop, device=device) % PERIOD for side in (rows, columns))
    return _period(seed, channels, device)[:, down[:, None], across]


@lru_cache(maxsize=4)
def _period(seed: int, channels: int, device: torch.device) -> Tensor:
    whole = slice(0, PERIOD)
    return window_noise(seed, channels, whole, whole).to(device)


def mixed_seed(*numbers: int) -> int:
    """A seed of 64 bits made of several numbers of 0 or more, such as a seed and a count."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def _overlap(window: slice, origin: int) -> tuple[slice, slice]:
    """The part of a window in the block at `origin`, counted in the block and in the window."""
    start, stop = max(window.start, origin), min(window.stop, origin + BLOCK)
    return slice(start - origin, stop - origin), slice(start - window.start, stop - window.start)
