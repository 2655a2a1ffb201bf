#!/usr/bin/env python3
"""Files that others wrote: each through `comdefend purify`, and what comes of it beside Pillow's own decoding.

    python reliability/others.py FOLDER [FOLDER ...] [--json FILE] [--list FILE] [--most 16] [--together]

Goes through all files below the folders that have an ending of an image; the same bytes are tried once, by `purify`, or, with --together,
all by one run of `purify-dir`. The network is put aside, so that the output must hold the pixels that Pillow decodes. The JSON holds
counts; --list writes a line a file that is not plainly correct.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
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
    parser.add_argument("--together", action="store_true", help="all in one run of purify-dir")
    arguments = parser.parse_args()
    with without_network(), tempfile.TemporaryDirectory() as name:
        if arguments.together:
            lines = try_folder(list(find_files(arguments.folders)), Path(name), arguments.most)
            counts = Counter(f"failed: {name_reason('error: x: ' + reason)}" if reason else "done" for reason in lines)
            rows = [{"what came of it in purify-dir": what, "files": count} for what, count in counts.most_common(12)]
            write_findings(arguments.json, {"together": rows}, files=len(lines))
            return
        tried = [each for path in find_files(arguments.folders) if (each := try_file(path, Path(name), arguments.most * 1e6))]
    verdicts = Counter(each.verdict.split(":")[0] for each in tried)
    sources: dict[str, Counter[str]] = {}
    for each in tried:
        root = next(folder for folder in arguments.folders if each.path.is_relative_to(folder))
        below = each.path.relative_to(root).parts
        part = below[0] if len(arguments.folders) == 1 and len(below) > 1 else root.name
        sources.setdefault(part, Counter())[each.verdict.split(":")[0]] += 1
    reasons = Counter(name_reason(each.said) for each in tried if each.verdict.startswith("refused"))
    if arguments.list:
        arguments.list.write_text("".join(f"{each.describe()}\n" for each in tried if each.verdict != "correct"))
    write_findings(
        arguments.json,
        {
            "verdicts": [{"what came of a file": what, "files": count} for what, count in verdicts.most_common()],
            "sources": [{"where the files come from": part, **_split(each)} for part, each in sorted(sources.items())],
            "reasons": [{"why refused": reason, "files": count} for reason, count in reasons.most_common(12)],
        },
        files=len(tried),
    )


@dataclass(frozen=True)
class Tried:
    """A file, the verdict on it, what the command said, and what Pillow decodes, or why it does not."""

    path: Path
    verdict: str
    said: str
    known: Decoded | str

    def describe(self) -> str:
        """As a line."""
        known = self.known.mode if isinstance(self.known, Decoded) else self.known
        return json.dumps([self.verdict, str(self.path), known, self.said.strip()[-300:]])


def _split(each: Counter[str]) -> dict[str, int]:
    """Counts of verdicts, as a row of a table."""
    refused = sum(count for verdict, count in each.items() if verdict.startswith("refused"))
    return {
        "files": each.total(),
        "correct": each["correct"],
        "recovered": each["recovered"],
        "refused": refused,
        "else": each.total() - each["correct"] - each["recovered"] - refused,
    }


def try_file(path: Path, base: Path, most: float) -> Tried | None:
    """What came of a file, written as PNG and in its own format; None for one of more pixels than are to be tried."""
    data = path.read_bytes()
    known = decode(data, most)
    if known == "too large":
        return None
    verdict, said = purify(path, data, base / "out" / "out.png", known)
    own = list_suffixes(writable=True).get(path.suffix.lower())
    if verdict == "refused":
        verdict = "refused, though Pillow decodes it" if isinstance(known, Decoded) else "refused, as Pillow does"
    elif verdict == "correct" and own not in (None, "PNG") and isinstance(known, Decoded) and (known.alpha is None or own in ALPHA):
        again, more = purify(path, data, base / "out" / f"out{path.suffix}", known)
        differs = again.startswith(("pixels", "profile", "grey", "colour", "alpha")) and own != "TIFF"  # Not all formats hold all of these.
        if again != "correct" and not differs:
            return Tried(path, f"as {own}, {again}", more, known)
    return Tried(path, verdict, said, known)


def try_folder(paths: list[Path], base: Path, most: float) -> list[str]:
    """Why each file failed in one run of `purify-dir`, or "", of those that have an ending that it reads.

    Raises:
        RuntimeError: the run itself failed.
    """
    (base / "in").mkdir()
    for number, path in enumerate(paths):
        (base / "in" / f"{number:05}-{path.name}").symlink_to(path.resolve())
    places = ("-o", str(base / "outputs"), "--report", str(base / "report"), "--max-megapixels", str(most))
    ran = run_here("purify-dir", str(base / "in"), *places, "--weights", "comdefend-fast", "--device", "cpu", patience=3600)
    if ran.crash or ran.code not in (0, 1):
        raise RuntimeError(ran.crash or ran.said)
    return [json.loads(line)["reason"] for line in (base / "report").read_text().splitlines()]


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
