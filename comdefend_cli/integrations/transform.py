"""`PurifyTransform`: the purifier as one step of a torchvision-style transform pipeline; torchvision is not needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from PIL import Image
from torch import Tensor

from comdefend_cli.inference.purifier import Purifier
from comdefend_cli.inference.settings import Settings
from comdefend_cli.network.registry import locate_weights

if TYPE_CHECKING:
    ImageT = TypeVar("ImageT", Tensor, Image.Image)


class PurifyTransform:
    """Purifies one image (or a batch), as a step of `transforms.Compose` or the `transform` of a data set.

    The weights are loaded at the first image, once in each process, and never pickled: so a data set that holds this
    object is cheap to send to the workers of a `DataLoader`, by fork or by spawn.

    Args:
        weights: as in :meth:`comdefend_cli.Purifier.from_pretrained`.
        device: of the networks; the image comes back on its own. "cpu", as workers should not use a GPU.
        precision: as there.
        settings: tiling and noise, as there; noise is that of `settings.seed` for every image.

    Raises:
        UsageError: no such weights.
    """

    def __init__(
        self, weights: str | Path | None = None, *, device: str = "cpu", precision: str = "auto", settings: Settings | None = None
    ) -> None:
        if weights is not None:
            locate_weights(str(weights))  # Fail here and not in a worker.
        self.weights = None if weights is None else str(weights)
        self.device = device
        self.precision = precision
        self.settings = settings or Settings()
        self._purifier: Purifier | None = None

    def __call__(self, image: ImageT) -> ImageT:
        """Purify.

        Args:
            image: a Pillow image, or a tensor (C, H, W) or (N, C, H, W), floating point in [0, 1] or uint8.

        Returns:
            The same kind, shape, dtype and device.

        Raises:
            TypeError, ValueError: an image of another kind, shape or dtype.
            WeightsError: the weights cannot be read.
            UsageError: a device or precision that is not there, or a colour image and weights for grey ones.
        """
        if isinstance(image, Tensor):
            return self._load().purify(image[None])[0] if image.ndim == 3 else self._load().purify(image)
        if not isinstance(image, Image.Image):
            raise TypeError(f"expected a Pillow image or a tensor (C, H, W) or (N, C, H, W), not {type(image).__name__}")
        return cast(Image.Image, self._load()(image))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_purifier": None}

    def __repr__(self) -> str:
        values = {"weights": self.weights, "device": self.device, "precision": self.precision, "settings": self.settings}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    def _load(self) -> Purifier:
        if self._purifier is None:
            self._purifier = Purifier.from_pretrained(self.weights, device=self.device, precision=self.precision, settings=self.settings)
        return self._purifier
