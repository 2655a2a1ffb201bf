"""What the record of a run says of the machine and the command."""

from __future__ import annotations

import platform
import shlex
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def describe_run(where: torch.device, precision: str, began: float) -> dict[str, Any]:
    """What results.json says of the machine and the command."""
    from comdefend_cli.runtime.device import describe_device
    from comdefend_cli.runtime.machine import count_cores

    return {
        "device": describe_device(where),
        "hardware": f"{platform.processor() or platform.machine()}, {count_cores()} cores",
        "platform": platform.platform(),
        "precision": precision,
        "command": shlex.join(["comdefend", *sys.argv[1:]]),
        "seconds": round(time.perf_counter() - began, 1),
    }
