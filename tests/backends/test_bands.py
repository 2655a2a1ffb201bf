"""Bands of rows: the networks' values on whole windows, whatever the heights of window and band."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import small_model
from hypothesis import example, given, settings
from hypothesis import strategies as st

from comdefend_cli import Purifier, Settings
from comdefend_cli.backends import bands
from comdefend_cli.network.model import binarize


@pytest.mark.exactness
@settings(deadline=None, max_examples=30)
@given(st.integers(1, 70), st.integers(1, 30), st.integers(1, 2), st.integers(1, 1500), st.booleans())
@example(19, 5, 1, 1, False)
@example(20, 5, 1, 1, True)
@example(1, 1, 1, 1, False)
@example(44, 19, 2, 1, True)
def test_bands_are_the_whole_window(height: int, width: int, count: int, pixels: int, noisy: bool) -> None:
    """From 1x1 up, for bands of one row to all, with and without noise, image and code equal those of the whole window in every value."""
    model = small_model()
    generator = torch.Generator().manual_seed(height)
    x = torch.rand((count, 3, height, width), generator=generator)
    noise = torch.randn((count, 12, height, width), generator=generator) if noisy else None
    with torch.no_grad():
        logits = model.com(x) if noise is None else model.com(x) + noise
        assert torch.equal(torch.cat(list(bands.purify(model, x, noise, pixels)), 2), model(x, noise))
    assert torch.equal(torch.cat(list(bands.encode(model, x, noise, pixels)), 2), binarize(logits))


@pytest.mark.exactness
@pytest.mark.parametrize("channels", [1, 3])
def test_bands_hold_in_bfloat16(channels: int) -> None:
    """Also in bfloat16, on hardware with it or without."""
    model = copy.deepcopy(small_model(channels)).to(torch.bfloat16)
    x = torch.rand((1, channels, 60, 33), generator=torch.Generator().manual_seed(1))
    whole = model(x)
    assert torch.equal(torch.cat(list(bands.purify(model, x, None, 300)), 2), whole)


@pytest.mark.exactness
def test_bands_are_several_and_the_purifier_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large window goes through in more than one band; the pixels, and what progress is told, are those of the whole."""
    model = small_model()
    x = torch.randint(0, 256, (1, 3, 90, 70), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole, code = Purifier(model)(x), Purifier(model).code(x)
    monkeypatch.setattr(bands, "count_band_pixels", lambda dtype: 700)
    assert len(list(bands.purify(model, x / 255))) == 8
    done: list[int] = []
    assert torch.equal(Purifier(model).purify(x, done.append), whole)
    assert torch.equal(Purifier(model).code(x), code)
    assert sum(done) == 90 * 70
    assert len(done) == 8


def test_gradients_go_through_whole_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window that wants a gradient is not cut into bands, and has the gradient of the whole."""
    model = small_model()
    x = torch.rand(1, 3, 60, 40, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (expected,) = torch.autograd.grad(model(x, None, "straight-through").sum(), x)
    monkeypatch.setattr(bands, "count_band_pixels", lambda dtype: 100)
    (found,) = torch.autograd.grad(Purifier(model, None, Settings())(x).sum(), x)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_a_consumer_keeps_its_gradient_mode() -> None:
    """Between two bands, gradients are as the caller has them."""
    for _ in bands.purify(small_model(), torch.rand(1, 3, 40, 8), None, 8):
        assert torch.is_grad_enabled()
