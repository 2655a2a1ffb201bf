"""Defences without weights: feature squeezing, JPEG, total variation, random resizing and padding."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from PIL import __version__ as pillow_version
from torch import Tensor
from torch.nn.functional import interpolate, pad

from comdefend_cli.evaluate.defences.base import Defence
from comdefend_cli.runtime.extras import require

#: Xie et al. resize images of 299 pixels a side to less than 331, and pad them to 331.
SIDE, PADDED_SIDE = 299, 331
#: What they pad with is zero for networks that take [-1, 1], so the middle of [0, 1].
MIDDLE_GRAY = 0.5


class NoDefence(Defence):
    """The images as they are."""

    def purify(self, x: Tensor) -> Tensor:
        """The same tensor."""
        return x


class BitDepth(Defence):
    """Fewer bits a channel: feature squeezing (Xu et al., NDSS 2018, section III.A).

    ART's leaves the device for NumPy in 64 bits, where single values of images that are not of 8 bits round to another level.

    Args:
        depth: bits a channel, 1 to 8.
    """

    def __init__(self, name: str, depth: int) -> None:
        super().__init__(name, {"defence": "bits", "depth": depth})
        self.levels = 2**depth - 1

    @torch.no_grad()
    def purify(self, x: Tensor) -> Tensor:
        """Each value rounded to one of 2**depth levels from 0 to 1."""
        rounded: Tensor = (x * self.levels).round() / self.levels
        return rounded


class Median(Defence):
    """A median of size x size pixels a channel, mirrored at the border, by ART: feature squeezing (Xu et al., NDSS 2018, section III.B).

    Args:
        size: side of the window; with an even one the pixel is right and below of its middle, as in the paper's code.
    """

    def __init__(self, name: str, size: int) -> None:
        smoothing = require("art.defences.preprocessor.spatial_smoothing", extra="evaluate").SpatialSmoothing
        version = require("scipy", extra="evaluate").__version__  # ART hands the work to it.
        super().__init__(name, {"defence": "median", "size": size, "scipy": version})
        self._smoothing = smoothing(size, channels_first=True, clip_values=(0.0, 1.0))

    def purify(self, x: Tensor) -> Tensor:
        """The medians; computed on the CPU."""
        return _through_numpy(x, lambda array: self._smoothing(array)[0])


class Jpeg(Defence):
    """JPEG by Pillow, in memory, with its default chroma subsampling 4:2:0 (Dziugaite et al., 2016; Guo et al., ICLR 2018).

    ART's cuts images to 8 bits where this rounds them, so that three in four values of a float image differ.

    Args:
        quality: 1 to 100.
    """

    def __init__(self, name: str, quality: int) -> None:
        super().__init__(name, {"defence": "jpeg", "quality": quality, "pillow": pillow_version})
        self.quality = quality

    def purify(self, x: Tensor) -> Tensor:
        """Images rounded to 8 bits, encoded and decoded."""
        return _through_numpy(x, lambda array: np.stack([self._one(image) for image in array]))

    def _one(self, image: np.ndarray) -> np.ndarray:
        """One image (C, H, W), float32 in [0, 1]."""
        pixels = (image * 255).round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
        stream = io.BytesIO()
        Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(stream, "JPEG", quality=self.quality)
        decoded = np.asarray(Image.open(stream)).reshape(pixels.shape)
        return decoded.transpose(2, 0, 1).astype(np.float32) / 255


class TotalVariation(Defence):
    """Total variation minimization (Rudin, Osher and Fatemi, 1992) a channel, by Chambolle's algorithm in scikit-image.

    Guo et al. (ICLR 2018) also drop pixels at random first, and so does ART's; this one does not.

    Args:
        weight: of the total variation against the squared error; larger is smoother.
    """

    def __init__(self, name: str, weight: float) -> None:
        self._restoration = require("skimage.restoration", extra="evaluate")
        version = require("skimage", extra="evaluate").__version__
        super().__init__(name, {"defence": "tv", "weight": weight, "scikit-image": version})
        self.weight = weight

    def purify(self, x: Tensor) -> Tensor:
        """The minimizers; computed on the CPU."""
        return _through_numpy(x, lambda array: np.stack([self._one(image) for image in array]))

    def _one(self, image: np.ndarray) -> np.ndarray:
        smooth: np.ndarray = self._restoration.denoise_tv_chambolle(image, weight=self.weight, channel_axis=0)
        return smooth


class ResizePad(Defence):
    """Random resizing and padding (Xie et al., ICLR 2018): each image is enlarged a little, then put somewhere on grey.

    The paper's sizes, from 299 pixels up to below 331 on a ground of 331, are scaled with the image's sides: 32 becomes 32 to 35
    on 36. Interpolation is bilinear.

    Args:
        output: "larger", as the paper has it, for a classifier that takes any size; "same" resizes back to the input's size.
        votes: calls a prediction is averaged over; the authors' competition entry averaged 30.
    """

    gradients: ClassVar[tuple[str, ...]] = ("straight-through",)

    def __init__(self, name: str, output: str = "same", votes: int = 1) -> None:
        super().__init__(name, {"defence": "resize-pad", "output": output}, stochastic=True, votes=votes)
        self.keeps_size = output == "same"

    def purify(self, x: Tensor) -> Tensor:
        """(N, C, H', W') with H' = ceil(H * 331 / 299) and W' likewise, or x's size; every image has a draw of its own."""
        generator = torch.Generator().manual_seed(self.next_seed() % 2**63)
        draws = torch.rand((len(x), 3), generator=generator).tolist()
        result = torch.cat([_placed(image[None], *draw) for image, draw in zip(x, draws, strict=True)])
        return _resized(result, (x.shape[2], x.shape[3])) if self.keeps_size else result


def _placed(x: Tensor, size: float, top: float, left: float) -> Tensor:
    """One image (1, C, H, W) resized and padded; size and place are drawn from [0, 1)."""
    height, width = x.shape[2:]
    high, wide = (-(-side * PADDED_SIDE // SIDE) for side in (height, width))
    rows, columns = height + int(size * (high - height)), width + int(size * (wide - width))
    above, before = int(top * (high - rows + 1)), int(left * (wide - columns + 1))
    return pad(_resized(x, (rows, columns)), (before, wide - columns - before, above, high - rows - above), value=MIDDLE_GRAY)


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(x, size=size, mode="bilinear", align_corners=False)


def _through_numpy(x: Tensor, function: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """A function of arrays (N, C, H, W) in [0, 1] for tensors; its result is clipped to [0, 1], without gradient."""
    result = function(x.detach().float().cpu().numpy())
    return torch.from_numpy(np.clip(result, 0, 1)).to(x)
