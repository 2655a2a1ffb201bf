"""Training in several processes that torchrun started: joining them, and failing together.

An error of one is raised on all (`together`, `PeerError`), so that none waits for a process that has left.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from comdefend_cli.errors import ComdefendError, TrainingError, UsageError, reason


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
        raise UsageError(f"cannot join the processes of torchrun: {reason(error)}") from error
    try:
        yield device, dist.get_rank()
    finally:
        dist.destroy_process_group()


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
