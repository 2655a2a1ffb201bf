"""Processes that train together: means over them, and what an error of their communication says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from comdefend_cli.errors import TrainingError
from comdefend_cli.training.distributed import PeerError, average, find_place, take_first, together


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of this process only."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_without_a_group_nothing_is_exchanged() -> None:
    """Tensors stay, and this is the first of one."""
    values = torch.arange(3.0)
    average([values])
    take_first(values)
    assert values.tolist() == [0, 1, 2] and find_place() == (0, 1)


@pytest.mark.usefixtures("alone")
def test_tensors_of_all_shapes_and_layouts_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a second process that has the same, summed, each keeps its values, shape and memory layout."""
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.mul_(2))
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    tensors = [torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last), torch.rand(()), torch.rand(7)]
    before = [tensor.clone() for tensor in tensors]
    average(tensors)
    assert all(torch.equal(mine, kept) for mine, kept in zip(tensors, before, strict=True))
    assert tensors[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_process_is_said_by_the_first(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """An error of the communication, wherever it is, says that a process was lost; the others leave that to the first."""

    def fail(*arguments: object, **more: object) -> None:
        raise RuntimeError("Connection closed\nby peer")

    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    for name in ("all_reduce", "broadcast", "all_gather_object"):
        monkeypatch.setattr(dist, name, fail)

    def gather() -> None:
        with together():
            pass

    for exchange in (lambda: average([torch.zeros(1)]), lambda: take_first(torch.zeros(1)), gather):
        with pytest.raises(TrainingError, match="another process") as caught:
            exchange()
        assert isinstance(caught.value, PeerError) == (rank > 0) and "\n" not in str(caught.value)
    if rank == 0:
        assert "another process was lost, or could not be reached: Connection closed by peer" in str(caught.value)
