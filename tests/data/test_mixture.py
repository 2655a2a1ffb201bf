"""Training batches of several sources, and what varies them: colours, greys, small images, smaller photographs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from formats import cuts
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from comdefend_cli.data.drawings import Drawings
from comdefend_cli.data.mixture import SMALL, Mixture, Variation, cut_grid, jitter_colors, join_datasets
from comdefend_cli.data.sources import Crops, Dataset, ImageArray
from comdefend_cli.errors import UsageError

NONE = torch.empty(0, dtype=torch.int64)
SMALLER = ImageArray(torch.from_numpy(cuts(18, 32)).permute(0, 3, 1, 2), NONE)
LARGER = Drawings(64)
GRAY = ImageArray(SMALLER.pixels[:, :1], NONE)
#: What a batch is made of: all that is drawn of it.
ALL = Variation(jitter=0.5, small=0.5, gray=True)


def seeded(seed: int) -> torch.Generator:
    """A generator at a seed's start."""
    return torch.Generator().manual_seed(seed)


def random_pixels(seed: int, *shape: int) -> Tensor:
    """Uint8 of that shape, in which 0 and 255 are frequent."""
    values = torch.randint(-60, 316, shape, generator=seeded(seed))
    return values.clamp(0, 255).byte()


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000), st.sampled_from([Variation(), ALL, Variation(jitter=1.0), Variation(small=1.0)]))
def test_equal_generators_give_equal_batches(seed: int, variation: Variation) -> None:
    """The source, the images and what is done to them are drawn by the generator alone; another one gives other ones."""
    mixture = Mixture((SMALLER, LARGER), variation)
    (place, batch), (again, same) = mixture.draw(2, seeded(seed)), mixture.draw(2, seeded(seed))
    assert place == again and torch.equal(batch, same) and torch.equal(batch, mixture.batch(2, seeded(seed)))
    others = [mixture.batch(2, seeded(seed + number)) for number in (1, 2, 3)]
    assert any(other.shape != batch.shape or not torch.equal(other, batch) for other in others)


def test_batches_have_as_many_pixels_whatever_their_source() -> None:
    """Of sources of smaller images there are as many more, uint8 of their own side; the mixture has the largest side."""
    mixture = Mixture((SMALLER, LARGER, Drawings(16)))
    assert (mixture.side, mixture.channels, len(mixture)) == (64, 3, len(SMALLER) + 2 * len(LARGER))
    seen = {}
    for seed in range(40):
        place, batch = mixture.draw(3, seeded(seed))
        assert batch.dtype == torch.uint8
        seen[place] = tuple(batch.shape)
    assert seen == {0: (12, 3, 32, 32), 1: (3, 3, 64, 64), 2: (48, 3, 16, 16)}


def test_a_source_that_is_there_twice_is_drawn_twice_as_often() -> None:
    """And counted once in the number of images."""
    mixture = Mixture((SMALLER, GRAY, SMALLER))
    places = torch.tensor([mixture.draw(1, seeded(seed))[0] for seed in range(600)])
    assert len(mixture) == len(SMALLER) + len(GRAY)
    assert 160 < int((places == 1).sum()) < 240 and {0, 1, 2} == set(places.tolist())


def test_one_source_alone_draws_what_it_always_drew() -> None:
    """Runs of earlier versions go on as they began: no number is drawn before the batch, nor for variations that are off."""
    assert torch.equal(Mixture((SMALLER,)).batch(5, seeded(7)), SMALLER.batch(5, seeded(7)))


def test_data_sets_are_joined() -> None:
    """Names with "+" between them, the first one's images for tests, files that are left out counted once a folder, whatever its name."""
    first, same_name = Dataset("a", SMALLER, SMALLER, 2), Dataset("a", LARGER, LARGER, 5)
    parts = [first, Dataset("b", LARGER, GRAY, 1), first, same_name]
    joined = join_datasets(parts)
    assert (joined.name, joined.test, joined.skipped) == ("a+b+a+a", SMALLER, 8)
    assert isinstance(joined.train, Mixture) and joined.train.parts == (SMALLER, LARGER, SMALLER, LARGER)
    assert join_datasets(parts[:1]) is parts[0]


def test_colour_and_grey_are_joined_where_all_becomes_grey() -> None:
    """Otherwise it is an error that says so."""
    parts = [Dataset("color", SMALLER, SMALLER), Dataset("gray", GRAY, GRAY)]
    with pytest.raises(UsageError, match="--gray") as caught:
        join_datasets(parts)
    assert "\n" not in str(caught.value)
    joined = join_datasets(parts, gray=True).train
    assert isinstance(joined, Mixture)
    mixture = Mixture(joined.parts, Variation(gray=True))
    assert mixture.channels == 1
    assert {tuple(mixture.batch(2, seeded(seed)).shape) for seed in range(10)} == {(2, 1, 32, 32)}


@given(st.integers(0, 10**6))
def test_grey_is_pillow_s_grey(seed: int) -> None:
    """To within one level; what is grey already stays as it is."""
    pixels = random_pixels(seed, 2, 3, 5, 7)
    found = Variation(gray=True).apply(pixels, seeded(0))
    expected = [np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")) for image in pixels]
    assert found.shape == (2, 1, 5, 7) and found.dtype == torch.uint8
    assert int((found[:, 0].int() - torch.from_numpy(np.stack(expected)).int()).abs().max()) <= 1
    assert torch.equal(Variation(gray=True).apply(found, seeded(0)), found)
    equal = pixels[:, :1].expand(-1, 3, -1, -1)
    assert torch.equal(Variation(gray=True).apply(equal, seeded(0)), pixels[:, :1])


@given(st.integers(0, 10**6))
def test_jitter_keeps_grey_grey(seed: int) -> None:
    """Saturation and hue are nothing to a grey image: all its levels change by one factor, from half to the root of two."""
    levels = random_pixels(seed, 4, 1, 6, 5)
    found = jitter_colors(levels.expand(-1, 3, -1, -1), seeded(seed)).int()
    assert int((found.amax(1) - found.amin(1)).max()) <= 1
    for before, after in zip(levels[:, 0].float(), found[:, 0].float(), strict=True):
        free = (before > 20) & (after < 255)
        factors = (after / before)[free]
        if len(factors):
            assert float(factors.min()) >= 0.5 - 0.03 and float(factors.max()) <= 2**0.5 + 0.03
            assert torch.allclose(after[free], before[free] * factors.median(), atol=5)


@given(st.integers(0, 10**6))
def test_jitter_is_the_rotation_that_it_says(seed: int) -> None:
    """Against matrices in float64: the colour turned about the grey axis, its distance to luma scaled, the sum exposed and clipped."""
    pixels = random_pixels(seed, 3, 3, 4, 5)
    found = jitter_colors(pixels, seeded(seed))
    assert found.shape == pixels.shape and found.dtype == torch.uint8
    drawn = torch.rand((3, 3), generator=seeded(seed)).double().numpy()
    axis = np.ones(3) / np.sqrt(3)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    for index in range(3):
        saturation, angle, exposure = 2 * drawn[0, index], (2 * drawn[1, index] - 1) * np.pi, 2 ** (1.5 * drawn[2, index] - 1)
        turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
        x = pixels[index].numpy().astype(np.float64)
        luma = np.tensordot([0.299, 0.587, 0.114], x, 1)
        expected = (luma + saturation * np.einsum("ij,jhw->ihw", turn, x - luma)) * exposure
        assert np.abs(found[index].numpy() - expected.clip(0, 255)).max() <= 0.51


def test_jitter_changes_the_share_that_was_asked_for() -> None:
    """The other images stay as they are, and so do grey ones of one channel."""
    pixels = random_pixels(0, 200, 3, 4, 4)
    for share, least, most in ((0.0, 0, 0), (0.3, 40, 80), (1.0, 195, 200)):
        changed = (Variation(jitter=share).apply(pixels, seeded(1)) != pixels).flatten(1).any(1)
        assert least <= int(changed.sum()) <= most
    assert torch.equal(Variation(jitter=1.0).apply(pixels[:, :1], seeded(1)), pixels[:, :1])


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 45), st.integers(1, 45), st.sampled_from([1, 3]))
def test_a_grid_has_every_pixel_that_whole_cuts_have(height: int, width: int, rows: int, columns: int, channels: int) -> None:
    """Cuts lie side by side from the top left; what is left at the right and bottom is in none; larger cuts are the image."""
    pixels = random_pixels(height, 2, channels, height, width)
    found = cut_grid(pixels, rows, columns)
    rows, columns = min(rows, height), min(columns, width)
    expected = [
        image[:, top : top + rows, left : left + columns]
        for image in pixels
        for top in range(0, height - rows + 1, rows)
        for left in range(0, width - columns + 1, columns)
    ]
    assert torch.equal(found, torch.stack(expected))


def test_small_images_are_of_every_size_below_the_limit() -> None:
    """A share of the batches is cut, each to one size from 1 to 31 pixels a side, into at least as many images; the others are whole."""
    pixels = random_pixels(0, 2, 3, 64, 64)
    shapes = [Variation(small=0.5).apply(pixels, seeded(seed)).shape for seed in range(300)]
    cut = [shape for shape in shapes if shape[2:] != (64, 64)]
    assert 110 < len(cut) < 190
    assert {side for shape in cut for side in shape[2:]} == set(range(1, SMALL))
    assert all(shape[0] == 2 * (64 // shape[2]) * (64 // shape[3]) for shape in cut)


def test_photographs_are_made_smaller_by_the_mean_over_squares(astronaut: np.ndarray) -> None:
    """Every crop is a window, or its mirror image, of which squares of one to `shrink` pixels a side were averaged; each factor occurs."""
    image = astronaut[200:226, 100:125]
    source = Crops([torch.from_numpy(image.copy()).permute(2, 0, 1)], side=8, shrink=5)
    possible: dict[bytes, int] = {}
    for factor in (1, 2, 3):  # A fourth would not fit.
        size = 8 * factor
        for top in range(image.shape[0] - size + 1):
            for left in range(image.shape[1] - size + 1):
                squares = image[top : top + size, left : left + size].reshape(8, factor, 8, factor, 3)
                mean = squares.astype(np.float64).mean((1, 3)).round().astype(np.uint8)
                for each in (mean, mean[:, ::-1]):
                    possible.setdefault(np.ascontiguousarray(each).tobytes(), factor)
    batch = source.batch(200, seeded(0))
    assert batch.shape == (200, 3, 8, 8) and batch.dtype == torch.uint8
    found = [possible[crop.permute(1, 2, 0).contiguous().numpy().tobytes()] for crop in batch]
    assert all(found.count(factor) > 40 for factor in (1, 2, 3))
    assert torch.equal(batch, source.batch(200, seeded(0)))


def test_crops_that_are_not_made_smaller_draw_what_they_always_drew(astronaut: np.ndarray) -> None:
    """Neither `shrink` 1 nor an image without room for more takes a number from the generator."""
    images = [torch.from_numpy(astronaut[:40, :50].copy()).permute(2, 0, 1)]
    assert torch.equal(Crops(images, 32).batch(9, seeded(3)), Crops(images, 32, 8).batch(9, seeded(3)))
