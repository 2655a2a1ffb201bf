"""Networks of the reference classifiers: normalized images (N, channels, H, W) to logits (N, classes)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, chain, pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from comdefend_cli.errors import UsageError

#: One number, or one a channel.
Numbers = Sequence[float] | Tensor | float


class Normalize(nn.Module):
    """`(x - mean) / std` a channel; the numbers move with the module and are not in its state.

    Args:
        mean, std: a number, or one a channel, in units of the images.

    Raises:
        UsageError: a number that is not finite, or a deviation that is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Numbers, std: Numbers) -> None:
        super().__init__()
        for name, numbers in (("mean", mean), ("std", std)):
            value = torch.as_tensor(numbers, dtype=torch.float32).detach().clone().reshape(-1)
            self.register_buffer(name, value, persistent=False)
        if not bool(torch.isfinite(self.mean).all()) or not bool(((self.std > 0) & torch.isfinite(self.std)).all()):
            raise UsageError(f"mean must be finite and std above 0, not {self.mean.tolist()} and {self.std.tolist()}")

    def forward(self, x: Tensor) -> Tensor:
        """Of x (N, C, H, W) the same shape; raises UsageError where the numbers are of another number of channels."""
        for numbers in (self.mean, self.std):
            if len(numbers) not in (1, x.shape[1]):
                raise UsageError(f"normalize has {len(numbers)} numbers for an image of {x.shape[1]} channels")
        return (x - self.mean.view(1, -1, 1, 1)) / self.std.view(1, -1, 1, 1)

    def extra_repr(self) -> str:
        """The numbers."""
        return f"mean={self.mean.tolist()}, std={self.std.tolist()}"


def _conv_norm(inputs: int, outputs: int, side: int = 3, stride: int = 1, *tail: nn.Module) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *tail)


class Blocks(nn.Sequential):
    """Layers one after another that say where their blocks end.

    Args:
        stem: layers whose outputs are still close to the pixels.
        blocks: of layers each.
        head: from the last block's output to logits.
    """

    def __init__(self, stem: Sequence[nn.Module], blocks: Sequence[Sequence[nn.Module]], head: Sequence[nn.Module]) -> None:
        super().__init__(*stem, *chain(*blocks), *head)
        self._ends = set(list(accumulate(map(len, blocks), initial=len(stem) - 1))[1:])

    def features(self, x: Tensor) -> list[Tensor]:
        """The output of each block, and the logits, of x (N, C, H, W)."""
        found = []
        for index, layer in enumerate(self):
            x = layer(x)
            found += [x] if index in self._ends else []
        return [*found, x]


def _groups(inputs: int, *widths: int) -> list[list[nn.Module]]:
    """Groups of two convolutions that pool early, between the two, as in airbench (Jordan, 2024, arXiv:2404.00498)."""
    groups: list[list[nn.Module]] = []
    for before, width in pairwise((inputs, *widths)):
        first = [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(width), nn.GELU()]
        groups.append([*first, _conv_norm(width, width, 3, 1, nn.GELU())])
    return groups


class Small(Blocks):
    """Seven convolutions for a CPU: 86 million multiply-adds a 32x32 image, any size from 8x8 up."""

    def __init__(self, channels: int, classes: int) -> None:
        stem = [_conv_norm(channels, 32, 3, 1, nn.GELU())]
        groups = _groups(32, 64, 128, 256)
        super().__init__(stem, groups, [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, classes)])


class Whitening(nn.Module):
    """2x2 patches to their principal components of equal variance, each with both signs: 8 values a channel.

    The first layer of airbench (Jordan, 2024, arXiv:2404.00498, section 3.2). Its kernels come from the training images, once, and are
    not trained; its biases are.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight: Tensor
        self.register_buffer("weight", torch.randn(8 * channels, channels, 2, 2) / (4 * channels) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(8 * channels))

    def forward(self, x: Tensor) -> Tensor:
        """Of x (N, channels, H, W): (N, 8 channels, H - 1, W - 1)."""
        return conv2d(x, self.weight, self.bias)

    @torch.no_grad()
    def fit(self, x: Tensor, least: float = 5e-4) -> None:
        """Take the kernels from images.

        Args:
            x: (N, channels, H, W), normalized as those of the forward pass will be.
            least: added to each component's variance, so that what hardly varies is not blown up.
        """
        patches = x.unfold(2, 2, 1).unfold(3, 2, 1).movedim(1, 3).reshape(-1, 4 * x.shape[1])
        variance, components = torch.linalg.eigh(patches.T.double().cov())
        kernels = (components / (variance + least).sqrt()).T.flip(0).reshape(-1, x.shape[1], 2, 2)
        self.weight.copy_(torch.cat([kernels, -kernels]))


class Medium(Blocks):
    """Whitened patches and six convolutions, as airbench94 (Jordan, 2024): 118 million multiply-adds a 32x32 image, from 9x9 up."""

    def __init__(self, channels: int, classes: int) -> None:
        stem = [Whitening(channels), nn.GELU()]
        groups = _groups(8 * channels, 64, 256, 256)
        super().__init__(stem, groups, [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(256, classes)])


class _Residual(nn.Module):
    """A residual block (He et al., 2016): the body, and where the shape changes a 1x1 projection beside it."""

    def __init__(self, body: nn.Module, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = body
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else _conv_norm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Of x (N, inputs, H, W): (N, outputs, H / stride, W / stride)."""
        return torch.relu(self.body(x) + self.shortcut(x))


def _basic(inputs: int, width: int, stride: int) -> _Residual:
    body = nn.Sequential(_conv_norm(inputs, width, 3, stride, nn.ReLU(inplace=True)), _conv_norm(width, width))
    return _Residual(body, inputs, width, stride)


def _bottleneck(inputs: int, width: int, stride: int) -> _Residual:
    body = nn.Sequential(
        _conv_norm(inputs, width, 1, 1, nn.ReLU(inplace=True)),
        _conv_norm(width, width, 3, stride, nn.ReLU(inplace=True)),
        _conv_norm(width, 4 * width, 1),
    )
    return _Residual(body, inputs, 4 * width, stride)


def _resnet(depths: tuple[int, ...], block: Callable[[int, int, int], _Residual], expansion: int) -> Callable[[int, int], nn.Module]:
    """ResNet (He et al., 2016) for images of 32x32: a 3x3 stem without pooling, as is usual on CIFAR-10."""

    def build(channels: int, classes: int) -> nn.Module:
        stem = [_conv_norm(channels, 64, 3, 1, nn.ReLU(inplace=True))]
        blocks, inputs = [], 64
        for group, depth in enumerate(depths):
            for index in range(depth):
                blocks.append([block(inputs, 64 << group, 2 if group and not index else 1)])
                inputs = (64 << group) * expansion
        return Blocks(stem, blocks, [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)])

    return build


ARCHITECTURES: dict[str, Callable[[int, int], nn.Module]] = {
    "small": Small,
    "medium": Medium,
    "resnet18": _resnet((2, 2, 2, 2), _basic, 1),
    "resnet50": _resnet((3, 4, 6, 3), _bottleneck, 4),
}
