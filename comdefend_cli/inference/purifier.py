"""`Purifier`: an image, an array or a tensor in, the same kind out, at any size, in bounded memory."""

from __future__ import annotations

import copy
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from comdefend_cli.backends import bands
from comdefend_cli.backends.select import Engine, describe, make_engine, resolve_backend
from comdefend_cli.errors import UsageError
from comdefend_cli.inference.noise import batch_noise, mixed_seed
from comdefend_cli.inference.tiles import Tile, exact_grid, paper_grid
from comdefend_cli.inference.windows import IN_FLIGHT, Batch, batches, counted, fetched, filled, stacked, true_float32
from comdefend_cli.network.model import GRADIENTS, ComDefend, Gradient
from comdefend_cli.network.registry import DEFAULT_COLOR, DEFAULT_GRAY, load_weights
from comdefend_cli.network.weight_file import Weights
from comdefend_cli.runtime.device import dtype_name, resolve_device, resolve_precision

if TYPE_CHECKING:
    from PIL import Image

    ImageT = TypeVar("ImageT", Tensor, np.ndarray, Image.Image)

Tiling = Literal["exact", "paper"]
#: Called with the number of pixels done since the last call; a negative one where memory ran out and they are done again.
Progress = Callable[[int], None]

#: ITU-R BT.601 luma, as Pillow turns colour into grey.
LUMA = (0.299, 0.587, 0.114)
#: Tile sides and window pixels a batch, by device. A larger tile takes more memory, a smaller one computes more of its halo twice:
#: at 512 a side 15 % more pixels than the image has, at 128 64 %. On the CPU a tile goes through in bands, see `bands`, and its
#: memory is little more than its pixels; not so where gradients are wanted. Batches of so many pixels are OpenVINO's on a CPU;
#: PyTorch's are no larger than bands.
DEFAULT_TILE = {"cpu": 2048, "cuda": 1024, "mps": 512}
GRADIENT_TILE = 512
BATCH_PIXELS = {"cpu": 64 * 32 * 32, "cuda": 2**22, "mps": 2**20}
SMALLEST_TILE = 32
#: Streams of noise that one seed has; never 0, which `mixed_seed` does not tell from no number.
_INPUT, _LOGITS = 1, 2


@dataclass(frozen=True)
class Settings:
    """How images are purified; everything here but `tile` changes the result.

    Attributes:
        tiling: "exact" for the whole-image result, "paper" for independent 32x32 patches.
        tile: side of a tile in pixels, or None for the device's default.
        noise_std: standard deviation of Gaussian noise on the logits; the authors' release uses 1, 0 is none.
        seed: of the noise, which depends on it and on a pixel's place alone: each image, of a batch too, and each call has the same.
        noise_per_image: give each image of a batch noise of its own, by its place in the batch.
        gradient: what `backward` sees at the rounding, see :func:`comdefend_cli.network.model.binarize`.
        input_noise: standard deviation of Gaussian noise on the image, in 8-bit levels, which drowns an attack before weights that
            were trained to remove noise rebuild the image (denoised smoothing, Salman et al., NeurIPS 2020). 0 is none, None
            what the weights are made for, as their file says.
        samples: images rebuilt from as many draws of the noise; their mean is the result. Networks without noise rebuild one.

    Raises:
        UsageError: a value out of range.
    """

    tiling: Tiling = "exact"
    tile: int | None = None
    noise_std: float = 0.0
    seed: int = 0
    noise_per_image: bool = False
    gradient: Gradient = "straight-through"
    input_noise: float | None = None
    samples: int = 1

    def __post_init__(self) -> None:
        if self.tiling not in ("exact", "paper"):
            raise UsageError(f"unknown tiling {self.tiling!r}: use exact or paper")
        if self.tile is not None and self.tile < 1:
            raise UsageError(f"a tile must be at least 1 pixel a side, not {self.tile}")
        for std in (self.noise_std, self.input_noise or 0.0):
            if not 0 <= std < float("inf"):
                raise UsageError(f"the noise's standard deviation must be 0 or more, not {std}")
        if self.samples < 1:
            raise UsageError(f"there must be at least one sample, not {self.samples}")
        if self.samples > 1 and self.input_noise == 0 == self.noise_std:
            raise UsageError("several samples need noise: without it all of them are the same image")
        if self.seed < 0:
            raise UsageError(f"a seed must be 0 or more, not {self.seed}")
        if self.gradient not in GRADIENTS:
            raise UsageError(f"unknown gradient {self.gradient!r}: use one of {', '.join(GRADIENTS)}")

    @property
    def random(self) -> bool:
        """Whether noise is asked for; the weights' own, which is the same for every image and call, is a part of the purifier."""
        return self.noise_std > 0 or (self.input_noise or 0) > 0


class Purifier(nn.Module):
    """Purifies images with ComDefend; `nn.Sequential(purifier, classifier)` defends a classifier.

    Args:
        color: networks for three channels, or None.
        gray: networks for one channel, or None. At least one of the two.
        settings: tiling, noise and gradient.

    Raises:
        UsageError: no networks at all; several samples where there is no noise.

    Without networks for grey, a grey image goes through the colour ones, repeated, and its
    luma comes back; without networks for colour, a colour image is an error.
    The networks' device and dtype are where and in what is computed; `.to(...)` moves them.
    """

    def __init__(self, color: ComDefend | None, gray: ComDefend | None = None, settings: Settings | None = None) -> None:
        super().__init__()
        if color is None and gray is None:
            raise UsageError("a purifier needs networks for colour or for grey images")
        self.color = color
        self.gray = gray
        self.settings = settings or Settings()
        if self.settings.samples > 1 and not self.settings.noise_std and not any(map(self.input_noise, (1, 3))):
            raise UsageError("several samples need noise, and these weights have none of their own: give some on the image or its code")
        #: What computes in place of the networks of so many channels, see `comdefend_cli.backends`; empty for PyTorch. They go
        #: where the module is moved to a GPU or is given other weights; Triton's with any move.
        self.engines: dict[int, Engine] = {}
        self.register_load_state_dict_post_hook(_forget_engines)  # type: ignore[no-untyped-call]
        self._batch_pixels: int | None = None  # Less than the device's default once memory ran out.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Purifier:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if next(self.parameters()).device.type != "cpu" or self.backend == "triton":
            self.engines.clear()
        return self

    @classmethod
    def from_pretrained(
        cls,
        weights: str | Path | None = None,
        *,
        device: str | torch.device = "auto",
        precision: str = "auto",
        backend: str = "torch",
        settings: Settings | None = None,
    ) -> Purifier:
        """A purifier with weights that ship, or with a file's.

        Args:
            weights: a name that `comdefend weights list` prints, or a weight file; None takes
                the default for colour together with the default for grey.
            device: "auto", "cpu", "cuda", "cuda:N" or "mps".
            precision: "auto", "float32", "bfloat16" or "float16"; with OpenVINO also "int8", where the weights hold such networks, with
                Triton "float8".
            backend: "torch", "openvino" (extra [openvino]; CPU only), "triton" (NVIDIA GPUs, Linux only), or "auto" for the fastest one
                that is installed. :meth:`code`, gradients and noise on the code are PyTorch's alone.
            settings: tiling, noise and gradient.

        Raises:
            UsageError: unknown weights, or a device, precision or backend that is not there.
            WeightsError: the weights cannot be read or were changed.
        """
        names = (str(weights),) if weights else (DEFAULT_COLOR, DEFAULT_GRAY)
        loaded = [load_weights(name) for name in names]
        return cls.from_weights(loaded, device=device, precision=precision, backend=backend, settings=settings)

    @classmethod
    def from_weights(
        cls,
        loaded: list[Weights],
        *,
        device: str | torch.device = "auto",
        precision: str = "auto",
        backend: str = "torch",
        settings: Settings | None = None,
    ) -> Purifier:
        """As :meth:`from_pretrained`, from weights that were loaded already."""
        if device == "auto" and backend == "openvino":
            device = "cpu"
        target = resolve_device(str(device))
        noisy, quantized = settings is not None and settings.noise_std > 0, any(item.quantized for item in loaded)
        chosen = resolve_backend(backend, target, precision, noisy=noisy, quantized=quantized)
        # PyTorch's networks, which stand behind those of 8 bits, are in what the device computes fastest.
        dtype = resolve_precision("auto" if precision in ("int8", "float8") else precision, target)
        models = {item.header.architecture.channels: copy.deepcopy(item.model) for item in loaded}  # `loaded` stays as it is.
        purifier = cls(models.get(3), models.get(1), settings)
        purifier.to(target, dtype).eval()
        for item in loaded:
            channels = item.header.architecture.channels
            if engine := make_engine(chosen, item, models[channels], precision):
                purifier.engines[channels] = engine
        return purifier

    @property
    def backend(self) -> str:
        """ "torch", "openvino" or "triton"."""
        return next((engine.name for engine in self.engines.values()), "torch")

    @property
    def precision(self) -> str:
        """What is computed in: "float32", "bfloat16", "float16", "float8" or "int8"."""
        names = {engine.precision for engine in self.engines.values()} or {dtype_name(next(self.parameters()).dtype)}
        return "+".join(sorted(names))

    @property
    def how(self) -> str:
        """ "bfloat16", or "int8 with openvino": for people, and for telling results apart."""
        return describe(self.precision, self.backend)

    def forward(self, image: ImageT) -> ImageT:
        """Purify.

        Args:
            image: a float tensor (N, C, H, W) in [0, 1] on any device, with C = 1 or 3; a uint8 tensor of that
                shape; a uint8 array (H, W), (H, W, C) or (N, H, W, C); or a Pillow image of any mode
                (alpha is kept untouched, other modes come back as RGB or L).

        Returns:
            The same kind, shape, dtype and device. Integer results are rounded. A tensor that requires a
            gradient gets one by `settings.gradient`; the values are the same without it.

        Raises:
            TypeError, ValueError: an input of another kind, shape or dtype.
            UsageError: a colour image and networks for grey ones only; a gradient, or noise on the code, without PyTorch's backend.
        """
        if isinstance(image, Tensor):
            return self.purify(image)
        if isinstance(image, np.ndarray):
            return _through_tensor(image, self.purify)
        from comdefend_cli.imaging.conversion import from_pillow

        raster = from_pillow(image)
        return replace(raster, pixels=self(raster.pixels)).to_pillow()

    def purify(self, x: Tensor, progress: Progress | None = None, top: int = 0) -> Tensor:
        """:meth:`forward` for tensors, which also tells how far it is.

        Args:
            x: (N, C, H, W), float in [0, 1] or uint8.
            progress: called after each batch, of a large image after each band of rows, with the number of pixels done since.
            top: the row of the image that x begins with, where x is a strip of it: noise belongs to places.
        """
        route = self._route(x)
        samples = self.settings.samples if self.settings.noise_std or self.input_noise(route.model.architecture.channels) else 1

        def rebuilt(windows: Tensor, batch: Batch, sample: int) -> Iterator[Tensor]:
            noise = self._logit_noise(batch, route.model, sample, top)
            noisy = self._noisy(windows, batch, route.model, sample, top)
            if route.engine:
                return iter([route.engine(noisy)])
            if _large(noisy, route.model) and not noisy.requires_grad:
                return bands.purify(route.model, noisy, noise)
            return iter([route.model(noisy, noise, self.settings.gradient if noisy.requires_grad else "none")])

        def network(windows: Tensor, batch: Batch) -> Iterator[Tensor]:
            adapted = route.adapt(windows)
            parts = rebuilt(adapted, batch, 0)
            if samples > 1:
                others = [torch.cat(list(rebuilt(adapted, batch, sample)), 2) for sample in range(1, samples)]
                parts = iter([torch.stack([torch.cat(list(parts), 2), *others]).mean(0)])
            # torch.round goes to the even neighbour; a level of exactly one half is as good either way.
            for part in map(route.restore, parts):
                yield (part * 255).round().to(torch.uint8) if x.dtype == torch.uint8 else part.to(x.dtype)

        wanted = torch.is_grad_enabled() and x.requires_grad and self.settings.gradient != "none"
        if route.engine and (wanted or self.settings.noise_std > 0):
            raise UsageError(f"the {route.engine.name} backend has neither gradients nor noise on the code: use backend='torch'")
        with torch.set_grad_enabled(wanted):
            return self._in_tiles(x, torch.empty_like, route, network, progress)

    @torch.no_grad()
    def code(self, x: Tensor) -> Tensor:
        """The code of zeros and ones that the image is rebuilt from (section 3.5); of several samples, the first one's.

        Args:
            x: (N, C, H, W), float in [0, 1] or uint8.

        Returns:
            uint8 (N, bits, H, W), on x's device.
        """
        route = self._route(x)
        bits = route.model.architecture.bits

        def room(x: Tensor) -> Tensor:
            return torch.empty((len(x), bits, *x.shape[2:]), dtype=torch.uint8, device=x.device)

        def network(windows: Tensor, batch: Batch) -> Iterator[Tensor]:
            noisy, noise = self._noisy(route.adapt(windows), batch, route.model), self._logit_noise(batch, route.model)
            parts = bands.code(route.model, noisy, noise) if _large(noisy, route.model) else iter([route.model.code(noisy, noise)])
            return (part.to(torch.uint8) for part in parts)

        return self._in_tiles(x, room, replace(route, engine=None), network, None)

    def _route(self, x: Tensor) -> _Route:
        """The networks for a batch, and what turns it into their channels and back."""
        if x.ndim != 4 or x.shape[1] not in (1, 3) or x.numel() == 0:
            raise ValueError(f"expected a tensor (N, C, H, W) with 1 or 3 channels and no empty side, not {tuple(x.shape)}")
        if x.dtype != torch.uint8 and not x.is_floating_point():
            raise TypeError(f"expected a floating-point or uint8 tensor, not {x.dtype}")
        if x.shape[1] == 1 and self.gray is not None:
            return _Route(self.gray, self.engines.get(1))
        if self.color is None:
            raise UsageError("these weights are for grey images: give weights for colour, or turn the image grey")
        engine = self.engines.get(3)
        return _Route(self.color, engine) if x.shape[1] == 3 else _Route(self.color, engine, _repeat, _luma)

    def _in_tiles(self, x: Tensor, room: Callable[[Tensor], Tensor], route: _Route, network: _Network, progress: Progress | None) -> Tensor:
        """Run `network` over windows of x, and put each window's core into what `room` makes for x.

        When memory runs out, x is begun again in smaller tiles and batches.
        """
        parameter = next(route.model.parameters())
        device = parameter.device
        usual = GRADIENT_TILE if torch.is_grad_enabled() else DEFAULT_TILE[device.type]
        tile = self.settings.tile or (route.engine.tile(x.shape[2] * x.shape[3]) if route.engine else usual)
        usual_batch = BATCH_PIXELS[device.type] if route.engine or device.type != "cpu" else bands.band_pixels(parameter.dtype)
        batch_pixels = self._batch_pixels or usual_batch
        done = 0

        def count(pixels: int) -> None:
            nonlocal done
            done += pixels
            if progress:
                progress(pixels)

        while True:
            try:
                return self._stitched(x, room(x), device, network, tile, batch_pixels, count)
            except RuntimeError as error:
                if not is_out_of_memory(error) or (tile <= SMALLEST_TILE and batch_pixels <= SMALLEST_TILE**2):
                    raise
            if device.type == "cuda":
                torch.cuda.empty_cache()
            tile, batch_pixels = min(tile, max(tile // 2, SMALLEST_TILE)), max(batch_pixels // 4, SMALLEST_TILE**2)
            self.settings, self._batch_pixels = replace(self.settings, tile=tile), batch_pixels
            count(-done)
            warnings.warn(f"out of memory: going on with tiles of {tile} pixels", RuntimeWarning, stacklevel=2)

    def _stitched(
        self, x: Tensor, out: Tensor, device: torch.device, network: _Network, tile: int, batch_pixels: int, count: Progress
    ) -> Tensor:
        """`out`, filled tile by tile in batches."""
        computing: deque[tuple[Batch, Callable[[], Tensor]]] = deque()

        def fill() -> None:
            batch, result = computing.popleft()
            filled(out, batch, result())

        with true_float32(device):
            for batch in batches(self._grid(x, tile), len(x), batch_pixels):
                windows = stacked(x, batch, device)
                area = sum(part.area for _, part in batch)
                result = torch.cat(list(counted(network(windows, batch), windows.shape[2], area, count)), 2)
                computing.append((batch, fetched(result, out.device)))
                if len(computing) > IN_FLIGHT[device.type]:
                    fill()
            while computing:
                fill()
        return out

    def _grid(self, x: Tensor, tile: int) -> list[Tile]:
        height, width = x.shape[2:]
        return paper_grid(height, width) if self.settings.tiling == "paper" else exact_grid(height, width, tile)

    def input_noise(self, channels: int) -> float:
        """Standard deviation of the noise before the networks of so many channels, in 8-bit levels: as asked for, or the weights' own."""
        asked = self.settings.input_noise
        model = self.color if channels == 3 else self.gray
        return asked if asked is not None else model.input_noise if model is not None else 0.0

    def _noisy(self, windows: Tensor, batch: Batch, model: ComDefend, sample: int = 0, top: int = 0) -> Tensor:
        """The windows with noise of the image's place on them, clipped to [0, 1] as in training."""
        std = self.input_noise(model.architecture.channels)
        if std == 0:
            return windows
        seed = mixed_seed(self.settings.seed, sample, _INPUT)
        noise = batch_noise(batch, windows.shape[1], seed, top, windows.device, own=self.settings.noise_per_image)
        return torch.add(windows, noise, alpha=std / 255).clamp_(0, 1)

    def _logit_noise(self, batch: Batch, model: ComDefend, sample: int = 0, top: int = 0) -> Tensor | None:
        if self.settings.noise_std == 0:
            return None
        seed = mixed_seed(self.settings.seed, sample, _LOGITS) if sample else self.settings.seed
        device = next(model.parameters()).device
        return batch_noise(batch, model.architecture.bits, seed, top, device, own=self.settings.noise_per_image) * self.settings.noise_std


def _forget_engines(purifier: Purifier, keys: object) -> None:
    """After other weights were loaded into PyTorch's networks, which the engines do not have."""
    purifier.engines.clear()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the device or beside it; of PyTorch's errors, only CUDA's says so by its type."""
    known = ("out of memory", "can't allocate memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in known)


#: Windows of a batch to the result, in one part or from top to bottom in several.
_Network = Callable[[Tensor, Batch], Iterator[Tensor]]


def _large(windows: Tensor, model: ComDefend) -> bool:
    """Whether each window is large enough to go through the networks in bands; batches of small ones are faster at once."""
    return windows.device.type == "cpu" and windows[0, 0].numel() > bands.band_pixels(next(model.parameters()).dtype)


def _same(x: Tensor) -> Tensor:
    return x


def _repeat(x: Tensor) -> Tensor:
    return x.expand(-1, 3, -1, -1)


def _luma(x: Tensor) -> Tensor:
    return (x * x.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


@dataclass(frozen=True)
class _Route:
    """Networks, and what turns a batch into their channels and their result back."""

    model: ComDefend
    engine: Engine | None
    adapt: Callable[[Tensor], Tensor] = _same
    restore: Callable[[Tensor], Tensor] = _same


def _through_tensor(array: np.ndarray, purify: Callable[[Tensor], Tensor]) -> np.ndarray:
    """Purify a uint8 array (H, W), (H, W, C) or (N, H, W, C) as a tensor (N, C, H, W)."""
    if array.dtype != np.uint8:
        raise TypeError(f"expected a uint8 array, not {array.dtype}; give floats as a tensor (N, C, H, W) in [0, 1]")
    if array.ndim not in (2, 3, 4):
        raise ValueError(f"expected an array (H, W), (H, W, C) or (N, H, W, C), not {array.shape}")
    pixels = array[..., None] if array.ndim == 2 else array
    batch = torch.from_numpy(np.ascontiguousarray(pixels if array.ndim == 4 else pixels[None]))
    return purify(batch.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous().numpy().reshape(array.shape)
