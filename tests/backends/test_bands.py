"""Bands of rows: the networks' values on whole windows, whatever the heights of window and band."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import FAMILIES, small_model
from hypothesis import example, given, settings
from hypothesis import strategies as st

from comdefend_cli import Purifier, Settings
from comdefend_cli.backends import bands
from comdefend_cli.network.architecture import PaperArchitecture, ResidualArchitecture
from comdefend_cli.network.model import ComDefend, binarize


@pytest.mark.exactness
@settings(deadline=None, max_examples=30)
@given(st.integers(1, 70), st.integers(1, 30), st.integers(1, 2), st.integers(1, 1500), st.booleans(), st.sampled_from(FAMILIES))
@example(19, 5, 1, 1, False, "paper")
@example(20, 5, 1, 1, True, "paper")
@example(1, 1, 1, 1, False, "residual-4")
@example(44, 19, 2, 1, True, "paper")
@example(69, 19, 2, 1, True, "residual-2")
@example(70, 3, 1, 40, True, "residual-4")
def test_bands_are_the_whole_window(height: int, width: int, count: int, pixels: int, noisy: bool, family: str) -> None:
    """From 1x1 up, for bands of one row to all, with and without noise, image and code equal those of the whole window in every value."""
    model = small_model(family=family)
    generator = torch.Generator().manual_seed(height)
    x = torch.rand((count, 3, height, width), generator=generator)
    noise = torch.randn((count, 12, height, width), generator=generator) if noisy else None
    with torch.no_grad():
        logits = model.com(x) if noise is None else model.com(x) + noise
        assert torch.equal(torch.cat(list(bands.purify(model, x, noise, pixels)), 2), model(x, noise))
    assert torch.equal(torch.cat(list(bands.encode(model, x, noise, pixels)), 2), binarize(logits))


@pytest.mark.exactness
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_bands_hold_in_bfloat16(channels: int, family: str) -> None:
    """Also in bfloat16, on hardware with it or without."""
    model = copy.deepcopy(small_model(channels, family=family)).to(torch.bfloat16)
    x = torch.rand((1, channels, 60, 33), generator=torch.Generator().manual_seed(1))
    whole = model(x)
    assert torch.equal(torch.cat(list(bands.purify(model, x, None, 300)), 2), whole)


@pytest.mark.exactness
def test_bands_are_several_and_the_purifier_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large window goes through in more than one band; the pixels, and what progress is told, are those of the whole."""
    model = small_model()
    x = torch.randint(0, 256, (1, 3, 90, 70), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole, code = Purifier(model)(x), Purifier(model).code(x)
    monkeypatch.setattr(bands, "count_band_pixels", lambda model: 700)
    assert len(list(bands.purify(model, x / 255))) == 8
    done: list[int] = []
    assert torch.equal(Purifier(model).purify(x, done.append), whole)
    assert torch.equal(Purifier(model).code(x), code)
    assert sum(done) == 90 * 70
    assert len(done) == 8


@pytest.mark.exactness
@pytest.mark.parametrize("family", FAMILIES[1:])
def test_squares_go_through_in_bands_of_rows_of_squares(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Image and code in several bands are those of the whole, also of tiles and at an odd size; progress counts every pixel once."""
    model = small_model(family=family)
    x = torch.randint(0, 256, (1, 3, 157, 45), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole, code = Purifier(model)(x), Purifier(model).code(x)
    monkeypatch.setattr(bands, "count_band_pixels", lambda model: 700)
    parts = [part.shape[2] for part in bands.purify(model, x / 255)]
    assert sum(parts) == 157 and len(parts) > 3
    assert all(rows % model.architecture.scale == 0 for rows in parts[:-1])
    for tile in (4096, 91):
        done: list[int] = []
        purifier = Purifier(model, None, Settings(tile=tile))
        assert torch.equal(purifier.purify(x, done.append), whole)
        assert torch.equal(purifier.code(x), code)
        assert sum(done) == 157 * 45 and len(done) > 3


def test_a_band_has_as_many_pixels_as_its_widest_activations_allow() -> None:
    """8 MB of them a thread: of networks at half resolution, whose 64 channels are 16 values a pixel, more than of the paper's 256."""
    threads = min(torch.get_num_threads(), bands.MOST_THREADS)
    for architecture, values in ((PaperArchitecture(), 256), (ResidualArchitecture(), 16), (ResidualArchitecture(downscale=4), 12)):
        model = ComDefend(architecture)
        assert bands.count_band_pixels(model) == 2**23 // (values * 4) * threads
        assert bands.count_band_pixels(model.to(torch.bfloat16)) == 2**23 // (values * 2) * threads


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_go_through_whole_windows(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """A window that wants a gradient is not cut into bands, and has the gradient of the whole."""
    model = small_model(family=family)
    x = torch.rand(1, 3, 61, 40, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (expected,) = torch.autograd.grad(model(x, None, "straight-through").sum(), x)
    monkeypatch.setattr(bands, "count_band_pixels", lambda model: 100)
    (found,) = torch.autograd.grad(Purifier(model, None, Settings())(x).sum(), x)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_a_consumer_keeps_its_gradient_mode() -> None:
    """Between two bands, gradients are as the caller has them."""
    for _ in bands.purify(small_model(), torch.rand(1, 3, 40, 8), None, 8):
        assert torch.is_grad_enabled()
