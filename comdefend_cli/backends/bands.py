"""A large window through the networks on a CPU in bands of rows: no row is computed twice, and a band's activations stay in the cache.

    rows of the window   |  a band of them goes through all layers before the next band begins
      v
    layer 1    [2 rows kept from the band before] + band  ->  as many rows, one row later
      v
    ...
    layer 18   [2 rows kept from the band before] + band  ->  as many rows, 18 rows later

Where the layers see squares of pixels as channels, the rows are rows of squares.

A 3x3 convolution of a row needs the rows above and below it. So each layer keeps the last two rows of its input for the next band;
before the first band lies one row of zeros, after the last another: the padding that the whole window has, so the values are its too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, leaky_relu_

from comdefend_cli.network.layers import ELU, SLOPE, Conv3x3, LeakyReLU, Residual
from comdefend_cli.network.model import ComDefend, Network

#: Bytes of a band's widest activations for each thread: of the paper's networks 8,192 pixels in float32, 16,384 in 16 bits. See the
#: table of bands in docs/performance.md.
THREAD_BYTES = 2**23
#: Threads from which a band no longer grows, as its activations, some 3 kB a pixel in float32, would fill the memory.
MOST_THREADS = 16


def count_band_pixels(model: ComDefend) -> int:
    """Pixels of a band in these networks, over all images of a batch."""
    return THREAD_BYTES // (model.architecture.widest * model.com.dtype.itemsize) * min(torch.get_num_threads(), MOST_THREADS)


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
    return _run(model.forward, model, x, noise, pixels)


def encode(model: ComDefend, x: Tensor, noise: Tensor | None = None, pixels: int | None = None) -> Iterator[Tensor]:
    """The code likewise, `model.encode(x, noise)`: (N, bits, rows, W) of zeros and ones."""
    return _run(model.encode, model, x, noise, pixels)


@torch.no_grad()
def _run(forward: Callable[..., Tensor], model: ComDefend, x: Tensor, noise: Tensor | None, pixels: int | None) -> Iterator[Tensor]:
    """What `forward`, a method of the model, makes of each band in turn."""
    bands, height, coded = _Bands(), x.shape[2], 0
    scale = model.architecture.scale
    most = max(1, (pixels or count_band_pixels(model)) // (len(x) * x.shape[3] * scale)) * scale
    for start, stop in _cut(height, most, model.halo):
        bands.last = stop == height
        rows = slice(coded, stop if bands.last else stop - model.com.radius)  # Those of the code that will be complete.
        yield forward(x[:, :, start:stop], None if noise is None else noise[:, :, rows], compute=bands)
        coded = rows.stop


def _cut(height: int, rows: int, held: int) -> Iterator[tuple[int, int]]:
    """First row, and the one after the last, of the bands of a window; the first is longer by the rows that the layers hold back."""
    start, stop = 0, rows + held
    while stop < height:
        yield start, stop
        start, stop = stop, stop + rows
    yield start, height


class _Bands:
    """Computes the layers of networks, fed with bands from top to bottom: of each the rows that are complete by then.

    Attributes:
        last: whether the band is the last one.
    """

    def __init__(self) -> None:
        self.last = False
        self._kept: dict[nn.Module, Tensor] = {}

    def __call__(self, network: Network, band: Tensor) -> Tensor:
        """(N, C, rows, W) to (N, another C, other rows, W)."""
        band = band.contiguous(memory_format=torch.channels_last)
        for layer in network:
            match layer:
                case Conv3x3():
                    band = self._convolve(layer, band)
                case Residual():
                    inner = self._convolve(layer.second, leaky_relu_(self._convolve(layer.first, leaky_relu(band, SLOPE)), SLOPE))
                    band = inner.add_(self._delay(layer, band, inner.shape[2]))
                case ELU() | LeakyReLU():
                    band = layer(band)
                case _:
                    raise TypeError(f"bands do not know {layer}")
        return band

    def _delay(self, layer: Residual, band: Tensor, rows: int) -> Tensor:
        """The first rows of the band below what was kept of the one before; the others are kept in turn."""
        joined = torch.cat([self._kept[layer], band], 2) if layer in self._kept else band
        self._kept[layer] = joined[:, :, rows:].clone(memory_format=torch.channels_last)
        return joined[:, :, :rows]

    def _convolve(self, layer: Conv3x3, band: Tensor) -> Tensor:
        """The layer's rows of the band below what was kept of the one before, of which the last two rows are kept in turn."""
        zeros = torch.zeros_like(band[:, :, :1])
        rows = torch.cat([self._kept.get(layer, zeros), band, *[zeros] * self.last], 2)
        self._kept[layer] = rows[:, :, -2:].clone(memory_format=torch.channels_last)
        return layer.rows(rows)
