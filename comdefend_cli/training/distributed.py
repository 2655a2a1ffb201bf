"""Training in several processes that torchrun started: joining them, and failing together.

An error of one is raised on all (`together`, `PeerError`), so that none waits for a process that has left.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from comdefend_cli.errors import ComdefendError, TrainingError, UsageError, explain


class PeerError(TrainingError):
    """Another process of the run failed; that one, or the first, says why."""


@contextmanager
def process_group(device: torch.device) -> Iterator[tuple[torch.device, int]]:
    """Join the processes that torchrun started, if it did; yields this one's device and rank.

    Raises:
        UsageError: the device cannot be shared, or the others cannot be reached.
    """
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        yield device, 0
        return
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"several processes cannot train together on {device.type}: use --device cpu")
    try:
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"cannot join the processes of torchrun: {explain(error)}") from error
    try:
        yield device, dist.get_rank()
    finally:
        dist.destroy_process_group()


def find_place() -> tuple[int, int]:
    """Which process of the run this one is, from 0, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


@torch.no_grad()
def average(tensors: Sequence[Tensor]) -> None:
    """Replace tensors of one dtype and device by their means over the processes.

    Raises:
        TrainingError: another process was lost.
    """
    if not dist.is_initialized():
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    with _collective():
        dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, mean in zip(tensors, flat.split_with_sizes([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def take_first(tensor: Tensor) -> None:
    """Replace a tensor by the first process's.

    Raises:
        TrainingError: another process was lost.
    """
    if dist.is_initialized():
        with _collective():
            dist.broadcast(tensor, 0)


@contextmanager
def _collective() -> Iterator[None]:
    """Say of an error of the processes' communication, and of no other, that one was lost; the first that is left says it."""
    try:
        yield
    except RuntimeError as error:
        # NCCL's errors have a type of their own; what else is raised here, a kernel left behind. Gloo's are plain.
        if dist.get_backend() == "nccl" and not isinstance(error, dist.DistError):
            raise
        if dist.get_rank() > 0:
            raise peer_error(TrainingError.exit_code) from error
        raise TrainingError(f"another process was lost, or could not be reached: {explain(error)}") from error


@contextmanager
def together() -> Iterator[None]:
    """Raise what the block raises on every process of the run: as it is where it happened, `PeerError` elsewhere.

    An error that the first process also met is said by that one alone.
    """
    mine: ComdefendError | None = None
    try:
        yield
    except ComdefendError as error:
        mine = error
    code = mine.exit_code if mine else 0
    codes, rank = [code], 0
    if dist.is_initialized():
        codes, rank = [0] * dist.get_world_size(), dist.get_rank()
        with _collective():
            dist.all_gather_object(codes, code)
    if mine and (rank == 0 or codes[0] == 0):
        raise mine
    if any(codes):
        raise peer_error(max(codes))


def peer_error(exit_code: int) -> PeerError:
    """What to raise where another process said why, with its exit code."""
    error = PeerError("another process of the run failed")
    error.exit_code = exit_code
    return error
