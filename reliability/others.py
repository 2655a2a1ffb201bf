#!/usr/bin/env python3
"""Files that others wrote: each through `comdefend purify`, and what comes of it beside Pillow's own decoding.

    python reliability/others.py FOLDER [FOLDER ...] [--json FILE] [--list FILE] [--most 16]

Goes through all files below the folders that have an ending of an image; the same bytes are tried once. The network is put aside, so that
the output must hold the pixels that Pillow decodes. The JSON holds counts; --list writes a line a file that is not plainly correct.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from findings import write_findings
from judging import Decoded, decode, judge, name_reason, run_here, without_network

from comdefend_cli.imaging.formats import ALPHA, list_suffixes

#: Endings that image files have beside those that are read.
FURTHER = {".jpe", ".apng", ".mpo", ".jpf", ".jpx", ".j2c", ".jpc", ".pfm", ".ras"}


def find_files(folders: list[Path]) -> Iterator[Path]:
    """Files that have an ending of an image, each content once."""
    endings, seen = list_suffixes(writable=False).keys() | FURTHER, set()
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        if path.suffix.lower() in endings and path.is_file() and not path.is_symlink():
            digest = hashlib.sha256(path.read_bytes()).digest()
            if digest not in seen:
                seen.add(digest)
                yield path


def main() -> None:
    """Try all, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--json", type=Path, default=Path("others.json"))
    parser.add_argument("--list", type=Path)
    parser.add_argument("--most", type=float, default=16, help="megapixels that Pillow itself is to decode; larger files are left out")
    arguments = parser.parse_args()
    verdicts: Counter[str] = Counter()
    sources: dict[str, Counter[str]] = {}
    reasons: Counter[str] = Counter()
    lines = []
    with without_network(), tempfile.TemporaryDirectory() as name:
        for path in find_files(arguments.folders):
            verdict, said, known = try_file(path, Path(name), arguments.most * 1e6)
            if verdict == "too large":
                continue
            reads = isinstance(known, Decoded)
            if verdict == "refused":
                verdict = "refused, though Pillow decodes it" if reads else "refused, as Pillow does"
                reasons[name_reason(said)] += 1
            verdicts[verdict.split(":")[0]] += 1
            root = next(folder for folder in arguments.folders if path.is_relative_to(folder))
            part = path.relative_to(root).parts[0] if len(arguments.folders) == 1 else root.name
            sources.setdefault(part, Counter())[verdict.split(":")[0]] += 1
            if verdict != "correct":
                lines.append(json.dumps([verdict, str(path), known.mode if isinstance(known, Decoded) else known, said.strip()[-300:]]))
    if arguments.list:
        arguments.list.write_text("\n".join(lines) + "\n")
    write_findings(
        arguments.json,
        {
            "verdicts": [{"what came of a file": what, "files": count} for what, count in verdicts.most_common()],
            "sources": [
                {"where the files come from": part, "files": each.total(), **_split(each)} for part, each in sorted(sources.items())
            ],
            "reasons": [{"why refused": reason, "files": count} for reason, count in reasons.most_common(25)],
        },
        files=verdicts.total(),
    )


def _split(each: Counter[str]) -> dict[str, int]:
    refused = sum(count for verdict, count in each.items() if verdict.startswith("refused"))
    return {
        "files": each.total(),
        "correct": each["correct"],
        "recovered": each["recovered"],
        "refused": refused,
        "else": each.total() - each["correct"] - each["recovered"] - refused,
    }


def try_file(path: Path, base: Path, most: float) -> tuple[str, str, Decoded | str]:
    """The verdict on a file, written as PNG and in its own format, what the command said, and what Pillow decodes."""
    data = path.read_bytes()
    known = decode(data, most)
    if known == "too large":
        return known, "", known
    verdict, said = purify(path, data, base / "out" / "out.png", known)
    own = list_suffixes(writable=True).get(path.suffix.lower())
    if verdict == "correct" and own not in (None, "PNG") and isinstance(known, Decoded) and (known.alpha is None or own in ALPHA):
        again, more = purify(path, data, base / "out" / f"out{path.suffix}", known)
        differs = again.startswith(("pixels", "profile", "grey", "colour", "alpha")) and own != "TIFF"  # Not all formats hold all of these.
        if again != "correct" and not differs:
            return f"as {own}, {again}", more, known
    return verdict, said, known


def purify(path: Path, data: bytes, out: Path, known: Decoded | str) -> tuple[str, str]:
    """The verdict on one output, and what the command said."""
    out.parent.mkdir()
    try:
        ran = run_here("purify", str(path), "-o", str(out), "--weights", "comdefend-fast", "--device", "cpu")
        return judge(ran, data, out, known, same_pixels=True), ran.said
    finally:
        shutil.rmtree(out.parent)


if __name__ == "__main__":
    main()
