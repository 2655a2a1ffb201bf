"""The Python API: exact tiling on real images, kinds in and out, precision, noise, gradients, memory running out."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FAMILIES, HALO, small_model
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from comdefend_cli import Purifier, Settings
from comdefend_cli.backends import bands
from comdefend_cli.errors import UsageError
from comdefend_cli.inference import planning, stitching
from comdefend_cli.inference.noise import draw_window, mix_seed
from comdefend_cli.inference.stitching import stack_windows
from comdefend_cli.inference.tiling import batch_windows, cut_tiles
from comdefend_cli.inference.tiny import find_enlargement
from comdefend_cli.network.metrics import mean_psnr
from comdefend_cli.network.model import ComDefend
from comdefend_cli.network.registry import load_weights
from comdefend_cli.runtime.device import cpu_has_bfloat16, keep_float32, resolve_device, resolve_precision


def untiled(model: ComDefend, x: Tensor, left: int = 0) -> Tensor:
    """The whole image, whose own place begins `left` pixels from the border, through the network at once, rounded to 8 bits."""
    factor = find_enlargement(*x.shape[2:], model.architecture.scale)
    noisy = (x.float() / 255).repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    if model.input_noise:
        rows, columns = slice(0, noisy.shape[2]), slice(left, left + noisy.shape[3])
        # Multiplied and added in one rounding, as the purifier does: another last digit is another bfloat16 now and then.
        noise = draw_window(mix_seed(0, 0, 1), 3, rows, columns)
        noisy = torch.add(noisy, noise, alpha=model.input_noise / 255).clamp(0, 1)
    with torch.inference_mode():
        return (avg_pool2d(model(noisy), factor) * 255).round().to(torch.uint8)


def tensor(pixels: np.ndarray) -> Tensor:
    """(H, W, C) as (1, C, H, W)."""
    return torch.from_numpy(np.atleast_3d(pixels).copy()).permute(2, 0, 1)[None]


@pytest.fixture(scope="module")
def shipped() -> Purifier:
    """The default purifier as users get it, in float32."""
    return Purifier.from_pretrained(device="cpu", precision="float32")


@pytest.mark.exactness
@pytest.mark.parametrize("tile", [29, 50, 101])
def test_exact_tiling_is_the_whole_image_result(shipped: Purifier, astronaut: np.ndarray, tile: int) -> None:
    """With the shipped weights, a photograph in tiles equals the untiled network in every 8-bit value."""
    x = tensor(astronaut[40:157, 150:281])
    assert shipped.color is not None
    purifier = Purifier(shipped.color, None, Settings(tile=tile))
    assert torch.equal(purifier(x), untiled(shipped.color, x))


@pytest.mark.exactness
@settings(deadline=None, max_examples=40)
@given(
    *(st.integers(1, 80), st.integers(1, 80), st.integers(6, 100), st.integers(1, 3)), st.sampled_from([1, 3]), st.sampled_from(FAMILIES)
)
@example(1, 1, 1, 1, 3, "paper")
@example(5, 9, 1, 2, 1, "paper")
@example(40, 3, 2, 1, 3, "paper")
@example(1, 1, 1, 2, 3, "residual-2")
@example(7, 5, 1, 1, 1, "residual-4")
@example(33, 21, 3, 2, 3, "residual-4")
@example(79, 61, 17, 1, 3, "residual-2")
@example(61, 80, 34, 1, 1, "residual-2")
@example(77, 63, 22, 1, 3, "residual-4")
def test_exact_tiling_holds_for_any_size(height: int, width: int, tile: int, count: int, channels: int, family: str) -> None:
    """From 1x1 up, for any tile size, even, odd or less than the networks' squares, and any batch, grey and colour, both families."""
    model = small_model(channels, family=family)
    x = torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(height))
    purifier = Purifier(*((model, None) if channels == 3 else (None, model)), Settings(tile=tile))
    assert torch.equal(purifier(x), untiled(model, x))
    if find_enlargement(height, width, model.architecture.scale) == 1:
        with torch.no_grad():
            assert torch.equal(purifier(x / 255), model(x / 255))
    code = purifier.code(x)
    assert code.shape == (count, 12, height, width) and torch.equal(code, model.encode(x / 255).byte())


@pytest.mark.exactness
@settings(deadline=None, max_examples=10)
@given(
    *(st.integers(1, 90), st.integers(1, 70), st.integers(1, 60), st.integers(1, 3), st.booleans()),
    st.sampled_from([1, 3]),
    st.sampled_from(FAMILIES),
)
@example(75, 51, 16, 2, True, 3, "residual-2")
@example(75, 51, 17, 1, False, 1, "residual-4")
def test_noise_does_not_depend_on_the_tiles(
    height: int, width: int, tile: int, samples: int, own: bool, channels: int, family: str
) -> None:
    """With noise on image and code, of one or several samples, tiles of any size equal the whole in every value, and so does the code."""
    model = small_model(channels, family=family)
    x = torch.randint(0, 256, (2, channels, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(width))
    noisy = Settings(tile=4096, input_noise=20.0, noise_std=1.0, seed=3, samples=samples, noise_per_image=own)
    whole, tiled = (Purifier(*((model, None) if channels == 3 else (None, model)), one) for one in (noisy, replace(noisy, tile=tile)))
    assert torch.equal(tiled(x), whole(x))
    assert torch.equal(tiled.code(x), whole.code(x))


def test_tiny_images_keep_their_colours(shipped: Purifier) -> None:
    """Of 1x1 to 15x15 pixels, which to networks that see squares would be all border; progress and gradients are those of any image."""
    generator = torch.Generator().manual_seed(0)
    for height, width in ((1, 1), (2, 2), (3, 1), (6, 6), (15, 9)):
        x = torch.randint(0, 2, (4, 3, height, width), dtype=torch.uint8, generator=generator) * 255
        done: list[int] = []
        result = shipped.purify(x, done.append)
        assert result.dtype == torch.uint8 and sum(done) == 4 * height * width
        assert mean_psnr(x, result) > (20 if max(height, width) < 8 else 16), (height, width)
    image = torch.rand((1, 3, 4, 5), generator=generator).requires_grad_()
    (gradient,) = torch.autograd.grad(shipped(image).sum(), image)
    assert gradient.shape == image.shape and bool(gradient.any())


@pytest.mark.exactness
@pytest.mark.parametrize("color", FAMILIES)
@pytest.mark.parametrize("gray", FAMILIES)
def test_colour_and_grey_networks_may_be_of_different_families(color: str, gray: str) -> None:
    """Each goes over its own grid; what strips go by suits both: steps of the larger squares, a halo that holds the larger one."""
    networks = small_model(3, family=color), small_model(1, 4, family=gray)
    purifier = Purifier(*networks, Settings(tile=27))
    assert purifier.step == max(model.architecture.scale for model in networks)
    assert purifier.halo % purifier.step == 0
    assert 0 <= purifier.halo - max(model.halo for model in networks) < purifier.step
    for model in networks:
        x = torch.randint(0, 256, (1, model.architecture.channels, 61, 47), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        assert torch.equal(purifier(x), untiled(model, x))
        assert torch.equal(purifier.code(x), model.encode(x / 255).byte())
        top = 3 * purifier.step
        below = top + purifier.halo
        assert torch.equal(purifier.purify(x[:, :, top:], top=top)[:, :, purifier.halo :], purifier(x)[:, :, below:])
    assert Purifier(*networks, Settings("paper")).halo == 0


@pytest.mark.skipif(not cpu_has_bfloat16(), reason="needs a CPU that multiplies bfloat16")
@settings(deadline=None, max_examples=15)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(12, 60), st.integers(1, 3))
@example(50, 16, 3, 1)
@example(1, 1, 1, 2)
@example(37, 30, 12, 2)
def test_exact_tiling_holds_in_native_bfloat16(shipped: Purifier, height: int, width: int, tile: int, count: int) -> None:
    """Where `auto` takes bfloat16 on a CPU, tiles, too, equal the whole image in every value, with the shipped weights."""
    assert shipped.color is not None
    for networks in (shipped.color, small_model(family="residual-2"), small_model(family="residual-4")):
        model = copy.deepcopy(networks).to(torch.bfloat16)
        x = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(height))
        assert torch.equal(Purifier(model, None, Settings(tile=tile))(x), untiled(model, x))


@pytest.mark.exactness
def test_seams_are_what_paper_tiling_has_and_exact_has_not(shipped: Purifier, astronaut: np.ndarray) -> None:
    """The paper's patches differ from the whole-image result near their borders; so the tests above can fail."""
    x = tensor(astronaut[40:140, 150:250])
    assert shipped.color is not None
    paper = Purifier(shipped.color, None, Settings("paper"))(x)
    patches = torch.cat([untiled(shipped.color, x[..., left : left + 32], left) for left in range(0, 100, 32)], dim=3)
    assert torch.equal(
        paper[:, :, :32], torch.cat([untiled(shipped.color, p, 32 * i) for i, p in enumerate(x[:, :, :32].split(32, dim=3))], dim=3)
    )
    assert patches.shape == paper.shape
    assert not torch.equal(paper, untiled(shipped.color, x))


def test_the_result_resembles_the_image(shipped: Purifier, astronaut: np.ndarray, camera: np.ndarray) -> None:
    """Purified photographs, colour and grey, stay near the original (PSNR over 25 dB for colour, 20 for grey)."""
    for pixels, least in ((astronaut[:128, 128:256], 25), (camera[:128, 128:256], 20)):
        x = tensor(pixels)
        assert mean_psnr(x, shipped(x)) > least


def test_each_kind_comes_back_as_itself() -> None:
    """Tensors keep dtype and shape, arrays their shape, Pillow images their mode and alpha."""
    purifier = Purifier(small_model(3), small_model(1))
    for x in (torch.rand(2, 3, 20, 30), torch.rand(1, 1, 7, 5).double(), torch.randint(0, 256, (1, 3, 9, 9), dtype=torch.uint8)):
        y = purifier(x)
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
        assert torch.isfinite(y.double()).all()
    rng = np.random.default_rng(0)
    for shape in ((12, 17), (12, 17, 1), (12, 17, 3), (4, 12, 17, 3)):
        array = rng.integers(0, 256, shape, np.uint8)
        result = purifier(array)
        assert (result.shape, result.dtype) == (array.shape, array.dtype)
    for mode in ("L", "RGB", "RGBA", "LA"):
        image = Image.fromarray(rng.integers(0, 256, (12, 17, 4), np.uint8), "RGBA").convert(mode)
        result = purifier(image)
        assert (result.mode, result.size) == (image.mode, image.size)
        if "A" in mode:
            assert np.array_equal(np.array(result.getchannel("A")), np.array(image.getchannel("A")))


def test_kinds_agree_with_each_other(astronaut: np.ndarray) -> None:
    """Array, tensor and Pillow image of the same pixels give the same pixels."""
    purifier = Purifier(small_model())
    pixels = astronaut[:40, :50]
    expected = purifier(pixels)
    assert np.array_equal(np.array(purifier(Image.fromarray(pixels))), expected)
    assert torch.equal(purifier(tensor(pixels)), tensor(expected))
    as_float = purifier(tensor(pixels).float() / 255)
    assert torch.equal((as_float * 255).round().to(torch.uint8), tensor(expected))


@pytest.mark.parametrize(
    "bad",
    [torch.rand(3, 8, 8), torch.rand(1, 2, 8, 8), torch.rand(1, 3, 0, 8), torch.rand(0, 3, 0, 0), np.zeros((1, 1, 1, 1, 3), np.uint8)],
)
def test_wrong_shapes_are_refused(bad: Tensor | np.ndarray) -> None:
    """A shape that is no batch of images raises ValueError."""
    with pytest.raises(ValueError, match="expected"):
        Purifier(small_model())(bad)


def test_wrong_dtypes_are_refused() -> None:
    """Integer tensors other than uint8, and float arrays, whose range is unknown, raise TypeError."""
    for bad in (torch.zeros(1, 3, 8, 8, dtype=torch.int64), np.zeros((8, 8, 3), np.float32)):
        with pytest.raises(TypeError, match="expected"):
            Purifier(small_model())(bad)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: (x - 0.45) / 0.225, "found -2 to 2.44, which looks normalized: put the purifier before Normalize"),
        (lambda x: x * 2 - 1, "found -1 to 1, which looks normalized"),
        (lambda x: x * 255, "found 0 to 255: divide by 255"),
        (lambda x: x.half() * 255, "found 0 to 255: divide by 255"),
    ],
)
def test_another_scale_is_refused(change: Callable[[Tensor], Tensor], words: str) -> None:
    """Floating-point pixels that are normalized, or levels, are an error that names the range and the remedy."""
    x = torch.linspace(0, 1, 3 * 20 * 20).reshape(1, 3, 20, 20)
    for image in (change(x), change(x).requires_grad_()):
        with pytest.raises(ValueError, match=re.escape(words)):
            Purifier(small_model())(image)


def test_what_is_nearly_in_range_is_taken(shipped: Purifier) -> None:
    """An attack that was not clipped and the overshoot of bicubic resizing are images on our scale; levels in bytes have their own."""
    x = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    enlarged = torch.nn.functional.interpolate(x.round(), scale_factor=2, mode="bicubic")
    assert enlarged.max() > 1.01
    for image in (enlarged.mul(0.8).add(0.1), x + 8 / 255, x - 8 / 255, (x * 255).byte()):
        assert shipped(image).shape == image.shape


def test_arrays_with_channels_first_are_refused_with_the_remedy() -> None:
    """What would be purified as another image, or fail far inside, is named with the call that puts it right; four channels too."""
    purifier = Purifier(small_model())
    for shape, words in (
        ((3, 20, 30), "array.transpose(1, 2, 0)"),
        ((2, 3, 20, 30), "array.transpose(0, 2, 3, 1)"),
        ((20, 30, 4), "alpha"),
        ((20, 30, 2), "1 or 3 channels last"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            purifier(np.zeros(shape, np.uint8))


def test_weights_and_noise_may_be_named_at_once() -> None:
    """Loading needs no class method; noise goes before the settings', precision may be a dtype; `repr` says it in few lines."""
    purifier = Purifier(weights="comdefend-12bit", noise=7, device="cpu", precision=torch.float32, settings=Settings(tile=64))
    assert not purifier.training and purifier.settings == Settings(tile=64, input_noise=7)
    lines = repr(purifier).splitlines()
    assert lines[1:3] == ["  color: comdefend-12bit, noise 7", "  on cpu in float32"] and len(lines) == 5
    loaded = Purifier.from_pretrained("comdefend-12bit", noise=7, device="cpu", precision="float32")
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(purifier(x), loaded(x)) and torch.equal(Purifier("comdefend-12bit", noise=7, precision="float32")(x), loaded(x))
    assert "color: comdefend-fast, noise 20\n  gray: comdefend-fast-gray, noise 20" in repr(Purifier(device="cpu"))
    assert "color: networks of 12 bits, noise 0" in repr(Purifier(small_model()))
    with pytest.raises(UsageError, match="not both"):
        Purifier(small_model(), weights="comdefend-12bit")


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        ("a.png", "open the file, as purifier(Image.open('a.png'))"),
        (Path("a.png"), "open the file"),
        ([np.zeros((8, 8, 3), np.uint8)], "a list: purify its images one by one"),
        (3, "a Pillow image, a uint8 array (H, W, C) or a tensor (N, C, H, W), not int"),
    ],
)
def test_what_is_no_image_is_refused_with_the_remedy(thing: object, words: str) -> None:
    """The message says what is accepted, and what to do with what was given."""
    with pytest.raises(TypeError, match=re.escape(words)):
        Purifier(small_model())(thing)  # type: ignore[type-var]


def test_read_only_arrays_are_taken_without_a_warning() -> None:
    """As NumPy makes them of bytes and of Pillow's images."""
    array = np.frombuffer(bytes(range(192)), np.uint8).reshape(8, 8, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Purifier(small_model())(array).shape == array.shape


def test_grey_uses_grey_networks_and_falls_back_to_colour() -> None:
    """One channel takes the grey networks; without them, the luma of the colour result; colour needs colour."""
    color, gray = small_model(3), small_model(1)
    x = torch.randint(0, 256, (1, 1, 20, 20), dtype=torch.uint8)
    assert torch.equal(Purifier(color, gray)(x), untiled(gray, x))
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    luma = ((color(x.expand(-1, 3, -1, -1).float() / 255) * weights).sum(1, keepdim=True) * 255).round().to(torch.uint8)
    assert torch.equal(Purifier(color)(x), luma)
    with pytest.raises(UsageError, match="grey"):
        Purifier(None, gray)(torch.rand(1, 3, 8, 8))


def test_bfloat16_stays_near_float32(shipped: Purifier, astronaut: np.ndarray) -> None:
    """In bfloat16, on hardware with it or without, few code bits flip and the image hardly changes."""
    x = tensor(astronaut[:48, 128:176])
    half = Purifier.from_pretrained(device="cpu", precision="bfloat16")
    assert next(half.parameters()).dtype == torch.bfloat16
    assert (half.code(x) != shipped.code(x)).float().mean() < 0.05
    assert mean_psnr(half(x), shipped(x)) > 30


def test_the_paper_s_patches_go_through_either_family() -> None:
    """Each 32x32 patch, and what is left at the right and bottom, is rebuilt as an image of its own."""
    x = torch.randint(0, 256, (1, 3, 39, 65), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for family in FAMILIES:
        model = small_model(family=family)
        with torch.no_grad():  # As the networks take it, however few pixels it has.
            rows = [torch.cat([(model(patch / 255) * 255).round().byte() for patch in row.split(32, 3)], 3) for row in x.split(32, 2)]
        assert torch.equal(Purifier(model, None, Settings("paper"))(x), torch.cat(rows, 2))


@pytest.mark.exactness
def test_noise_is_reproducible_and_seamless() -> None:
    """The same seed gives the same result for any tile size, another seed another, and zero is the plain result."""
    x = torch.randint(0, 256, (2, 3, 70, 90), dtype=torch.uint8)
    results = [Purifier(small_model(), None, Settings(tile=tile, noise_std=1.0, seed=5))(x) for tile in (20, 33, 500)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert not torch.equal(results[0], Purifier(small_model(), None, Settings(noise_std=1.0, seed=6))(x))
    assert not torch.equal(results[0], Purifier(small_model())(x))


def test_noise_on_the_image_does_not_depend_on_the_tiling_and_differs_from_that_on_the_code() -> None:
    """A seed gives each place of an image its noise, whatever the tile; each kind of noise and each image that asks has its own."""
    x = torch.randint(0, 256, (2, 3, 70, 90), dtype=torch.uint8)
    chosen = [Settings(tile=tile, input_noise=20.0, noise_std=1.0, seed=5) for tile in (20, 33, 500)]
    results = [Purifier(small_model(), None, one)(x) for one in chosen]
    assert torch.equal(results[0], results[1]) and torch.equal(results[1], results[2])
    only = Purifier(small_model(), None, Settings(input_noise=20.0, seed=5))(x)
    assert not torch.equal(only, results[0]) and not torch.equal(only, Purifier(small_model(), None, Settings(input_noise=20.0, seed=6))(x))
    same = Purifier(small_model(), None, Settings(input_noise=20.0))(x[:1].repeat(2, 1, 1, 1))
    own = Purifier(small_model(), None, Settings(input_noise=20.0, noise_per_image=True))(x[:1].repeat(2, 1, 1, 1))
    assert torch.equal(same[0], same[1]) and not torch.equal(own[0], own[1])


def test_noise_on_the_image_has_the_standard_deviation_that_was_asked_for() -> None:
    """What ComCNN sees is the image plus Gaussian noise of so many 8-bit levels, clipped to [0, 1]."""
    seen: list[Tensor] = []
    model = small_model()
    model.com.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    Purifier(model, None, Settings(input_noise=10.0))(torch.full((4, 3, 64, 64), 0.5))
    noise = (seen[0] - 0.5) * 255
    assert abs(float(noise.std()) - 10.0) < 0.2 and abs(float(noise.mean())) < 0.2
    Purifier(model, None, Settings(input_noise=100.0))(torch.rand(1, 3, 32, 32))
    assert float(seen[1].min()) >= 0 and float(seen[1].max()) <= 1


def noisy_model(input_noise: float, channels: int = 3, bits: int = 12) -> ComDefend:
    """A small model with noise of its own."""
    model = small_model(channels, bits)
    model.input_noise = input_noise
    return model


def test_weights_bring_the_noise_that_they_are_made_for() -> None:
    """Unless it is told otherwise a purifier puts the weights' own noise on an image, the same in each call; 0 puts none."""
    x = torch.randint(0, 256, (2, 3, 70, 90), dtype=torch.uint8)
    own = Purifier(noisy_model(20.0))
    assert own.input_noise(3) == 20.0 and not own.settings.random
    assert torch.equal(own(x), Purifier(small_model(), None, Settings(input_noise=20.0))(x))
    assert torch.equal(own(x), own(x))
    assert torch.equal(Purifier(noisy_model(20.0), None, Settings(input_noise=0.0))(x), Purifier(small_model())(x))
    assert not torch.equal(Purifier(noisy_model(20.0), None, Settings(seed=1))(x), own(x))
    assert not torch.equal(own.code(x), Purifier(small_model()).code(x))


def test_colour_and_grey_networks_have_their_own_noise() -> None:
    """Where only the colour networks are made for noise, a grey image has none, and of several samples it needs one."""
    x = torch.randint(0, 256, (1, 1, 40, 50), dtype=torch.uint8)
    both = Purifier(noisy_model(20.0), small_model(1, 4), Settings(samples=3))
    assert (both.input_noise(3), both.input_noise(1)) == (20.0, 0.0)
    assert torch.equal(both(x), Purifier(None, small_model(1, 4))(x))
    through_color = Purifier(noisy_model(20.0))(x)
    assert torch.equal(through_color, Purifier(small_model(), None, Settings(input_noise=20.0))(x))
    with pytest.raises(UsageError, match="none of their own"):
        Purifier(small_model(), None, Settings(samples=3))


@pytest.mark.exactness
def test_a_strip_has_the_noise_of_its_place() -> None:
    """A strip that says which row it begins with is rebuilt as in the image, beyond the border's reach."""
    x = torch.randint(0, 256, (1, 3, 150, 40), dtype=torch.uint8)
    purifier = Purifier(noisy_model(20.0), None, Settings(noise_std=2.0))
    whole, strip = purifier(x), purifier.purify(x[:, :, 50:], top=50)
    assert torch.equal(whole[:, :, 50 + HALO :], strip[:, :, HALO:])
    assert not torch.equal(whole[:, :, 50 + HALO :], purifier(x[:, :, 50:])[:, :, HALO:])


def test_samples_are_averaged() -> None:
    """The result is the mean of the images rebuilt from different draws: their spread falls with the number of samples."""
    x = torch.full((1, 3, 64, 64), 0.4)
    model = small_model()
    one, nine = (torch.stack([Purifier(model, None, Settings(input_noise=60.0, samples=n, seed=s))(x) for s in range(8)]) for n in (1, 9))
    assert float(nine.std(0).mean()) < 0.5 * float(one.std(0).mean())
    first = Purifier(model, None, Settings(input_noise=60.0))(x)
    assert torch.equal(one[0], first) and not torch.equal(nine[0], first)
    coded = [Purifier(model, None, Settings(input_noise=60.0, samples=n)).code(x) for n in (1, 9)]
    assert torch.equal(*coded), "the code shown is that of the first sample"


@pytest.mark.exactness
@pytest.mark.parametrize("family", FAMILIES)
def test_code_is_what_the_image_is_rebuilt_from(family: str) -> None:
    """RecCNN on the code gives the purified image; the code is zeros and ones, tiled without seams."""
    model = small_model(family=family)
    x = torch.randint(0, 256, (1, 3, 61, 39), dtype=torch.uint8)
    code = Purifier(model, None, Settings(tile=16)).code(x)
    assert code.shape == (1, 12, 61, 39)
    assert set(code.unique().tolist()) == {0, 1}
    assert torch.equal((model.rec(code.float()) * 255).round().to(torch.uint8), Purifier(model)(x))


@pytest.mark.parametrize("gradient", ["straight-through", "soft"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_defended_classifier_has_gradients(family: str, gradient: str) -> None:
    """Through `nn.Sequential(purifier, classifier)`, in tiles and batches, the input's gradient is the untiled one."""
    model = small_model(family=family)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 41 * 39, 10))
    x = torch.rand(2, 3, 41, 39, requires_grad=True)
    defended = nn.Sequential(Purifier(model, None, Settings(tile=15, gradient=gradient)), classifier)
    plain = Purifier(model)(x.detach())
    assert torch.allclose(defended[0](x), plain, atol=1e-6), "the gradient must not change the values"
    (tiled,) = torch.autograd.grad(defended(x)[:, 0].sum(), x)
    (whole,) = torch.autograd.grad(classifier(model(x, None, gradient))[:, 0].sum(), x)
    assert tiled.abs().max() > 0
    assert torch.allclose(tiled, whole, rtol=1e-3, atol=1e-5 * float(whole.abs().max()))


def test_gradient_none_detaches() -> None:
    """With "none", and under no_grad, nothing can be differentiated."""
    x = torch.rand(1, 3, 8, 8, requires_grad=True)
    assert not Purifier(small_model(), None, Settings(gradient="none"))(x).requires_grad
    with torch.no_grad():
        assert not Purifier(small_model())(x).requires_grad


class Forgetful(ComDefend):
    """The small networks on a device whose memory holds windows of up to `room` pixels a batch."""

    room = 70 * 70
    kind: type[RuntimeError] = torch.OutOfMemoryError
    fails_at = 0

    def __init__(self) -> None:
        model = small_model()
        super().__init__(model.architecture)
        self.load_state_dict(model.state_dict())
        self.eval().requires_grad_(False)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Raise what CUDA raises when the batch is too large, or at one call."""
        self.shapes.append(tuple(x.shape))
        if x.shape[0] * x.shape[2] * x.shape[3] > self.room or len(self.shapes) == self.fails_at:
            raise self.kind("MPS backend out of memory")
        return super().forward(x, *args, **kwargs)


def test_running_out_of_memory_halves_the_tile_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is the same, the person is told, the next image starts with smaller tiles, and there is an end to it."""
    monkeypatch.setattr(bands, "count_band_pixels", lambda model: 10**6)  # Whole windows, as on a GPU.
    forgetful = Forgetful()
    purifier = Purifier(forgetful, None, Settings(tile=100))
    x = torch.randint(0, 256, (1, 3, 110, 70), dtype=torch.uint8)
    with pytest.warns(RuntimeWarning, match="out of memory: going on with tiles of"):
        assert torch.equal(purifier(x), untiled(small_model(), x))
    forgetful.shapes.clear()
    assert torch.equal(purifier(x), untiled(small_model(), x))
    assert len(forgetful.shapes) > 1
    forgetful.room = 10
    with pytest.raises(RuntimeError, match="out of memory"), pytest.warns(RuntimeWarning):
        purifier(x)
    assert forgetful.shapes[-1] == (1, 3, 28 + 2 * HALO, 24 + 2 * HALO), "cores of at most 32 pixels"


def test_running_out_of_memory_leaves_the_settings_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked for stays, tile and all, for records and for whoever uses the same settings elsewhere."""
    monkeypatch.setattr(bands, "count_band_pixels", lambda model: 10**6)
    x = torch.randint(0, 256, (1, 3, 110, 70), dtype=torch.uint8)
    for asked in (Settings(tile=100), Settings()):
        purifier = Purifier(Forgetful(), None, asked)
        with pytest.warns(RuntimeWarning, match="out of memory"):
            assert torch.equal(purifier(x), untiled(small_model(), x))
        assert purifier.settings is asked


def test_paper_tiling_goes_on_with_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's patches keep their size when memory runs out; fewer of them go through at once."""
    monkeypatch.setattr(bands, "count_band_pixels", lambda model: 10**6)
    x = torch.randint(0, 256, (2, 3, 110, 70), dtype=torch.uint8)
    expected = Purifier(small_model(), None, Settings("paper"))(x)
    with pytest.warns(RuntimeWarning, match="going on with batches"):
        assert torch.equal(Purifier(Forgetful(), None, Settings("paper"))(x), expected)


def test_what_was_done_before_memory_ran_out_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress takes back what is done again; a tile that is small already does not grow."""
    monkeypatch.setattr(bands, "count_band_pixels", lambda model: 1500)  # One window a batch.
    forgetful = Forgetful()
    forgetful.fails_at, forgetful.kind = 3, RuntimeError  # As MPS and the CPU say it.
    purifier = Purifier(forgetful, None, Settings(tile=20))
    x = torch.randint(0, 256, (2, 3, 20, 60), dtype=torch.uint8)
    done: list[int] = []
    with pytest.warns(RuntimeWarning, match="tiles of 20 pixels"):
        assert torch.equal(purifier.purify(x, done.append), untiled(small_model(), x))
    assert sum(done) == 2 * 20 * 60
    assert min(done) < 0


def test_progress_counts_every_pixel_once() -> None:
    """What progress is told adds up to all pixels of the batch."""
    done: list[int] = []
    Purifier(small_model(), None, Settings(tile=16)).purify(torch.rand(3, 3, 50, 41), done.append)
    assert sum(done) == 3 * 50 * 41


def test_devices_and_precisions_are_never_substituted() -> None:
    """What is asked for and absent is an error that says so; nonsense is too."""
    cpu = torch.device("cpu")
    for name in ("cuda:99", "gpu", "cuda:x", ""):
        with pytest.raises(UsageError, match="device"):
            resolve_device(name)
    with pytest.raises(UsageError, match="float16"):
        resolve_precision("float16", cpu)
    with pytest.raises(UsageError, match="precision"):
        resolve_precision("int4", cpu)
    assert resolve_device("cpu") == cpu
    assert resolve_precision("auto", cpu) == (torch.bfloat16 if cpu_has_bfloat16() else torch.float32)


def test_bfloat16_is_taken_only_where_the_cpu_multiplies_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AVX-512 BF16 or AMX in the CPU's flags say yes; AVX2 alone, no such file, or oneDNN held to an older CPU say no."""
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    for flags, expected in (("fpu avx2 avx512f", False), ("avx2 avx512_bf16", True), ("amx_tile amx_bf16", True)):
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\n")
        assert cpu_has_bfloat16(tmp_path / "cpuinfo") is expected
    for isa, expected in (("AVX2", False), ("avx512_core", False), ("AVX512_CORE_BF16", True), ("DEFAULT", True)):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
        assert cpu_has_bfloat16(tmp_path / "cpuinfo") is expected
    assert not cpu_has_bfloat16(tmp_path / "absent")


def test_settings_out_of_range_are_refused() -> None:
    """Each wrong setting is an error of usage that names it."""
    wrong: list[dict[str, object]] = [
        {"tiling": "x"},
        {"tile": 0},
        {"noise_std": -1},
        {"noise_std": float("inf")},
        {"seed": -1},
        {"gradient": "x"},
        {"input_noise": -1},
        {"samples": 0, "noise_std": 1.0},
        {"samples": 2, "input_noise": 0.0},
        {"tiling": "paper", "tile": 64},
    ]
    for values in wrong:
        with pytest.raises(UsageError):
            Settings(**values)  # type: ignore[arg-type]


@pytest.mark.exactness
@pytest.mark.parametrize("behind", [1, 3])
def test_results_that_come_later_go_to_their_places(monkeypatch: pytest.MonkeyPatch, behind: int) -> None:
    """Where a device is given the next batches before the first one's result is fetched, the image is the same."""
    model = small_model()
    x = torch.randint(0, 256, (3, 3, 70, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setitem(stitching.IN_FLIGHT, "cpu", behind)
    assert torch.equal(Purifier(model, None, Settings(tile=16))(x), untiled(model, x))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_many_batches_from_the_host_through_cuda(monkeypatch: pytest.MonkeyPatch, astronaut: np.ndarray) -> None:
    """Copies that overlap with the network bring what copies one by one bring."""
    x = tensor(astronaut[:256, :256])
    purifier = Purifier.from_pretrained(device="cuda", precision="bfloat16", settings=Settings(tile=32))
    monkeypatch.setitem(planning.BATCH_PIXELS, "cuda", 2**15)
    overlapped = [purifier(x) for _ in range(3)]
    monkeypatch.setitem(stitching.IN_FLIGHT, "cuda", 0)
    assert all(torch.equal(result, purifier(x.cuda()).cpu()) for result in overlapped)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("tile", [64, 200])
def test_exact_tiling_on_cuda(astronaut: np.ndarray, tile: int) -> None:
    """In float32 on CUDA, tiles equal the whole-image result in all but a few values, and resemble the CPU's."""
    x = tensor(astronaut[:256, :256])
    one, other = (Purifier.from_pretrained(device="cuda", precision="float32", settings=Settings(tile=size))(x) for size in (tile, 4096))
    # cuDNN picks algorithms by shape, so the last digits, and with them a few levels, may differ.
    assert (one != other).float().mean() < 1e-4
    assert (one.int() - Purifier.from_pretrained(device="cpu", precision="float32")(x).int()).abs().float().mean() < 0.5


def test_two_purifiers_of_the_same_weights_keep_to_themselves(shipped: Purifier, astronaut: np.ndarray) -> None:
    """Each has its own precision, and the weights that both were made from stay as they were."""
    loaded = load_weights("comdefend-12bit")
    one, two = (Purifier.from_weights([loaded], device="cpu", precision=name) for name in ("bfloat16", "float32"))
    assert (one.precision, two.precision) == ("bfloat16", "float32")
    x = torch.from_numpy(astronaut[:40, :40].copy()).permute(2, 0, 1)[None]
    assert torch.equal(two(x), Purifier.from_pretrained("comdefend-12bit", device="cpu", precision="float32")(x))
    assert next(loaded.model.parameters()).dtype == torch.float32


def test_the_switch_of_cudas_convolutions_is_set_back_by_the_last_of_several_threads() -> None:
    """One that ends while another still computes does not take true float32 from it."""
    device, before = torch.device("cuda"), torch.backends.cudnn.allow_tf32
    first, second = keep_float32(device), keep_float32(device)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not torch.backends.cudnn.allow_tf32
    second.__exit__(None, None, None)
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize("channels_last", [False, True])
def test_windows_are_the_images_squares(astronaut: np.ndarray, channels_last: bool) -> None:
    """However an image lies in memory, its windows are its own pixels over 255, channels last."""
    x = torch.from_numpy(astronaut[None, :70, :90].copy()).permute(0, 3, 1, 2)
    x = x if channels_last else x.contiguous()
    for batch in batch_windows(cut_tiles(70, 90, 32, HALO), 1, 4096):
        windows = stack_windows(x, batch, torch.device("cpu"))
        assert windows.is_contiguous(memory_format=torch.channels_last)
        for window, (_, tile) in zip(windows, batch, strict=True):
            torch.testing.assert_close(window * 255, x[0, :, tile.rows.window, tile.columns.window].float(), rtol=0, atol=1e-4)
