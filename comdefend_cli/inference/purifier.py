"""`Purifier`: an image, an array or a tensor in, the same kind out, at any size, in bounded memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from comdefend_cli.backends import bands
from comdefend_cli.backends.select import Engine, describe, make_engine, resolve_backend
from comdefend_cli.errors import UsageError
from comdefend_cli.inference.arrays import purify_array
from comdefend_cli.inference.passes import Pass, Route, repeat_gray
from comdefend_cli.inference.ranges import check_range
from comdefend_cli.inference.settings import Settings
from comdefend_cli.inference.stitching import Network, Plan, Progress, run_in_tiles
from comdefend_cli.inference.tiling import Batch
from comdefend_cli.inference.tiny import find_enlargement, purify_enlarged
from comdefend_cli.network.architecture import PaperArchitecture
from comdefend_cli.network.luma import take_luma
from comdefend_cli.network.model import ComDefend
from comdefend_cli.network.registry import DEFAULT_COLOR, DEFAULT_GRAY, load_weights
from comdefend_cli.network.weight_file import Weights
from comdefend_cli.runtime.device import FUSED_PRECISIONS, dtype_name, resolve_device, resolve_precision, warn_of_emulation

if TYPE_CHECKING:
    from PIL import Image

    ImageT = TypeVar("ImageT", Tensor, np.ndarray, Image.Image)

#: Tile sides and window pixels a batch, by device. A larger tile takes more memory, a smaller one computes more of its halo twice:
#: at 512 a side 15 % more pixels than the image has, at 128 64 %. On the CPU a tile goes through in bands, see `bands`, and its
#: memory is little more than its pixels; not so where gradients are wanted. Batches of so many pixels are OpenVINO's on a CPU;
#: PyTorch's are no larger than bands.
DEFAULT_TILE = {"cpu": 2048, "cuda": 1024, "mps": 512}
GRADIENT_TILE = 512
BATCH_PIXELS = {"cpu": 64 * 32 * 32, "cuda": 2**22, "mps": 2**20}


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
        self._held: Plan | None = None  # Tiles and batches that memory held, once it ran out.
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
        paper = all(isinstance(item.header.architecture, PaperArchitecture) for item in loaded)
        chosen = resolve_backend(backend, target, precision, noisy=noisy, quantized=quantized, paper=paper)
        if chosen == "torch":
            warn_of_emulation(precision, target)
        # PyTorch's networks, which stand behind those of 8 bits, are in what the device computes fastest.
        dtype = resolve_precision("auto" if precision in FUSED_PRECISIONS else precision, target)
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
            TypeError, ValueError: an input of another kind, shape or dtype, or a tensor with values outside [0, 1].
            UsageError: a colour image and networks for grey ones only; a gradient, or noise on the code, without PyTorch's backend.
        """
        if isinstance(image, Tensor):
            return self.purify(image)
        if isinstance(image, np.ndarray):
            return purify_array(image, self.purify)
        from comdefend_cli.imaging.conversion import from_pillow

        raster = from_pillow(image)
        return replace(raster, pixels=self(raster.pixels)).to_pillow()

    def purify(self, x: Tensor, progress: Progress | None = None, top: int = 0) -> Tensor:
        """:meth:`forward` for tensors, which also tells how far it is.

        Args:
            x: (N, C, H, W), float in [0, 1] or uint8.
            progress: called after each batch, of a large image after each band of rows, with the number of pixels done since.
            top: the row of the image that x begins with, where x is a strip of it: noise belongs to places.

        Raises:
            TypeError, ValueError, UsageError: as of :meth:`forward`.
        """
        route = self._choose_route(x)
        finish_check = check_range(x)
        result = self._purify(x, route, progress, top)
        finish_check()
        return result

    def _purify(self, x: Tensor, route: Route, progress: Progress | None, top: int) -> Tensor:
        factor = find_enlargement(x.shape[2], x.shape[3], route.model.architecture.scale)
        if factor > 1 and self.settings.tiling != "paper":
            result = purify_enlarged(x, factor, self.purify)
            if progress:
                progress(x[:, 0].numel())
            return result
        wanted = torch.is_grad_enabled() and x.requires_grad and self.settings.gradient != "none"
        if route.engine and (wanted or self.settings.noise_std > 0):
            raise UsageError(f"the {route.engine.name} backend has neither gradients nor noise on the code: use backend='torch'")
        windows_through = Pass(route, self.settings, top).purify

        def network(windows: Tensor, batch: Batch) -> Iterator[Tensor]:
            # torch.round goes to the even neighbour; a level of exactly one half is as good either way.
            for part in windows_through(windows, batch):
                yield (part * 255).round().to(torch.uint8) if x.dtype == torch.uint8 else part.to(x.dtype)

        with torch.set_grad_enabled(wanted):
            return self._run(x, torch.empty_like, route, network, progress)

    @torch.no_grad()
    def code(self, x: Tensor) -> Tensor:
        """The code of zeros and ones that the image is rebuilt from (section 3.5); of several samples, the first one's.

        Args:
            x: (N, C, H, W), float in [0, 1] or uint8.

        Returns:
            uint8 (N, bits, H, W), on x's device.
        """
        route = replace(self._choose_route(x), engine=None)
        bits, encode = route.model.architecture.bits, Pass(route, self.settings).encode

        def room(x: Tensor) -> Tensor:
            return torch.empty((len(x), bits, *x.shape[2:]), dtype=torch.uint8, device=x.device)

        return self._run(x, room, route, lambda windows, batch: (part.to(torch.uint8) for part in encode(windows, batch)))

    @property
    def halo(self) -> int:
        """Pixels each way that a result depends on, beyond its own: strips of an image must overlap by so many. Patches have none."""
        if self.settings.tiling == "paper":
            return 0
        most = max(model.halo for model in (self.color, self.gray) if model is not None)
        return ceil(most / self.step) * self.step

    @property
    def step(self) -> int:
        """Strips of an image must begin at rows that are multiples of this, since networks may see squares of pixels."""
        return max(model.architecture.scale for model in (self.color, self.gray) if model is not None)

    def input_noise(self, channels: int) -> float:
        """Standard deviation of the noise before the networks of so many channels, in 8-bit levels: as asked for, or the weights' own."""
        asked = self.settings.input_noise
        model = self.color if channels == 3 else self.gray
        return asked if asked is not None else model.input_noise if model is not None else 0.0

    def _choose_route(self, x: Tensor) -> Route:
        """The networks for a batch, and what turns it into their channels and back."""
        if x.ndim != 4 or x.shape[1] not in (1, 3) or x.numel() == 0:
            raise ValueError(f"expected a tensor (N, C, H, W) with 1 or 3 channels and no empty side, not {tuple(x.shape)}")
        if x.dtype != torch.uint8 and not x.is_floating_point():
            raise TypeError(f"expected a floating-point or uint8 tensor, not {x.dtype}")
        if x.shape[1] == 1 and self.gray is not None:
            return Route(self.gray, self.engines.get(1), self.input_noise(1))
        if self.color is None:
            raise UsageError("these weights are for grey images: give weights for colour, or turn the image grey")
        route = Route(self.color, self.engines.get(3), self.input_noise(3))
        return route if x.shape[1] == 3 else replace(route, adapt=repeat_gray, restore=take_luma)

    def _run(self, x: Tensor, room: Callable[[Tensor], Tensor], route: Route, network: Network, progress: Progress | None = None) -> Tensor:
        """`network` over x in tiles; what is learned of the memory holds for the next image, and leaves the settings as they are."""
        plan = self._plan(x, route)
        out, held = run_in_tiles(x, room, network, plan, progress)
        if held != plan:
            self._held = held
        return out

    def _plan(self, x: Tensor, route: Route) -> Plan:
        """Tiles and batches that suit the device, or were asked for, or were found to fit."""
        device = route.parameter.device
        usual = GRADIENT_TILE if torch.is_grad_enabled() else DEFAULT_TILE[device.type]
        tile = self.settings.tile or (route.engine.choose_tile(x.shape[2] * x.shape[3]) if route.engine else usual)
        pixels = BATCH_PIXELS[device.type] if route.engine or device.type != "cpu" else bands.count_band_pixels(route.model)
        chosen = None if self.settings.tiling == "paper" else tile
        return Plan(device, chosen, pixels, route.model.halo, route.model.architecture.scale).fit(self._held)


def _forget_engines(purifier: Purifier, keys: object) -> None:
    """After other weights were loaded into PyTorch's networks, which the engines do not have."""
    purifier.engines.clear()
