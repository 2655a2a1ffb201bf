"""The networks against the paper's tables, a float64 oracle, and the rules of their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import HALO, small_model
from torch import Tensor

from comdefend_cli.network.model import BITS, Architecture, ComDefend, binarize, elu_, to_image


def convolve(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """A 3x3 correlation with zero padding 1, term by term, in float64."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    height, width = x.shape[1:]
    out = np.tile(bias[:, None, None], (1, height, width))
    for dy in range(3):
        for dx in range(3):
            out += np.einsum("oi,ihw->ohw", kernel[:, :, dy, dx], padded[:, dy : dy + height, dx : dx + width])
    return out


def oracle(model: ComDefend, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits and output of one image (C, H, W) by NumPy alone."""

    def network(layers: object, value: np.ndarray) -> np.ndarray:
        state = {name: tensor.double().numpy() for name, tensor in layers.state_dict().items()}
        for layer in range(0, 17, 2):
            value = convolve(value, state[f"{layer}.weight"], state[f"{layer}.bias"])
            if layer < 16:
                value = np.where(value > 0, value, np.expm1(np.minimum(value, 0)))
        return value

    logits = network(model.com, x - 0.5)
    return logits, 1 / (1 + np.exp(-network(model.rec, (logits > 0).astype(np.float64))))


def test_parameters_are_those_of_tables_1_and_2() -> None:
    """At 3 channels and 12 bits: 783,372 parameters in ComCNN, 783,363 in RecCNN, all kernels 3x3."""
    model = ComDefend()
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in (model.com, model.rec)]
    assert counts == [783_372, 783_363]
    assert [layer.out_channels for layer in list(model.com)[::2]] == [16, 32, 64, 128, 256, 128, 64, 32, 12]
    assert [layer.out_channels for layer in list(model.rec)[::2]] == [32, 64, 128, 256, 128, 64, 32, 16, 3]
    assert all(layer.kernel_size == (3, 3) for network in (model.com, model.rec) for layer in list(network)[::2])


@pytest.mark.parametrize("channels", [1, 3])
def test_forward_equals_a_float64_oracle(channels: int, astronaut: np.ndarray) -> None:
    """Logits and output equal an independent float64 computation from the tables."""
    model = small_model(channels)
    x = astronaut[100:124, 200:231, :channels].transpose(2, 0, 1) / 255
    logits, expected = oracle(model, x)
    batch = torch.from_numpy(x)[None].float()
    assert np.abs(model.com(batch)[0].numpy() - logits).max() < 1e-4
    assert 0.1 < (logits > 0).mean() < 0.9, "the code must have both values for the comparison to mean anything"
    assert np.abs(model(batch)[0].numpy() - expected).max() < 1e-4


@pytest.mark.parametrize("bits", BITS)
def test_every_code_size_goes_through(bits: int) -> None:
    """Each number of bits makes a code of that many planes and an image in [0, 1] of the input's shape."""
    model = ComDefend(Architecture(3, bits, (4,) * 8))
    x = torch.rand(2, 3, 5, 9)
    assert model.com(x).shape == (2, bits, 5, 9)
    y = model(x)
    assert y.shape == x.shape
    assert y.min() >= 0
    assert y.max() <= 1


@pytest.mark.parametrize(
    ("channels", "bits", "hidden"), [(2, 12, (4,) * 8), (3, 11, (4,) * 8), (3, 12, (4,) * 7), (3, 12, (4,) * 7 + (0,))]
)
def test_other_architectures_are_refused(channels: int, bits: int, hidden: tuple[int, ...]) -> None:
    """Channels, bits and widths outside their ranges raise ValueError."""
    with pytest.raises(ValueError, match="must be"):
        Architecture(channels, bits, hidden)


def test_binarize_is_the_sign_with_the_gradient_asked_for() -> None:
    """Forward is logit > 0 for each gradient; backward is none, the identity, or the sigmoid's slope."""
    logits = torch.tensor([-3.0, -0.0, 0.0, 1e-30, 2.0], requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    gradients: dict[str, Tensor | None] = {}
    for gradient in ("none", "straight-through", "soft"):
        code = binarize(logits, gradient)
        assert code.tolist() == [0, 0, 0, 1, 1]
        gradients[gradient] = torch.autograd.grad((code * weights).sum(), logits)[0] if code.requires_grad else None
    slope = torch.sigmoid(logits) * (1 - torch.sigmoid(logits))
    assert gradients["none"] is None
    assert torch.equal(gradients["straight-through"], weights)
    assert torch.allclose(gradients["soft"], weights * slope)


def test_the_halo_is_how_far_a_pixel_reaches() -> None:
    """A change in one input pixel reaches 18 pixels away and no further."""
    torch.manual_seed(0)
    model = ComDefend(Architecture(1, 4, (4,) * 8))
    x = torch.full((1, 1, 61, 61), 0.5)
    x.requires_grad_(True)
    logits_path = model.rec.run_layers(model.com(x))  # Without rounding, so that every dependence shows.
    (gradient,) = torch.autograd.grad(logits_path[0, 0, 30, 30], x)
    rows, columns = torch.nonzero(gradient[0, 0], as_tuple=True)
    assert model.halo == HALO
    assert (int(rows.min()), int(rows.max())) == (30 - HALO, 30 + HALO)
    assert (int(columns.min()), int(columns.max())) == (30 - HALO, 30 + HALO)


@pytest.mark.exactness
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
@pytest.mark.parametrize(("height", "width", "count"), [(37, 37, 1), (3, 110, 1), (20, 8, 5), (96, 40, 2)])
def test_float32_layers_do_not_depend_on_the_shape(height: int, width: int, count: int) -> None:
    """Bit for bit, each layer gives a pixel the same value in a crop as in the whole: what exact tiling rests on."""
    torch.manual_seed(height)
    for layer in [*list(ComDefend().com)[::2], *list(ComDefend(Architecture(1, 4)).rec)[::2]]:
        whole = torch.randn(1, layer.in_channels, 96, 110).contiguous(memory_format=torch.channels_last)
        crop = whole[..., :height, 110 - width :].expand(count, -1, -1, -1).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            expected, result = layer(whole), layer(crop)
        rows = slice(0, height if height == 96 else height - 1)
        columns = slice(0 if width == 110 else 1, width)
        shown = expected[..., :height, 110 - width :][..., rows, columns].expand(count, -1, -1, -1)
        assert torch.equal(result[..., rows, columns], shown)


@pytest.mark.exactness
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
@pytest.mark.parametrize("channels", [1, 3])
def test_float32_layers_do_not_depend_on_the_layout(channels: int) -> None:
    """Bit for bit, each layer gives the same with its weights and its input channels first or channels last."""
    torch.manual_seed(0)
    first, last = torch.contiguous_format, torch.channels_last
    model = ComDefend(Architecture(channels, 4))
    for layer in [*list(model.com)[::2], *list(model.rec)[::2]]:
        x, kernel = torch.randn(1, layer.in_channels, 20, 13), layer.weight.detach()
        results = []
        for weights, images in ((last, last), (first, first), (first, last), (last, first)):
            layer.weight.data = torch.empty_like(kernel, memory_format=weights).copy_(kernel)
            with torch.inference_mode():
                results.append(layer(torch.empty_like(x, memory_format=images).copy_(x)))
        assert all(torch.equal(result, results[0]) for result in results)


def test_gradients_pass_the_convolution() -> None:
    """The layer's gradients for input, kernel and bias equal those of the plain convolution."""
    torch.manual_seed(0)
    layer = ComDefend(Architecture(3, 12, (8,) * 8)).com[0]
    x = torch.randn(2, 3, 9, 7, requires_grad=True)
    inputs = (x, layer.weight, layer.bias)
    seen = torch.autograd.grad(layer(x).square().sum(), inputs)
    expected = torch.autograd.grad(torch.nn.functional.conv2d(*inputs, padding=1).square().sum(), inputs)
    for one, other in zip(seen, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.exactness
def test_activations_do_not_depend_on_the_place_in_memory() -> None:
    """Values a few at a time, where a routine for a tensor's last ones would show, equal those of one tensor; and ELU is right."""
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * 4
    for function in (lambda part: elu_(part.clone()), to_image):
        assert torch.equal(torch.cat([function(part) for part in x.split(5)]), function(x))
    assert torch.allclose(elu_(x.clone()).double(), torch.where(x > 0, x.double(), torch.expm1(x.double())), rtol=1e-6, atol=0)
    special = torch.tensor([0.0, float("inf"), -float("inf"), float("nan"), -200.0])
    assert torch.equal(elu_(special.clone())[[0, 1, 2, 4]], torch.tensor([0.0, float("inf"), -1.0, -1.0]))
    assert elu_(special).isnan().tolist() == [False, False, False, True, False]


@pytest.mark.exactness
def test_elu_in_bfloat16_does_not_either() -> None:
    """Every bfloat16 value there is."""
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    x = x[~x.isnan()]
    assert torch.equal(torch.cat([elu_(part.clone()) for part in x.split(5)]), elu_(x.clone()))
