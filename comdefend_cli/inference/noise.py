"""Noise that depends on a seed and on a pixel's place alone: the same in every tiling, batch and strip, and on every device."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from comdefend_cli.inference.tiling import Batch

#: Side of the noise squares: noise is drawn one of them at a time.
SQUARE = 64
#: Pixels after which it repeats, down and across: what is drawn once serves images of any size.
PERIOD = 16 * SQUARE


def draw_batch(batch: Batch, channels: int, seed: int, top: int, device: torch.device, *, own: bool) -> Tensor:
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
            drawn[place] = draw_window(mix_seed(seed, index), channels, rows, columns).to(device)
        elif place not in drawn:
            drawn[place] = take_window(seed, channels, rows, columns, device)
        places.append(place)
    return torch.stack([drawn[place] for place in (places if len(drawn) > 1 else places[:1])])


def draw_window(seed: int, channels: int, rows: slice, columns: slice) -> Tensor:
    """Standard normal noise for one window of an image, (channels, rows, columns), float32, on the CPU."""
    out = np.empty((channels, rows.stop - rows.start, columns.stop - columns.start), np.float32)
    for y in range(rows.start // SQUARE, (rows.stop - 1) // SQUARE + 1):
        for x in range(columns.start // SQUARE, (columns.stop - 1) // SQUARE + 1):
            place = (y % (PERIOD // SQUARE), x % (PERIOD // SQUARE))
            stream = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, *place))))
            square = stream.standard_normal((channels, SQUARE, SQUARE), np.float32)
            square_rows, out_rows = _find_overlap(rows, y * SQUARE)
            square_columns, out_columns = _find_overlap(columns, x * SQUARE)
            out[:, out_rows, out_columns] = square[:, square_rows, square_columns]
    return torch.from_numpy(out)


def take_window(seed: int, channels: int, rows: slice, columns: slice, device: torch.device) -> Tensor:
    """:func:`draw_window` on a device, from one period that is drawn once and kept, except for small windows on the CPU."""
    if device.type == "cpu" and (rows.stop - rows.start) * (columns.stop - columns.start) < PERIOD**2:
        return draw_window(seed, channels, rows, columns)
    down, across = (torch.arange(side.start, side.stop, device=device) % PERIOD for side in (rows, columns))
    return _draw_period(seed, channels, device)[:, down[:, None], across]


@lru_cache(maxsize=4)
def _draw_period(seed: int, channels: int, device: torch.device) -> Tensor:
    whole = slice(0, PERIOD)
    return draw_window(seed, channels, whole, whole).to(device)


def mix_seed(*numbers: int) -> int:
    """A seed of 64 bits made of several numbers of 0 or more, such as a seed and a count."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def _find_overlap(window: slice, origin: int) -> tuple[slice, slice]:
    """The part of a window in the noise square at `origin`, counted in the square and in the window."""
    start, stop = max(window.start, origin), min(window.stop, origin + SQUARE)
    return slice(start - origin, stop - origin), slice(start - window.start, stop - window.start)
