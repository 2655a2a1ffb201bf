"""PixelDefend (Song et al., ICLR 2018, algorithm 1): move each pixel to the likeliest value near it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from comdefend_cli.errors import UsageError
from comdefend_cli.evaluate.defences import pixelcnn
from comdefend_cli.evaluate.defences.base import Defence
from comdefend_cli.evaluate.defences.mixture import Mixture, to_unit
from comdefend_cli.evaluate.defences.pixelcnn import Decoder, PixelCNN, pixels_in_order

#: Images decoded together; more at once do not go faster on a CPU.
BATCH = {"cpu": 128, "cuda": 4096, "mps": 1024}


class PixelDefend(Defence):
    """Greedy decoding under a PixelCNN, in the order of reading and within a pixel red, green, blue.

    Args:
        name: canonical spec.
        path: weight file of `comdefend train-baseline pixelcnn`.
        epsilon: how far a value may move, in 8-bit levels; the paper's is 16 on CIFAR-10, 32 on Fashion-MNIST.
        device: where to compute, in float32.

    Raises:
        UsageError, WeightsError: the file is not there or cannot be read.
    """

    def __init__(self, name: str, path: Path, epsilon: int, device: torch.device) -> None:
        loaded = pixelcnn.load(path)
        super().__init__(name, {"defence": "pixeldefend", "weights": path.name, "sha256": loaded.sha256, "epsilon": epsilon})
        self.epsilon = epsilon
        self.model = loaded.model.to(device)

    def purify(self, x: Tensor) -> Tensor:
        """Images rounded to 8 bits and decoded; every value within `epsilon` levels of the input's.

        Raises:
            UsageError: images of another number of channels than the network's.
        """
        channels = self.model.architecture.channels
        if x.shape[1] != channels:
            raise UsageError(f"{self.name}: its PixelCNN is for {channels} channels, the images have {x.shape[1]}")
        device = self.model.leave.weight.device
        levels = (x.detach() * 255).round().to(device, torch.float32)
        parts = [decode(self.model, part, self.epsilon) for part in torch.split(levels, BATCH[device.type])]
        return (torch.cat(parts) / 255).to(x)


@torch.no_grad()
def decode(model: PixelCNN, levels: Tensor, epsilon: int) -> Tensor:
    """The greedy decoding of images.

    Args:
        model: in evaluation mode.
        levels: (N, C, H, W), whole numbers from 0 to 255, in the model's dtype and on its device.
        epsilon: how far a level may move.

    Returns:
        The same shape and dtype; whole numbers from 0 to 255.
    """
    count, channels, height, width = levels.shape
    decoder = Decoder(model, count, width)
    out = torch.empty_like(levels)
    for row, column in pixels_in_order(height, width, decoder):
        mixture = Mixture(decoder.at(column), channels)
        out[:, :, row, column] = likeliest(mixture, levels[:, :, row, column], epsilon)
        decoder.put(column, out[:, :, row, column])
    return out


def likeliest(mixture: Mixture, levels: Tensor, epsilon: int) -> Tensor:
    """The likeliest levels within `epsilon` of those given, channel by channel, each given the ones chosen before it.

    Args:
        mixture: of N pixels.
        levels: (N, C), whole numbers as floating point.
        epsilon: in levels.

    Returns:
        (N, C); of levels alike in probability the lowest.
    """
    offsets = torch.arange(-epsilon, epsilon + 1, device=levels.device, dtype=levels.dtype)
    chosen = torch.empty_like(levels)
    component = mixture.log_weights  # Of each component and the channels chosen so far, together.
    for channel in range(levels.shape[1]):
        candidates = levels[:, channel, None] + offsets
        joint = component[:, None] + mixture.bins(channel, to_unit(chosen[:, :channel]), candidates)
        score = joint.logsumexp(-1).masked_fill((candidates < 0) | (candidates > 255), -torch.inf)
        best = score.argmax(1, keepdim=True)
        chosen[:, channel] = candidates.gather(1, best).squeeze(1)
        component = joint.gather(1, best[..., None].expand(-1, -1, joint.shape[2])).squeeze(1)
    return chosen
