"""What a run of `comdefend purify-dir` did, for a person and as one record."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comdefend_cli.cli import console
from comdefend_cli.cli.console import err, notice
from comdefend_cli.cli.work import describe_settings

if TYPE_CHECKING:
    from comdefend_cli.batch.engine import Engine, Result


@dataclass
class Summary:
    """What a run did, for a person and as one record."""

    source: str
    out: str
    report: Path | None
    quiet: bool = False
    as_json: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)
    notices: Counter[str] = field(default_factory=Counter)
    lossy: Counter[str] = field(default_factory=Counter)
    pixels: int = 0
    total: int = 0
    skipped: int = 0
    subfolders: int = 0
    about: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)
    interrupted: bool = False
    at_once: bool = False

    def begin(self, engine: Engine) -> None:
        """Take over what is known before the first image; the clock starts here."""
        found, identity = engine.plan.found, engine.identity
        self.total = len(found.names) + len(found.unreadable)
        self.skipped, self.subfolders = found.skipped, found.subfolders
        self.about = {
            **describe_settings(identity.settings, engine.where, identity.precision, identity.backend),
            "weights_sha256": list(identity.sha256s),
        }
        self.began = time.perf_counter()

    def add(self, result: Result) -> None:
        """Count one result."""
        from comdefend_cli.imaging.formats import LOSSY

        self.counts[result.status] += 1
        self.notices.update(result.notices)
        if result.status == "failed":
            self.failures.append((str(result.input), result.reason))
        elif result.status == "done":
            self.pixels += (result.width or 0) * (result.height or 0)
            if result.format in LOSSY:
                self.lossy[LOSSY[result.format]] += 1

    @property
    def left(self) -> int:
        """Images that an interruption left undone."""
        return self.total - self.counts.total()

    def record(self) -> dict[str, Any]:
        """As one JSON object; times in seconds."""
        seconds = time.perf_counter() - self.began
        return {
            "input": str(self.source),
            "output": str(self.out),
            "report": None if self.report is None else str(self.report),
            "files": self.total,
            **{status: self.counts[status] for status in ("done", "kept", "failed")},
            "left": self.left,
            "skipped": self.skipped,
            "interrupted": self.interrupted,
            "megapixels": round(self.pixels / 1e6, 4),
            "seconds": round(seconds, 3),
            "megapixels_per_second": round(self.pixels / 1e6 / seconds, 4),
            **self.about,
        }

    def say(self) -> None:
        """Name what failed, then what happened to all; notices once each."""
        record, quiet = self.record(), self.quiet
        one_or_more = ("file", "files")
        for text, count in self.notices.most_common(20):
            notice(f"{_count(count, *one_or_more)}: {text}", quiet=quiet)
        for text, count in self.lossy.items():
            notice(f"{_count(count, *one_or_more)}: {text} changes the purified pixels again; --format png keeps them exactly", quiet=quiet)
        if self.subfolders:
            notice(
                f"{_count(self.subfolders, 'subfolder was', 'subfolders were')} left out; --recursive goes through them too", quiet=quiet
            )
        for path, why in self.failures:
            err.print(f"error: {console.escape_unprintable(path)}: {why}", style="red")
        if not quiet:
            rate = f"{record['megapixels']:.2f} megapixels in {record['seconds']:.1f} s ({record['megapixels_per_second']:.2f} a second); "
            speed = rate if self.pixels else ""
            err.print(
                f"{'interrupted: ' if self.interrupted else ''}{record['done']} purified, {record['kept']} kept from before, "
                f"{record['failed']} failed, {f'{self.left} left, ' if self.interrupted else ''}"
                f"{self.skipped} skipped (no images); {speed}output in {console.escape_unprintable(str(self.out))}"
            )
            if self.interrupted:
                err.print("the same command goes on from here", style="yellow")
        if self.as_json:
            console.print_json(record)


def _count(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"
