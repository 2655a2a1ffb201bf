"""What the log of mutants.py comes to: a line a package, and every survivor with the reason why."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comdefend_cli.evaluate.stats import compute_percentages
from comdefend_cli.runtime.files import write_atomically

#: What stands for a survivor that nobody has looked at.
UNEXPLAINED = "not explained yet"
#: Longest expression that is shown whole.
_SHOWN = 90


def sum_up(entries: Sequence[Mapping[str, Any]], everything: Mapping[str, int], reasons: Mapping[str, str]) -> dict[str, Any]:
    """The tables of the log's entries.

    Args:
        entries: of :func:`reliability.mutants.read_log`.
        everything: how many mutants each package has, tried or not.
        reasons: why mutants survive, by their keys.
    """
    table, alive = [], []
    for package, count in everything.items():
        tried = [entry for entry in entries if entry["package"] == package]
        if not tried:
            continue
        states = [entry["state"] for entry in tried]
        found = compute_percentages(len(tried) - states.count("survived"), len(tried))
        # All were tried: there is nothing to estimate.
        interval = "" if len(tried) == count else f"{found['low']:.1f}-{found['high']:.1f}"
        alive += [entry for entry in tried if entry["state"] == "survived"]
        explained = sum(entry["key"] in reasons for entry in tried if entry["state"] == "survived")
        table.append(
            {
                "package": package,
                "mutants": count,
                "tried": len(tried),
                "killed by a failing test": states.count("killed"),
                "by taking too long": states.count("timeout"),
                "survived": states.count("survived"),
                "killed, %": round(found["accuracy"], 1),
                "95 % interval": interval,
                "survivors explained": explained,
            }
        )
    return {"packages": table, "survivors": [_describe(entry, reasons) for entry in alive]}


def write_report(found: Mapping[str, Any], out: Path) -> None:
    """The packages into `out`, the survivors beside it into "survivors.json"."""
    for path, part in ((out, "packages"), (out.with_name(f"survivors{out.suffix}"), "survivors")):
        write_atomically(path, (json.dumps({part: found[part]}, indent=1, ensure_ascii=False) + "\n").encode(), overwrite=True)


def _describe(entry: Mapping[str, Any], reasons: Mapping[str, str]) -> dict[str, str]:
    return {
        "where": f"{entry['file'].removeprefix('comdefend_cli/')}:{entry['line']} {entry['function']}".strip(),
        "fault": f"`{_shorten(entry['before'], entry['after'])}` becomes `{_shorten(entry['after'], entry['before'])}`",
        "why it survives": reasons.get(entry["key"], UNEXPLAINED),
    }


def _shorten(text: str, other: str) -> str:
    """The part of a text in which it differs from the other, with some around it."""
    if len(text) > _SHOWN:
        differs = next((place for place, pair in enumerate(zip(text, other, strict=False)) if pair[0] != pair[1]), 0)
        start = max(0, min(differs - _SHOWN // 3, len(text) - _SHOWN))
        text = ("… " if start else "") + text[start : start + _SHOWN] + (" …" if start + _SHOWN < len(text) else "")
    return text.replace("|", "\\|")
