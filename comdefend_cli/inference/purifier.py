"""`Purifier`: an image, an array or a tensor in, the same kind out, at any size, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from comdefend_cli.backends.select import Engine, describe
from comdefend_cli.errors import UsageError
from comdefend_cli.inference.arrays import purify_array, refuse_other_kinds
from comdefend_cli.inference.loading import Networks, load_by_name, make_networks
from comdefend_cli.inference.passes import Pass, Route, choose_route, wants_gradient
from comdefend_cli.inference.planning import make_plan
from comdefend_cli.inference.ranges import check_range
from comdefend_cli.inference.recording import needs_no_pixels, record_call, refuse_script
from comdefend_cli.inference.settings import Settings
from comdefend_cli.inference.stitching import Network, Plan, Progress, run_in_tiles
from comdefend_cli.inference.tiling import Batch
from comdefend_cli.inference.tiny import find_enlargement, purify_enlarged
from comdefend_cli.network.model import ComDefend
from comdefend_cli.network.weight_file import Weights
from comdefend_cli.runtime.device import dtype_name

if TYPE_CHECKING:
    from PIL import Image

    ImageT = TypeVar("ImageT", Tensor, np.ndarray, Image.Image)


class Purifier(nn.Module):
    """Purifies images with ComDefend; `nn.Sequential(purifier, classifier)` defends a classifier.

    `Purifier(weights="comdefend-12bit-denoise", noise=20, device="cpu")` loads weights, and `Purifier()` the default ones.

    Args:
        color: networks of your own for three channels; a name or path is taken for `weights`.
        gray: networks of your own for one channel.
        settings: tiling, noise and gradient.
        weights, noise, device, precision, backend: what to load without networks of your own, as of :meth:`from_pretrained`.

    Raises:
        UsageError: several samples where there is no noise, and as of :meth:`from_pretrained`.

    Without networks for grey, a grey image goes through the colour ones, repeated, and its
    luma comes back; without networks for colour, a colour image is an error.
    The networks' device and dtype are where and in what is computed; `.to(...)` moves them.
    """

    def __init__(
        self,
        color: ComDefend | str | Path | None = None,
        gray: ComDefend | None = None,
        settings: Settings | None = None,
        *,
        weights: str | Path | None = None,
        noise: float | None = None,
        device: str | torch.device = "auto",
        precision: str | torch.dtype = "auto",
        backend: str = "torch",
    ) -> None:
        super().__init__()
        if isinstance(color, (str, Path)):
            color, weights = None, color
        self.settings = settings or Settings()
        if noise is not None:
            self.settings = replace(self.settings, input_noise=noise)
        if color is None and gray is None:
            made = make_networks(load_by_name(weights), device, precision, backend, noisy=self.settings.noise_std > 0)
        elif weights is not None:
            raise UsageError("give networks or weights, not both")
        else:
            made = Networks({channels: model for channels, model in ((3, color), (1, gray)) if model is not None})
        self.color, self.gray = made.models.get(3), made.models.get(1)
        if self.settings.samples > 1 and not self.settings.noise_std and not any(map(self.input_noise, (1, 3))):
            raise UsageError("several samples need noise, and these weights have none of their own: give some on the image or its code")
        #: What computes in place of the networks of so many channels, see `comdefend_cli.backends`; empty for PyTorch. They go
        #: where the module is moved to a GPU or is given other weights; Triton's with any move.
        self.engines: dict[int, Engine] = {}
        self._names = made.names
        self.register_load_state_dict_post_hook(_forget_engines)  # type: ignore[no-untyped-call]
        self._held: Plan | None = None  # Tiles and batches that memory held, once it ran out.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.engines.update(made.engines)
        self.train(not made.names)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Purifier:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if next(self.parameters()).device.type != "cpu" or self.backend == "triton":
            self.engines.clear()
        return self

    __prepare_scriptable__ = refuse_script

    @classmethod
    def from_pretrained(
        cls,
        weights: str | Path | None = None,
        *,
        noise: float | None = None,
        device: str | torch.device = "auto",
        precision: str | torch.dtype = "auto",
        backend: str = "torch",
        settings: Settings | None = None,
    ) -> Purifier:
        """A purifier with weights that ship, or with a file's.

        Args:
            weights: a name that `comdefend weights list` prints, or a weight file; None takes
                the default for colour together with the default for grey.
            noise: standard deviation of the noise on the image, in 8-bit levels, before `settings`; None takes what those say.
            device: "auto", "cpu", "cuda", "cuda:N" or "mps".
            precision: "auto", "float32", "bfloat16" or "float16", or a torch dtype; with OpenVINO also "int8", where the weights hold
                such networks, with Triton "float8".
            backend: "torch", "openvino" (extra [openvino]; CPU only), "triton" (NVIDIA GPUs, Linux only), or "auto" for the fastest one
                that is installed. :meth:`code`, gradients and noise on the code are PyTorch's alone.
            settings: tiling, noise and gradient.

        Raises:
            UsageError: unknown weights, or a device, precision or backend that is not there.
            WeightsError: the weights cannot be read or were changed.
        """
        return cls(weights=weights, noise=noise, device=device, precision=precision, backend=backend, settings=settings)

    @classmethod
    def from_weights(
        cls,
        loaded: list[Weights],
        *,
        device: str | torch.device = "auto",
        precision: str | torch.dtype = "auto",
        backend: str = "torch",
        settings: Settings | None = None,
    ) -> Purifier:
        """As :meth:`from_pretrained`, from weights that were loaded already."""
        made = make_networks(loaded, device, precision, backend, noisy=settings is not None and settings.noise_std > 0)
        purifier = cls(made.models.get(3), made.models.get(1), settings).eval()
        purifier.engines.update(made.engines)
        purifier._names = made.names
        return purifier

    def __repr__(self) -> str:
        """Weights and noise of what it has networks for, where and in what it computes, and settings that are not the default."""
        parts = []
        for channels, model in self._models():
            name = self._names.get(channels, f"networks of {model.architecture.bits} bits")
            parts.append(f"{'color' if channels == 3 else 'gray'}: {name}, noise {self.input_noise(channels):g}")
        parts.append(f"on {next(self.parameters()).device} in {self.how}")
        if self.settings != Settings():
            parts.append(repr(self.settings))
        return "\n  ".join([f"{type(self).__name__}(", *parts]) + "\n)"

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
            image: a float tensor (N, C, H, W) in [0, 1] on any device, with C = 1 or 3, and N = 0 too; a uint8 tensor of that
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
        if isinstance(image, torch.fx.Proxy):
            return record_call(self, image)
        refuse_other_kinds(image)
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
        if needs_no_pixels(x, route.parameter.device):
            return (x if wants_gradient(x, self.settings) else x.detach()).clone()
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
        wanted = wants_gradient(x, self.settings)
        if route.engine and (wanted or self.settings.noise_std > 0):
            raise UsageError(f"the {route.engine.name} backend has neither gradients nor noise on the code: use backend torch")
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

        if needs_no_pixels(x, route.parameter.device):
            return room(x)
        check_range(x)()
        return self._run(x, room, route, lambda windows, batch: (part.to(torch.uint8) for part in encode(windows, batch)))

    @property
    def halo(self) -> int:
        """Pixels each way that a result depends on, beyond its own: strips of an image must overlap by so many. Patches have none."""
        if self.settings.tiling == "paper":
            return 0
        most = max(model.halo for _, model in self._models())
        return ceil(most / self.step) * self.step

    @property
    def step(self) -> int:
        """Strips of an image must begin at rows that are multiples of this, since networks may see squares of pixels."""
        return max(model.architecture.scale for _, model in self._models())

    def input_noise(self, channels: int) -> float:
        """Standard deviation of the noise before the networks of so many channels, in 8-bit levels: as asked for, or the weights' own."""
        asked, model = self.settings.input_noise, self.color if channels == 3 else self.gray
        return asked if asked is not None else model.input_noise if model is not None else 0.0

    def _choose_route(self, x: Tensor) -> Route:
        """The networks for a batch, and what turns it into their channels and back."""
        routes = {channels: Route(model, self.engines.get(channels), self.input_noise(channels)) for channels, model in self._models()}
        return choose_route(x, routes)

    def _models(self) -> list[tuple[int, ComDefend]]:
        return [(channels, model) for channels, model in ((3, self.color), (1, self.gray)) if model is not None]

    def _run(self, x: Tensor, room: Callable[[Tensor], Tensor], route: Route, network: Network, progress: Progress | None = None) -> Tensor:
        """`network` over x in tiles; what is learned of the memory holds for the next image, and leaves the settings as they are."""
        plan = make_plan(route, self.settings, x.shape[2] * x.shape[3]).fit(self._held)
        out, held = run_in_tiles(x, room, network, plan, progress)
        self._held = held if held != plan else self._held
        return out


def _forget_engines(purifier: Purifier, keys: object) -> None:
    """After other weights were loaded into PyTorch's networks, which the engines do not have."""
    purifier.engines.clear()
