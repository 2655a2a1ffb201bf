"""Drawings as training images: what is in them, and that a generator decides all of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comdefend_cli.data import drawings
from comdefend_cli.data.datasets import load_dataset
from comdefend_cli.data.drawings import COUNT, Drawings, draw, make_drawings

KINDS = ("_fill", "_blend", "_write", "_scribble", "_stripe", "_chequer", "_dither", "_scatter")


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**40), st.sampled_from([8, 9, 32, 61]), st.integers(1, 5))
def test_equal_generators_give_equal_drawings(seed: int, side: int, count: int) -> None:
    """Uint8 (N, 3, side, side), the same from equal generators, others from another; each draw takes the generator on."""
    source, generator = Drawings(side), torch.Generator().manual_seed(seed)
    first, second = source.batch(count, generator), source.batch(count + 3, generator)
    assert first.shape == (count, 3, side, side) and first.dtype == torch.uint8
    assert torch.equal(first, source.batch(count, torch.Generator().manual_seed(seed)))
    # The longer batch is drawn on from there, not begun with the same images.
    assert not torch.equal(second[:count], first) or first.float().std() == 0
    assert not torch.equal(second, source.batch(count + 3, torch.Generator().manual_seed(seed + 1)))


@pytest.mark.parametrize("side", [1, 2, 5, 32, 130])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_an_image_of_any_side(kind: str, side: int) -> None:
    """Colour, of that side, and drawn by the generator: ten of them are not all alike."""
    made = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        image = np.asarray(getattr(drawings, kind)(rng, drawings._choose_colors(rng), side))
        assert image.shape == (side, side, 3) and image.dtype == np.uint8
        made.append(image.tobytes())
    assert len(set(made)) > 1


def test_a_drawing_of_two_kinds_has_them_side_by_side() -> None:
    """Any side from one pixel up, and memory of its own in the usual order."""
    for side in (1, 2, 3, 40):
        for seed in range(20):
            image = draw(np.random.default_rng(seed), side)
            assert image.shape == (side, side, 3) and image.flags["C_CONTIGUOUS"] and image.flags["OWNDATA"]


def test_drawings_have_pure_colours() -> None:
    """Each corner of the colour cube fills a good share of them, where photographs have next to none; other colours are there as well."""
    pixels = Drawings(32).batch(300, torch.Generator().manual_seed(0)).permute(0, 2, 3, 1).reshape(-1, 3)
    pure = ((pixels == 0) | (pixels == 255)).all(1)
    assert 0.3 < float(pure.float().mean()) < 0.9
    corners = (pixels[pure] > 0).int() @ torch.tensor([4, 2, 1], dtype=torch.int32)
    shares = torch.bincount(corners, minlength=8) / len(pixels)
    assert float(shares.min()) > 0.01
    assert len(torch.unique(pixels[~pure], dim=0)) > 5000


def test_drawings_have_colours_at_the_surface_of_the_cube() -> None:
    """Flat colours with a channel at an end of its range and another one between, such as (0, 223, 0), which uniform ones never are."""
    pixels = Drawings(16).batch(300, torch.Generator().manual_seed(2))[:, :, 4, 4]
    at_end = ((pixels == 0) | (pixels == 255)).sum(1)
    assert float((at_end == 1).float().mean()) > 0.05 and float((at_end == 2).float().mean()) > 0.05
    assert float((at_end == 0).float().mean()) > 0.15


def test_drawings_have_flat_fields_and_edges() -> None:
    """Most neighbours are equal, and some are as far from each other as two colours can be."""
    steps = Drawings(32).batch(200, torch.Generator().manual_seed(1)).int().diff(dim=3).abs().amax(1)
    assert float((steps == 0).float().mean()) > 0.4
    assert 0.02 < float((steps == 255).float().mean()) < 0.4


def test_they_are_a_data_set_without_files(tmp_path: Path, no_network: None) -> None:
    """By the name "drawings", as large as the crops but at most 64, so that a batch holds many; those for tests are always the same."""
    one, other = load_dataset("drawings", tmp_path / "absent", download=False, crop=128), make_drawings(64)
    assert (one.name, len(one.train), one.train.channels, one.train.side, one.skipped) == ("drawings", COUNT, 3, 64, 0)
    assert torch.equal(one.test.pixels, other.test.pixels) and one.test.pixels.shape == (64, 3, 64, 64)
    assert load_dataset("drawings", tmp_path / "absent", download=False).train.side == 32
    assert not list(tmp_path.iterdir())
