"""The networks of ComDefend (Jia et al., CVPR 2019, sections 3.2 to 3.5) on one page.

    x (N, C, H, W) in [0, 1]
      |  - 0.5
      v
    ComCNN   its family's layers, see `architecture`         (3.2)
      |  logits (N, bits, H, W)
      v
    binarize   training: sigmoid(logits + noise)             (3.5)
      |        inference: logits > 0
      v  code (N, bits, H, W) of zeros and ones
    RecCNN   its family's layers                             (3.3)
      |  sigmoid
      v
    y (N, C, H, W) in [0, 1]

Every layer keeps height and width, so any image goes through. Where a family's layers see squares of pixels as channels, an image
whose sides are not multiples of the squares' is continued by its last row and column, and what is computed of these is cut off.
One output pixel depends on the input pixels up to `ComDefend.halo` around its square.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle

from comdefend_cli.network.architecture import Architecture, PaperArchitecture
from comdefend_cli.network.layers import Conv3x3, is_exact

Gradient = Literal["none", "straight-through", "soft"]
GRADIENTS: tuple[str, ...] = get_args(Gradient)


class Network(nn.Sequential):
    """The layers of ComCNN or of RecCNN.

    This is their only description: what computes them in another way, see :data:`Compute`, walks over the same layers.

    Args:
        layers: of the network.
        scale: side of the squares of pixels that the layers see as channels.
    """

    def __init__(self, layers: list[nn.Module], scale: int) -> None:
        super().__init__(*layers)
        self.scale = scale

    def run_layers(self, x: Tensor) -> Tensor:
        """All layers in turn, (N, first width, H, W) to (N, last width, H, W)."""
        return cast(Tensor, nn.Sequential.forward(self, x))  # type: ignore[no-untyped-call]

    def find_convolutions(self) -> list[Conv3x3]:
        """Its convolutions, in the order in which they are computed."""
        return [module for module in self.modules() if isinstance(module, Conv3x3)]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    @property
    def radius(self) -> int:
        """How far the input reaches into the output, in pixels each way: one of its places a 3x3 layer."""
        return self.scale * len(self.find_convolutions())

    def _compute_squares(self, x: Tensor, compute: Compute) -> Tensor:
        """What `compute` makes of x (N, C, H, W), its squares as channels: (N, another C, H, W)."""
        if self.scale == 1:
            return compute(self, x)
        height, width = x.shape[2:]
        # Not -side % scale, of which `torch.export` cannot tell that it makes any side a multiple.
        below, right = ((side + self.scale - 1) // self.scale * self.scale - side for side in (height, width))
        y = compute(self, pixel_unshuffle(_continue_edges(x, below, right), self.scale))
        y = pixel_shuffle(y, self.scale)
        # Nor that slices are as long as what they are cut from, or shorter. The gradient of this, compiled, would write where it must not.
        if torch.compiler.is_compiling() and not y.requires_grad:
            return y.index_select(2, torch.arange(height, device=y.device)).index_select(3, torch.arange(width, device=y.device))
        # Of a band of rows, another number comes back.
        return y[:, :, : y.shape[2] - below, : y.shape[3] - right]


def _continue_edges(x: Tensor, below: int, right: int) -> Tensor:
    """X (N, C, H, W) with its last row and column again, so many times."""
    if not (torch.compiler.is_compiling() and x.requires_grad):
        return pad(x, (0, right, 0, below), "replicate")
    # PyTorch's compiler takes the gradient of `pad` to lie otherwise in memory than it does, and stops.
    x = torch.cat([x, x[:, :, -1:].expand(-1, -1, below, -1)], 2)
    return torch.cat([x, x[:, :, :, -1:].expand(-1, -1, -1, right)], 3)


#: What computes the layers of a network, of an input in the weights' dtype: the layers themselves, or another backend in their place.
Compute = Callable[[Network, Tensor], Tensor]


class ComCNN(Network):
    """Compression (3.2): an image in [0, 1], (N, C, H, W), to logits (N, bits, H, W)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture.make_com_layers(), architecture.scale)

    def forward(self, x: Tensor, compute: Compute = Network.run_layers) -> Tensor:
        """Logits (N, bits, H, W), in the weights' dtype, of x (N, C, H, W)."""
        # Centred, as the authors' released checkpoint expects it; the paper does not say.
        return self._compute_squares((x - 0.5).to(self.dtype), compute)


class RecCNN(Network):
    """Reconstruction (3.3): a code in [0, 1], (N, bits, H, W), to an image in [0, 1]."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture.make_rec_layers(), architecture.scale)

    def forward(self, code: Tensor, compute: Compute = Network.run_layers) -> Tensor:
        """The image (N, C, H, W), float32, of a code (N, bits, H, W)."""
        # Noise in float32 makes a code in float32 of bfloat16 logits.
        return to_image(self._compute_squares(code.to(self.dtype), compute))


def to_image(x: Tensor) -> Tensor:
    """The sigmoid of RecCNN's last layer, float32; on a CPU in double precision between, for the reason of :func:`elu_`."""
    return torch.sigmoid(x.double() if is_exact(x) else x.float()).float()


class _Binarize(torch.autograd.Function):
    """Step function forward; backward the identity, or the slope of the sigmoid."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, soft: bool) -> Tensor:
        return (logits > 0).to(logits.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        logits, ctx.soft = inputs
        if ctx.soft:
            ctx.save_for_backward(logits)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (grad,) = grads
        if ctx.soft:
            slope = torch.sigmoid(ctx.saved_tensors[0])
            grad = grad * slope * (1 - slope)
        return grad, None


def binarize(logits: Tensor, gradient: Gradient = "none") -> Tensor:
    """Round logits to the code: 1 where logit > 0, the same as sigmoid > 0.5 (3.5).

    Args:
        logits: any shape, floating point.
        gradient: what `backward` sees in place of the step's zero: "none" detaches,
            "straight-through" passes the gradient unchanged (Bengio et al., 2013),
            "soft" multiplies it by the sigmoid's slope. The forward value is the same for all.

    Returns:
        Zeros and ones of the logits' shape and dtype.
    """
    if gradient == "none":
        return (logits > 0).to(logits.dtype)
    return cast(Tensor, _Binarize.apply(logits, gradient == "soft"))  # type: ignore[no-untyped-call]


class ComDefend(nn.Module):
    """Both networks; `forward` is deterministic inference, differentiable on request.

    Args:
        architecture: of the networks; the paper's by default (1,566,735 parameters).
        input_noise: standard deviation of the noise, in 8-bit levels, that :class:`comdefend_cli.Purifier` puts on images before
            these networks unless it is told otherwise; `forward` puts none.
    """

    def __init__(self, architecture: Architecture | None = None, input_noise: float = 0.0) -> None:
        super().__init__()
        self.architecture = architecture or PaperArchitecture()
        self.input_noise = input_noise
        self.com = ComCNN(self.architecture)
        self.rec = RecCNN(self.architecture)

    @property
    def halo(self) -> int:
        """How far the input reaches into the output, in pixels each way: 18 in the paper's networks, as a 3x3 layer reaches one."""
        return self.com.radius + self.rec.radius

    def forward(self, x: Tensor, noise: Tensor | None = None, gradient: Gradient = "none", compute: Compute = Network.run_layers) -> Tensor:
        """Purify.

        Args:
            x: (N, channels, H, W) in [0, 1], any floating dtype.
            noise: added to the logits (N, bits, H, W) before they are rounded, or None.
            gradient: see :func:`binarize`.
            compute: what computes the layers of both networks.

        Returns:
            (N, channels, H, W) in [0, 1], float32.
        """
        return cast(Tensor, self.rec(self.encode(x, noise, gradient, compute), compute))

    def encode(self, x: Tensor, noise: Tensor | None = None, gradient: Gradient = "none", compute: Compute = Network.run_layers) -> Tensor:
        """The code of x: zeros and ones, (N, bits, H, W). Takes what :meth:`forward` takes."""
        logits = self.com(x, compute)
        return binarize(logits if noise is None else logits + noise, gradient)
