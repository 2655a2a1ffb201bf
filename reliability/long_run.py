"""A long run in small: thousands of tiny images in one process, whose memory, open files and threads are looked at."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from processes import start
from runs import make_images

#: Seconds between two looks.
_LOOK = 1.0
#: Share of the run that is not judged: what is loaded and kept once.
_WARM = 0.25
#: Growth of resident memory over the judged part that is no leak: a journal's entry takes about 250 bytes an image.
_ALLOWED = 500


def run_long(folder: Path, count: int) -> dict[str, Any]:
    """Purify so many images of 8 to 32 pixels a side, look at the process meanwhile, and tell of what it took when."""
    make_images(folder / "in", count, 8, 32)
    began = time.monotonic()
    process = start(["purify-dir", str(folder / "in"), "--out", str(folder / "out"), "--device", "cpu", "--quiet"])
    looks: list[dict[str, float]] = []
    while process.poll() is None:
        looks += [{"done": _count(folder / "out"), **seen} for seen in _look(process.pid) if (folder / "out").is_dir()]
        time.sleep(_LOOK)
    said = process.communicate()[1]
    seconds = time.monotonic() - began
    judged = [look for look in looks if _WARM * count < look["done"] < count]
    third = max(len(judged) // 3, 1)
    first, last = judged[:third], judged[-third:]
    grown = {name: _mean(last, name) - _mean(first, name) for name in ("megabytes", "files", "threads")}
    images = max(_mean(last, "done") - _mean(first, "done"), 1)
    bytes_an_image = grown["megabytes"] * 1e6 / images
    return {
        "images": count,
        "exit code": process.returncode,
        "said": said,
        "seconds": round(seconds, 1),
        "looks": len(looks),
        **{f"{name}, first third to last": f"{_mean(first, name):.1f} to {_mean(last, name):.1f}" for name in grown},
        "bytes more an image": round(bytes_an_image),
        "grew": bytes_an_image > _ALLOWED or grown["files"] > 1 or grown["threads"] > 1 or process.returncode != 0,
    }


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir())


def _mean(looks: list[dict[str, float]], name: str) -> float:
    return sum(look[name] for look in looks) / max(len(looks), 1)


def _look(process: int) -> list[dict[str, float]]:
    """Resident memory, open files and threads, where the process is still there."""
    try:
        place = Path(f"/proc/{process}")
        pages = int((place / "statm").read_text().split()[1])
        memory = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
        return [{"megabytes": memory, "files": _count(place / "fd"), "threads": _count(place / "task")}]
    except OSError:
        return []
