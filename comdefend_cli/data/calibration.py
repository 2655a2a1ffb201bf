"""Clean images of a data set on which `comdefend quantize` sees the ranges of activations."""

from __future__ import annotations

import torch
from torch import Tensor

from comdefend_cli.data.sources import Crops, Dataset

#: Side of the crops of larger images: a layer's ranges near a border differ from those inside.
SIDE = 128


def draw_calibration_images(dataset: Dataset, count: int, seed: int = 0) -> Tensor:
    """`count` images of a data set, uint8 (count, C, side, side); of images larger than 32x32, crops of up to `SIDE`."""
    images = dataset.train
    if isinstance(images, Crops):
        images = Crops(images.images, min(SIDE, *(min(image.shape[1:]) for image in images.images)))
    return images.batch(count, torch.Generator().manual_seed(seed % 2**63))
