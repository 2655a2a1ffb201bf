#!/usr/bin/env python3
"""Mutation score: how many small faults, put into the code one at a time, the tests find.

    python reliability/mutants.py [--packages tiling certificate] [--sample 150] [--seed 0] [--log mutants.jsonl] [--out mutants.json]
    python docs/tools/store.py mutants=mutants.json survivors=survivors.json

A mutant (reliability/mutation.py) meets the tests that run its lines, quickest first, and if it survives them those that start processes,
until one fails or takes ten times as long as without it. A fault within a function is put into it in a fork of a process that has collected
the tests (mutant_host.py); others are imported in their modules' places in processes of their own, as are all by processes of tests.
The log is gone on with: what it has is not tried again but for survivors, with --again. Why a mutant survives, survivors.json says.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent
ROOT = SCRIPTS.parent
sys.path[:0] = [str(ROOT), str(SCRIPTS)]

from mutant_trials import Trials  # noqa: E402
from mutation import Mutant, find_mutants  # noqa: E402

#: Of each package its modules, and the files of tests that are run.
PACKAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "tiling": (
        ("comdefend_cli/inference/tiling.py", "comdefend_cli/inference/stitching.py"),
        ("tests/inference/test_tiling.py", "tests/inference/test_stitching.py", "tests/inference/test_purifier.py"),
    ),
    "certificate": (
        (
            "comdefend_cli/integrations/grid_noise.py",
            "comdefend_cli/integrations/smoothed.py",
            "comdefend_cli/evaluate/certification.py",
        ),
        ("tests/integrations/test_grid_noise.py", "tests/integrations/test_smoothed*.py", "tests/evaluate/test_certification.py"),
    ),
    "weights": (
        ("comdefend_cli/network/weight_file.py", "comdefend_cli/network/registry.py"),
        ("tests/network/test_weights.py",),
    ),
    "imaging": (("comdefend_cli/imaging/*.py",), ("tests/imaging/*.py",)),
    # Not the modules of the Ray engine, each of whose tests starts a cluster.
    "batch": (
        ("comdefend_cli/batch/[!r]*.py", "comdefend_cli/batch/r[!a]*.py"),
        ("tests/batch/test_[!r]*.py", "tests/cli/test_purify_dir.py"),
    ),
}
REASONS = SCRIPTS / "survivors.json"


def main(argv: Sequence[str] | None = None) -> None:
    """Try mutants and write what became of them."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--packages", nargs="+", choices=PACKAGES, default=list(PACKAGES))
    made.add_argument("--sample", type=int, default=0, help="so many mutants of a package, drawn at random; 0 for all")
    made.add_argument("--seed", type=int, default=0, help="of the sample")
    made.add_argument("--log", type=Path, default=Path("mutants.jsonl"), help="what became of each mutant; gone on with")
    made.add_argument("--out", type=Path, default=Path("mutants.json"), help="what the packages of the log come to")
    made.add_argument("--again", action="store_true", help="try those of the log again that survived, and no others")
    made.add_argument("--tests", nargs="+", metavar="FILE", help="run these in place of the package's, such as the new ones with --again")
    made.add_argument("--quick", action="store_true", help="leave out tests that start processes, which take most of the time")
    arguments = made.parse_args(argv)
    log = arguments.log.resolve()  # Processes of mutants work in another folder.
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        for name in arguments.packages:
            states = {entry["key"]: entry["state"] for entry in read_log(log)}
            everything = find_package(name)
            drawn = everything if arguments.again else draw(everything, arguments.sample, arguments.seed)
            wanted = "survived" if arguments.again else None
            left = [mutant for mutant in drawn if states.get(mutant.key) == wanted]
            try_package(name, left, log, Path(folder), arguments.tests or list_files(PACKAGES[name][1]), quick=arguments.quick)
    # Imports the package, which the processes of mutants must find not imported yet.
    from mutant_report import sum_up, write_report

    current = {name: find_package(name) for name in PACKAGES}
    keys = {mutant.key for mutants in current.values() for mutant in mutants}
    entries = [entry for entry in read_log(log) if entry["key"] in keys]
    counts = {name: len(mutants) for name, mutants in current.items()}
    write_report(sum_up(entries, counts, json.loads(REASONS.read_text(encoding="utf-8"))), arguments.out)
    print(arguments.out)


def find_package(name: str) -> list[Mutant]:
    """All mutants of a package."""
    return [mutant for module in list_files(PACKAGES[name][0]) for mutant in find_mutants(ROOT / module, ROOT)]


def list_files(patterns: Sequence[str]) -> list[str]:
    """Files of the repository that patterns tell of."""
    return sorted(path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern))


def draw(mutants: Sequence[Mutant], sample: int, seed: int) -> list[Mutant]:
    """A sample in the order of the source, or all for 0; a larger one of the same seed holds the smaller one."""
    drawn = random.Random(seed).sample(mutants, len(mutants))
    return sorted(drawn[: sample or None], key=mutants.index)


def try_package(name: str, mutants: Sequence[Mutant], log: Path, folder: Path, files: Sequence[str], *, quick: bool) -> None:
    """Try mutants of a package on files of tests, and write a line of the log for each."""
    print(f"{name}: {len(mutants)} mutants to try", flush=True)
    if mutants:
        Trials(ROOT, list_files(PACKAGES[name][0]), files, folder, quick=quick).run(mutants, partial(note, log, name))


def note(log: Path, name: str, mutant: Mutant, state: str, test: str, seconds: float) -> None:
    """Write a line of the log."""
    about = {part: getattr(mutant, part) for part in ("key", "file", "function", "before", "after")}
    entry = {"package": name, **about, "line": mutant.lines[0], "state": state, "test": test, "seconds": round(seconds, 1)}
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    print(f"{state} in {seconds:.1f} s: {mutant.key}", flush=True)


def read_log(log: Path) -> list[dict[str, Any]]:
    """The last line of each mutant."""
    if not log.is_file():
        return []
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return list({entry["key"]: entry for entry in entries}.values())


if __name__ == "__main__":
    main()
