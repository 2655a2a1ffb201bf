"""Clean pictures of a data set on which `comdefend quantize` sees the ranges of activations."""

from __future__ import annotations

import torch
from torch import Tensor

from comdefend_cli.data.datasets import Crops, Dataset

#: Side of the crops of larger pictures: a layer's ranges near a border differ from those inside.
SIDE = 128


def calibration(dataset: Dataset, count: int, seed: int = 0) -> Tensor:
    """`count` pictures of a data set, uint8 (count, C, side, side); of pictures larger than 32x32, crops of up to `SIDE`."""
    images = dataset.train
    if isinstance(images, Crops):
        images = Crops(images.pictures, min(SIDE, *(min(picture.shape[1:]) for picture in images.pictures)))
    return images.batch(count, torch.Generator().manual_seed(seed % 2**63))
