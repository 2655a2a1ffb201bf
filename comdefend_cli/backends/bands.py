"""A large window through the networks on a CPU in bands of rows: no row is computed twice, and a band's activations stay in the cache.

    rows of the window   |  a band of them goes through all layers before the next band begins
      v
    layer 1    [2 rows kept from the band before] + band  ->  as many rows, one row later
      v
    ...
    layer 18   [2 rows kept from the band before] + band  ->  as many rows, 18 rows later

A 3x3 convolution of a row needs the rows above and below it. So each layer keeps the last two rows of its input for the next band;
before the first band lies one row of zeros, after the last another: the padding that the whole window has, so the values are its too.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from comdefend_cli.network.model import HIDDEN, RADIUS, ComDefend, Conv3x3, ConvELU, binarize, elu_, to_image

#: Bytes of a band's widest activations for each thread: 8,192 pixels in float32, 16,384 in 16 bits. See the table of bands in
#: docs/performance.md.
THREAD_BYTES = 2**23
#: Threads from which a band no longer grows, as its activations, some 3 kB a pixel in float32, would fill the memory.
MOST_THREADS = 16


def band_pixels(dtype: torch.dtype) -> int:
    """Pixels of a band in networks of this dtype, over all images of a batch."""
    return THREAD_BYTES // (max(HIDDEN) * dtype.itemsize) * min(torch.get_num_threads(), MOST_THREADS)


@torch.no_grad()
def purify(model: ComDefend, x: Tensor, noise: Tensor | None = None, pixels: int | None = None) -> Iterator[Tensor]:
    """`model(x, noise)`, without gradient, from top to bottom.

    Args:
        model: both networks.
        x: (N, channels, H, W) in [0, 1], floating point.
        noise: for the logits, (N, bits, H, W), or None.
        pixels: of a band, over all N; None for what suits the CPU.

    Yields:
        float32 (N, channels, rows, W); H rows in all.
    """
    rec = _Layers(model.rec)
    for bits, last in _codes(model, x, noise, pixels):
        yield to_image(rec(bits, last))


@torch.no_grad()
def code(model: ComDefend, x: Tensor, noise: Tensor | None = None, pixels: int | None = None) -> Iterator[Tensor]:
    """The code likewise: (N, bits, rows, W) of zeros and ones."""
    for bits, _ in _codes(model, x, noise, pixels):
        yield bits


def _codes(model: ComDefend, x: Tensor, noise: Tensor | None, pixels: int | None) -> Iterator[tuple[Tensor, bool]]:
    """Bands of the code in the weights' dtype, each with whether it is the last."""
    com, dtype, done = _Layers(model.com), next(model.parameters()).dtype, 0
    for rows, last in _cut(x.shape[2], max(1, (pixels or band_pixels(dtype)) // (len(x) * x.shape[3]))):
        logits = com((x[:, :, rows] - 0.5).to(dtype).contiguous(memory_format=torch.channels_last), last)
        if noise is not None:
            logits = logits + noise[:, :, done : done + logits.shape[2]]
        done += logits.shape[2]
        yield binarize(logits).to(dtype), last


def _cut(height: int, rows: int) -> Iterator[tuple[slice, bool]]:
    """Bands of a window, each with whether it is the last; the first is longer by what the layers hold back."""
    start, stop = 0, rows + RADIUS
    while stop < height:
        yield slice(start, stop), False
        start, stop = stop, stop + rows
    yield slice(start, height), True


class _Layers:
    """The layers of one network, fed with bands from top to bottom."""

    def __init__(self, network: ConvELU) -> None:
        self._convolutions = [layer for layer in network if isinstance(layer, Conv3x3)]
        self._kept: list[Tensor | None] = [None] * len(self._convolutions)

    def __call__(self, band: Tensor, last: bool) -> Tensor:
        """(N, C, rows, W) to the rows that are complete by now."""
        for index, convolution in enumerate(self._convolutions):
            band = convolution.rows(self._joined(index, elu_(band) if index else band, last))
        return band

    def _joined(self, index: int, band: Tensor, last: bool) -> Tensor:
        """The band below what was kept of the one before, of which the last two rows are kept in turn."""
        zeros = torch.zeros_like(band[:, :, :1])
        kept = self._kept[index]
        rows = torch.cat([zeros if kept is None else kept, band, *[zeros] * last], 2)
        self._kept[index] = rows[:, :, -2:].clone(memory_format=torch.channels_last)
        return rows
