"""Purify in the workers of a data loader, as one step of a transform pipeline: `python examples/dataloader_transform.py`."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from tiny import FOLDER, PHOTOGRAPHS
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from comdefend_cli.integrations import PurifyTransform
from comdefend_cli.network.metrics import psnr


class Photographs(Dataset[tuple[Tensor, Tensor]]):
    """Each photograph as it is and transformed: a data set as torchvision's are, with a `transform`."""

    def __init__(self, transform: Callable[[Image.Image], Image.Image]) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return len(PHOTOGRAPHS)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = Image.open(FOLDER / PHOTOGRAPHS[index]).convert("RGB").crop((64, 64, 192, 192))
        return to_tensor(image), to_tensor(self.transform(image))


def to_tensor(image: Image.Image) -> Tensor:
    """A Pillow image as a tensor uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def main() -> None:
    """Load the photographs through a worker of its own, which loads the weights once."""
    # With torchvision: transforms.Compose([transforms.Resize(224), PurifyTransform(), transforms.ToTensor()]).
    transform = PurifyTransform("comdefend-12bit")
    print(transform)
    loader = DataLoader(Photographs(transform), batch_size=1, num_workers=1, multiprocessing_context="spawn")
    for name, (before, after) in zip(PHOTOGRAPHS, loader, strict=True):
        print(f"{name:15} {tuple(after.shape)} {after.dtype}, purified: PSNR {psnr(before, after).item():.1f} dB")


if __name__ == "__main__":
    main()
