"""The networks against the paper's tables, a float64 oracle, and the rules of their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import FAMILIES, HALO, small_model
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from comdefend_cli.network.architecture import BITS, PaperArchitecture, ResidualArchitecture
from comdefend_cli.network.layers import Conv3x3, elu_
from comdefend_cli.network.model import ComDefend, binarize, to_image


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


def oracle_of_squares(network: nn.Module, x: Tensor) -> Tensor:
    """A residual network written out: x continued by its last row and column, squares as channels, the layers; what was added cut off."""
    state = {name: tensor.double() for name, tensor in network.state_dict().items()}

    def convolve(name: str, x: Tensor) -> Tensor:
        return functional.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    def rectify(x: Tensor) -> Tensor:
        return functional.leaky_relu(x, 0.2)

    scale = network.scale
    height, width = x.shape[2:]
    x = torch.cat([x, *[x[:, :, -1:]] * (-height % scale)], 2)
    x = torch.cat([x, *[x[..., -1:]] * (-width % scale)], 3)
    x = convolve("0", functional.pixel_unshuffle(x, scale))
    for block in ("1", "2"):
        x = x + convolve(f"{block}.second", rectify(convolve(f"{block}.first", rectify(x))))
    return functional.pixel_shuffle(convolve("4", rectify(x)), scale)[:, :, :height, :width]


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3]), st.sampled_from(FAMILIES[1:]))
@example(1, 1, 3, "residual-2")
@example(1, 1, 1, "residual-4")
@example(5, 7, 3, "residual-2")
@example(5, 7, 3, "residual-4")
@example(8, 12, 3, "residual-4")
def test_residual_networks_equal_a_float64_oracle(height: int, width: int, channels: int, family: str) -> None:
    """Of any size: ComCNN's logits, RecCNN's image of any code, and both together; the code is zeros and ones, a plane a bit."""
    model = small_model(channels, family=family)
    generator = torch.Generator().manual_seed(100 * height + width)
    x = torch.rand((2, channels, height, width), generator=generator)
    logits = oracle_of_squares(model.com, x.double() - 0.5)
    assert float((model.com(x) - logits).abs().max()) < 1e-4
    code = model.encode(x)
    assert code.shape == (2, 12, height, width) and set(code.unique().tolist()) <= {0, 1}
    assert bool(((code > 0) == (logits > 0))[logits.abs() > 1e-4].all())
    for given_code in (code, torch.rand(code.shape, generator=generator)):
        rebuilt = torch.sigmoid(oracle_of_squares(model.rec, given_code.double()))
        assert float((model.rec(given_code) - rebuilt).abs().max()) < 1e-4
    assert torch.equal(model(x), model.rec(code)) and model(x).shape == x.shape


@pytest.mark.parametrize("family", FAMILIES)
def test_codes_of_photographs_have_both_values(family: str, astronaut: np.ndarray) -> None:
    """The networks that the tests compare with would prove little if their codes were constant."""
    x = torch.from_numpy(astronaut[100:124, 200:231].copy()).permute(2, 0, 1)[None] / 255
    assert 0.1 < float(small_model(family=family).encode(x).mean()) < 0.9


@pytest.mark.parametrize(("downscale", "width", "blocks"), [(2, 64, 3), (4, 16, 0)])
def test_parameters_of_residual_networks(downscale: int, width: int, blocks: int) -> None:
    """A convolution in, two a block, one out, all 3x3 with a bias; places are squares, whose values are channels."""
    model = ComDefend(ResidualArchitecture(3, 12, downscale, width, blocks))
    square = downscale**2
    for network, inputs, outputs in ((model.com, 3, 12), (model.rec, 12, 3)):
        shapes = [tuple(layer.weight.shape) for layer in network.find_convolutions()]
        inner = [(width, width, 3, 3)] * (2 * blocks)
        assert shapes == [(width, inputs * square, 3, 3), *inner, (outputs * square, width, 3, 3)]
        assert network.radius == downscale * (2 * blocks + 2)
        assert sum(p.numel() for p in network.parameters()) == sum(9 * a * b + a for a, b, _, _ in shapes)
    assert model.architecture.scale == model.com.scale == model.rec.scale == downscale
    assert model.halo == 2 * downscale * (2 * blocks + 2)
    assert model.architecture.widest == max(-(-width // square), 12)


@pytest.mark.parametrize("gradient", ["straight-through", "soft"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_flow_through_the_rounding(family: str, gradient: str) -> None:
    """The input's gradient is that of the rounding's stand-in written out, at a size that is no multiple of the squares'."""
    model = small_model(family=family)
    x = torch.rand((1, 3, 9, 7), generator=torch.Generator().manual_seed(0), requires_grad=True)
    (found,) = torch.autograd.grad(model(x, None, gradient).square().sum(), x)
    logits = model.com(x)
    passes = torch.sigmoid(logits) if gradient == "soft" else logits
    code = passes + ((logits > 0).float() - passes).detach()
    (expected,) = torch.autograd.grad(model.rec(code).square().sum(), x)
    assert found.abs().max() > 0
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    assert torch.allclose(model(x, None, gradient), model(x.detach()), atol=1e-6)
    assert not model(x, None, "none").requires_grad


@pytest.mark.parametrize("bits", BITS)
def test_every_code_size_goes_through(bits: int) -> None:
    """Each number of bits makes a code of that many planes and an image in [0, 1] of the input's shape."""
    x = torch.rand(2, 3, 5, 9)
    for architecture in (PaperArchitecture(3, bits, (4,) * 8), ResidualArchitecture(3, bits, 2, 8, 1)):
        model = ComDefend(architecture)
        assert model.com(x).shape == model.encode(x).shape == (2, bits, 5, 9)
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
        PaperArchitecture(channels, bits, hidden)


@pytest.mark.parametrize(
    "values",
    [
        *({"channels": 2}, {"bits": 11}, {"downscale": 1}, {"downscale": 3}, {"downscale": 8}),
        *({"width": 0}, {"width": 1025}, {"blocks": -1}, {"blocks": 65}),
    ],
)
def test_other_residual_architectures_are_refused(values: dict[str, int]) -> None:
    """So do values of the second family, each named in the message."""
    with pytest.raises(ValueError, match=f"{next(iter(values))} must be"):
        ResidualArchitecture(**values)


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
    model = ComDefend(PaperArchitecture(1, 4, (4,) * 8))
    x = torch.full((1, 1, 61, 61), 0.5)
    x.requires_grad_(True)
    logits_path = model.rec.run_layers(model.com(x))  # Without rounding, so that every dependence shows.
    (gradient,) = torch.autograd.grad(logits_path[0, 0, 30, 30], x)
    rows, columns = torch.nonzero(gradient[0, 0], as_tuple=True)
    assert model.halo == HALO
    assert (int(rows.min()), int(rows.max())) == (30 - HALO, 30 + HALO)
    assert (int(columns.min()), int(columns.max())) == (30 - HALO, 30 + HALO)


@pytest.mark.parametrize("family", FAMILIES[1:])
def test_the_halo_of_squares_is_how_far_a_square_reaches(family: str) -> None:
    """A change in one input pixel reaches `halo` pixels beyond its square, and no further; `radius` is one network's share."""
    torch.manual_seed(0)
    model = ComDefend(ResidualArchitecture(1, 4, int(family[-1]), 8, 1))
    scale, halo = model.architecture.scale, model.halo
    assert (model.com.radius, model.rec.radius, halo) == (4 * scale, 4 * scale, 8 * scale)
    start = halo + 2 * scale
    x = torch.rand(1, 1, 2 * start + scale, 2 * start + scale)

    def compute(x: Tensor) -> Tensor:
        return model.rec(model.com(x))  # Without rounding, so that every dependence shows.

    for inside in (0, scale - 1):
        changed = x.clone()
        changed[0, 0, start + inside, start + inside] += 0.5
        with torch.no_grad():
            rows, columns = torch.nonzero((compute(changed) != compute(x))[0, 0], as_tuple=True)
        # Where all weights are as small as at first, the farthest places may change by less than a rounding.
        for side in (rows, columns):
            assert start - halo <= int(side.min()) < start - halo + 3 * scale
            assert start + scale + halo - 3 * scale <= int(side.max()) < start + scale + halo


@pytest.mark.exactness
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
@pytest.mark.parametrize(("height", "width", "count"), [(37, 37, 1), (3, 110, 1), (20, 8, 5), (96, 40, 2)])
def test_float32_layers_do_not_depend_on_the_shape(height: int, width: int, count: int) -> None:
    """Bit for bit, each layer gives a pixel the same value in a crop as in the whole: what exact tiling rests on."""
    torch.manual_seed(height)
    residual = ComDefend(ResidualArchitecture())
    layers = [*list(ComDefend().com)[::2], *list(ComDefend(PaperArchitecture(1, 4)).rec)[::2]]
    layers += [residual.com[0], residual.com[1].first, residual.com[-1], residual.rec[0], residual.rec[-1], Conv3x3(4, 16), Conv3x3(64, 4)]
    for layer in layers:
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
    model = ComDefend(PaperArchitecture(channels, 4))
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
    layer = ComDefend(PaperArchitecture(3, 12, (8,) * 8)).com[0]
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
