"""Windows through a network of no weights: what is asked of memory, what progress is told, and where results go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from comdefend_cli.inference import stitching
from comdefend_cli.inference.stitching import SMALLEST_TILE, Plan, join_windows, run_in_tiles
from comdefend_cli.inference.tiling import Batch, batch_windows, cut_tiles

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLAN = Plan(CPU, 40, 3000, 6)


def invert(windows: Tensor, batch: Batch) -> Iterator[Tensor]:
    """Each level turned round, from top to bottom in parts of 7 rows."""
    yield from (1 - windows).split(7, 2)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(0, 5), st.integers(1, 5), st.integers(1, 9000))
def test_batches_take_each_window_once_and_as_many_as_fit(height: int, width: int, tile: int, halo: int, count: int, pixels: int) -> None:
    """Windows of one shape, within the pixels unless one alone is more; of a shape only the last batch has room for another."""
    grid = cut_tiles(height, width, tile, halo)
    batches = list(batch_windows(grid, count, pixels))
    assert sorted((index, id(part)) for batch in batches for index, part in batch) == sorted(
        (index, id(part)) for part in grid for index in range(count)
    )
    with_room = []
    for batch in batches:
        ((rows, columns),) = {part.shape for _, part in batch}
        assert len(batch) == 1 or len(batch) * rows * columns <= pixels
        if (len(batch) + 1) * rows * columns <= pixels:
            with_room.append((rows, columns))
    assert len(with_room) == len(set(with_room))


@given(st.integers(1, 200), st.integers(32**2, 10**6), st.booleans())
def test_a_plan_shrinks_to_small_tiles_and_no_further(tile: int, pixels: int, patches: bool) -> None:
    """Half the side and a quarter of the batch at a time, down to 32 pixels a side, which a tile that is smaller already keeps."""
    plan = Plan(CPU, None if patches else tile, pixels, 6, 2)
    steps = [plan]
    while smaller := steps[-1].shrink():
        steps.append(smaller)
    for before, after in pairwise(steps):
        assert replace(after, tile=before.tile, batch_pixels=before.batch_pixels) == before != after
        assert after.batch_pixels == max(before.batch_pixels // 4, 32**2)
        assert after.tile == (before.tile if patches or before.tile <= 32 else max(before.tile // 2, 32))
    assert steps[-1].batch_pixels == SMALLEST_TILE**2 and steps[-1].tile == (None if patches else min(tile, 32))


def test_a_plan_fits_what_memory_held() -> None:
    """The smaller of both; patches have no side to fit; another device's memory says nothing."""
    small, patches = replace(PLAN, tile=32, batch_pixels=1024), replace(PLAN, tile=None)
    assert PLAN.fit(None) is PLAN.fit(replace(small, device=CUDA)) is PLAN
    assert PLAN.fit(small) == small and small.fit(PLAN) == small and PLAN.fit(replace(small, halo=99, step=9)) == small
    assert patches.fit(small) == replace(patches, batch_pixels=1024) and small.fit(patches) == small
    assert [tile.rows.core.start for tile in replace(PLAN, tile=9).cut(27, 5)] == [0, 9, 18], "on the grid of single pixels"


@pytest.mark.parametrize("behind", [0, 2])
def test_no_more_results_wait_than_the_device_may_have_behind(monkeypatch: pytest.MonkeyPatch, behind: int) -> None:
    """Each result is put into place as soon as so many newer ones are computed, so that memory does not grow with the image."""
    held: list[int] = [0]
    most: list[int] = []

    def fetch(result: Tensor, device: torch.device) -> Callable[[], Tensor]:
        held[0] += 1
        most.append(held[0])

        def wait() -> Tensor:
            held[0] -= 1
            return result

        return wait

    monkeypatch.setattr(stitching, "_fetch", fetch)
    monkeypatch.setitem(stitching.IN_FLIGHT, "cpu", behind)
    x = torch.rand(2, 3, 100, 90)
    out, plan = run_in_tiles(x, torch.zeros_like, invert, PLAN, None)
    assert torch.allclose(out, 1 - x)
    assert plan is PLAN and held == [0] and max(most) == behind + 1 and len(most) > 4


def test_progress_is_told_part_by_part() -> None:
    """As rows of windows are computed: by the share of the batch's pixels that they are of its rows, and all of them in the end."""
    told: list[int] = []
    x = torch.rand(1, 3, 21, 10)
    run_in_tiles(x, torch.zeros_like, invert, replace(PLAN, tile=64), told.append)
    assert told == [70, 70, 70]
    told.clear()
    run_in_tiles(x[:, :, :20], torch.zeros_like, invert, replace(PLAN, tile=64), told.append)
    assert told == [70, 70, 60]


def test_whole_images_are_not_copied_and_windows_lie_as_the_image_does() -> None:
    """Thousands of thumbnails stay where they are, also behind others; channels stay last, and of an image that has them first, first."""
    x = torch.rand(5, 3, 16, 12)
    batches = list(batch_windows(cut_tiles(16, 12, 16, 6), 5, 2 * 16 * 12))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    joined = [join_windows(x, batch) for batch in batches]
    assert [windows.data_ptr() for windows in joined] == [x[place].data_ptr() for place in (0, 2, 4)]
    assert torch.equal(torch.cat(joined), x)
    (batch,) = batch_windows(cut_tiles(16, 12, 8, 2), 1, 10**6)
    last = x.contiguous(memory_format=torch.channels_last)
    assert join_windows(x, batch).is_contiguous()
    assert join_windows(last, batch).is_contiguous(memory_format=torch.channels_last)


def test_a_gpu_copies_while_this_process_goes_on_and_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of a GPU: to it from pinned memory, from it into pinned memory, neither waited for until the result is needed."""
    did: list[str] = []

    class Far(SimpleNamespace):
        """What a tensor on a device is asked for."""

        def pin_memory(self) -> Far:
            did.append("pinned")
            return self

        def to(self, device: torch.device, non_blocking: bool = False) -> Far:
            did.append(f"to {device} {'later' if non_blocking else 'now'}")
            return self

        def copy_(self, other: Far, non_blocking: bool = False) -> Far:
            did.append(f"copied {'later' if non_blocking else 'now'}")
            return self

        def record_event(self) -> Far:
            did.append("event")
            return self

        def synchronize(self) -> None:
            did.append("waited")

    host = Far(device=CPU, requires_grad=False)
    monkeypatch.setattr(torch, "empty_like", lambda x, device, pin_memory: did.append(f"room {device} {pin_memory}") or host)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Far())
    wait = stitching._fetch(Far(device=CUDA, requires_grad=False), CPU)  # type: ignore[arg-type]
    assert did == ["room cpu True", "copied later", "event"] and wait() is host and did[3:] == ["waited"]
    for source, gradient, target, wanted in (
        (CPU, False, CUDA, ["pinned", "to cuda later"]),
        (CPU, True, CUDA, ["to cuda now"]),
        (CUDA, False, CUDA, ["to cuda now"]),
        (CPU, False, CPU, ["to cpu now"]),
    ):
        did.clear()
        stitching._move(Far(device=source, requires_grad=gradient), target)  # type: ignore[arg-type]
        assert did == wanted
    for source, gradient, target in ((CUDA, True, CPU), (CUDA, False, CUDA), (CPU, False, CPU), (CPU, False, CUDA)):
        did.clear()
        far = Far(device=source, requires_grad=gradient)
        assert stitching._fetch(far, target)() is far and did == [f"to {target} now"]  # type: ignore[arg-type]


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_a_gpu_gives_back_what_it_kept_before_it_goes_on(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """After memory ran out, once for each plan that is tried next; what is no lack of memory is not tried again."""
    failing = [MemoryError(), RuntimeError("CUDA out of memory")]
    emptied: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append("emptied"))

    def stitch(x: Tensor, out: Tensor, *_: object) -> Tensor:
        if failing:
            raise failing.pop()
        return out

    monkeypatch.setattr(stitching, "_stitch", stitch)
    plan = Plan(device, 128, 2**16, 6)
    with pytest.warns(RuntimeWarning, match="out of memory: going on with tiles of") as told:
        _, held = run_in_tiles(torch.rand(1, 3, 9, 9), torch.zeros_like, invert, plan, None)
    assert held == Plan(device, 32, 2**12, 6) and len(told) == 2 and len(emptied) == (2 if device == CUDA else 0)
    failing.append(RuntimeError("a shape is wrong"))
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        run_in_tiles(torch.rand(1, 3, 9, 9), torch.zeros_like, invert, plan, None)
