#!/usr/bin/env python3
"""Kill, interrupt and hinder `comdefend purify-dir` and `comdefend train`, and look whether anything is lost.

    python reliability/faults.py --kills 50 --signals 25 --images 20000 --out faults.json

Kills come at seeded random moments over the whole life of a process, half of them from its very start on, half in forks of a process that
has imported PyTorch; a third of the runs are killed twice. Then the same command goes on
(`train` with --resume where there is a checkpoint), and what it leaves must be byte for byte what an undisturbed run leaves, with nothing
else in the folder nor among temporary files. Signals that ask to end must leave no half-written file and no traceback, and be answered by
what was done.
Situations are those of `situations.py`, the long run that of `long_run.py`. What is left out now stays in the file as it was found before.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from findings import write_findings
from long_run import run_long
from processes import Ended
from runs import KINDS, Kind, Run
from situations import try_situations

#: What processes that were asked to end may end with: as the command says, or before it could say anything, by the signal itself.
ASKED = {signal.SIGINT: {130, -signal.SIGINT}, signal.SIGTERM: {130, -signal.SIGTERM}}

NOTHING = "nothing"


def main(argv: Sequence[str] | None = None) -> int:
    """Do all, write what was found, and return 1 if anything was lost."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--commands", nargs="+", default=[kind.name for kind in KINDS])
    made.add_argument("--kills", type=int, default=50, help="of each command")
    made.add_argument("--signals", type=int, default=25, help="of each kind, for each command")
    made.add_argument("--images", type=int, default=20_000, help="of the long run")
    made.add_argument("--no-situations", action="store_true", help="leave these out")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, default=Path("faults.json"))
    arguments = made.parse_args(argv)
    # Where this runs in the background of a script, Ctrl-C is ignored, and what it starts would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    rows: list[dict[str, Any]] = before.get("stopped", [])
    situations: list[dict[str, Any]] = before.get("situations", [])
    long: dict[str, Any] = before.get("long_run", {})

    def write(row: dict[str, Any] | None = None) -> None:
        rows[:] = [each for each in rows if not row or (each["command"], each["how"]) != (row["command"], row["how"])] + (
            [row] if row else []
        )
        write_findings(arguments.out, {"stopped": rows, "situations": situations}, long_run=long, seed=arguments.seed)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in (kind for kind in KINDS if kind.name in arguments.commands):
            if arguments.kills:
                write(kill(kind, folder / f"{kind.name}-kill", arguments.kills, arguments.seed))
            for number in ASKED if arguments.signals else ():
                write(interrupt(kind, folder / f"{kind.name}-{number.name}", number, arguments.signals, arguments.seed))
        if not arguments.no_situations:
            situations = try_situations(folder / "situations")
            write()
        if arguments.images:
            long = run_long(folder / "long", arguments.images)
            write()
    bad = [row for row in rows if row["wrong"] != NOTHING] + [row for row in situations if row["verdict"] != "right"]
    print(*bad, sep="\n", file=sys.stderr)
    return 1 if bad or long.get("grew") else 0


def kill(kind: Kind, folder: Path, count: int, seed: int) -> dict[str, Any]:
    """SIGKILL at random moments, then the rest in peace; the row of what was found."""
    draw, run = random.Random(f"{seed} {kind.name} kill"), Run(kind, folder)
    faults: list[str] = []
    killed, runs, stages = 0, 0, Counter[str]()
    while killed < count:
        run.clear()
        runs += 1
        for _ in range(min(draw.choice((1, 1, 2)), count - killed)):
            cold, moment = draw_moment(draw, run)
            hit = run.disturb(signal.SIGKILL, moment, cold=cold).code == -signal.SIGKILL
            killed += hit
            stages[run.find_stage()] += hit
        ended = run.finish()
        faults += [f"killed at {moment:.3f} s: {text}" for text in [*run.compare(), *([ended.said] if ended.code else [])]]
        _show(f"{kind.name}: killed {killed} times, {faults}")
    return {
        "command": kind.name,
        "how": "SIGKILL",
        "times": killed,
        "runs": runs,
        "ended": _say(stages),
        "wrong": " ".join("; ".join(faults).split()) or NOTHING,
    }


def interrupt(kind: Kind, folder: Path, number: signal.Signals, count: int, seed: int) -> dict[str, Any]:
    """SIGINT or SIGTERM at random moments; the row of what was found."""
    draw, run = random.Random(f"{seed} {kind.name} {number.name}"), Run(kind, folder)
    faults: list[str] = []
    asked, runs, codes = 0, 0, Counter[str]()
    while asked < count:
        run.clear()
        runs += 1
        cold, moment = draw_moment(draw, run)
        ended = run.disturb(number, moment, cold=cold)
        asked += not ended.late
        codes["" if ended.late else {130: "with exit code 130", 0: "ended before it mattered"}.get(ended.code, "by the signal")] += 1
        found = list(judge_interrupted(run, ended, number))
        if ended.code:
            rest = run.finish()
            found += [f"gone on: {text}" for text in [*run.compare(), *([rest.said] if rest.code else [])]]
        found = [f"{number.name} at {moment:.3f} s, {'cold' if cold else 'forked'}: {text}" for text in found]
        faults += found
        _show(f"{kind.name}: {number.name} {asked} times, {len(faults)} faults {found}")
    del codes[""]
    return {
        "command": kind.name,
        "how": number.name,
        "times": asked,
        "runs": runs,
        "ended": _say(codes),
        "wrong": " ".join("; ".join(faults).split()) or NOTHING,
    }


def draw_moment(draw: random.Random, run: Run) -> tuple[bool, float]:
    """Whether to start a process as a person does, and after how many seconds to disturb it."""
    cold = draw.random() < 0.5
    return cold, draw.random() * run.seconds[cold]


def judge_interrupted(run: Run, ended: Ended, number: signal.Signals) -> Iterator[str]:
    """What is wrong with how a run that was asked to end did."""
    if ended.code == 0:
        yield from run.compare()
        if ended.lived > 1.5:  # Less is what an end takes that was reached before.
            yield f"went on for {ended.lived:.1f} s"
    elif ended.code not in ASKED[number]:
        yield f"exit code {ended.code}: {ended.said}"
    elif run.find_stage() in ("working", "writing") and not run.kind.says_summary(ended.said):
        yield f"no summary: {ended.said}"
    if "Traceback" in ended.said and "comdefend_cli" in ended.said:
        yield f"a traceback: {ended.said}"
    yield from (f"left {path}" for path in run.list_litter())


def _say(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _show(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
