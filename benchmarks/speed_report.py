"""The results of `speed.py` as Markdown, so that no number in docs/data is typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: Keys that results have, one of them each.
KINDS = {"methods", "curve", "batches", "growth"}


def table(result: dict[str, Any]) -> str:
    """Tables of a result, and below them what they were measured on."""
    if "methods" in result:
        parts = [*_commands(result), "", *_methods(result)]
    elif "growth" in result:
        parts = _growth(result["growth"])
    else:
        first, second = ("curve", "bands") if "curve" in result else ("batches", "by_threads")
        parts = [*_curve(result[first]), "", *_curve(result[second])]
    return "\n".join([*parts, "", _about(result)])


def _commands(result: dict[str, Any]) -> list[str]:
    lines = [
        f"| `comdefend purify`, {result['size']}x{result['size']} | seconds, whole command | megapixels/s | times the authors' way | "
        "PSNR to float32, dB | peak memory, MB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for line in result["commands"]:
        quality = "" if line["psnr_db_to_float32"] is None else f"{line['psnr_db_to_float32']:.1f}"
        seconds = f"{line['seconds']:.1f}"
        if result["rounds"] > 1:
            seconds += f" ({line['fastest_seconds']:.1f}-{line['slowest_seconds']:.1f})"
        lines.append(
            f"| {line['name']} | {seconds} | {line['megapixels_per_second']:.4g} | {line['ratio_to_authors_way']:.2f} | {quality} | "
            f"{line['peak_mb']:.0f} |"
        )
    return lines


def _methods(result: dict[str, Any]) -> list[str]:
    span = " (lowest-highest)" if result["rounds"] > 1 else ""
    lines = [
        f"| Within one process | megapixels/s{span} | times the authors' way | share of the limit | measured on |",
        "| --- | --- | --- | --- | --- |",
    ]
    for line in result["methods"]:
        rates = f"{line['megapixels_per_second']:.4g}"
        if result["rounds"] > 1:
            rates += f" ({line['lowest']:.4g}-{line['highest']:.4g})"
        # The limit is that of the default's networks, which the paper's are not.
        ours = line["name"].startswith(("limit", "ours")) and not line["name"].endswith("denoise")
        share = f"{100 * line['share_of_limit']:.0f} %" if ours else ""
        lines.append(f"| {line['name']} | {rates} | {line['ratio_to_authors_way']:.2f} | {share} | {line['measured_on']} |")
    return lines


def _curve(rows: list[dict[str, Any]]) -> list[str]:
    size, *names = rows[0]
    head = {"tile": "Tile, pixels a side", "band": "Band, pixels a thread", "batch": "Images a batch", "threads": "Threads"}[size]
    lines = [f"| {head} | {' | '.join(names)} |", f"| --- {'| --- ' * len(names)}|"]
    return [*lines, *(f"| {row[size]:,} | {' | '.join(f'{row[name]:.4g}' for name in names)} |" for row in rows)]


def _growth(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| Megapixels | | seconds | seconds a megapixel | peak memory, MB | above decoded input and output, MB |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        numbers = f"{row['seconds']:.1f} | {row['seconds_a_megapixel']:.3g} | {row['peak_mb']:.0f} | {row['peak_mb_above_decoded']:.0f}"
        lines.append(f"| {row['megapixels']:g} | {row['name']} | {numbers} |")
    return lines


def _about(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    skipped = f" Not measured: {'; '.join(result['skipped'])}." if result["skipped"] else ""
    limit = ""
    if "limit_gflops" in result:
        rates = ", ".join(f"{value:g} GFLOP/s in {name}" for name, value in result["limit_gflops"].items())
        limit = f" The limit is a matrix product's rate, {rates}, over {result['flops_a_pixel']:,} operations a pixel."
    return (
        f"Medians of n = {result['rounds']} on {result['cpu']}, {result['threads']} threads on {result['cores']} cores; "
        f"load before {result['load_before']:g}; image: {Path(result['image']).name}; "
        f"Python {result['python']}, {versions}.{limit}{skipped}"
    )
