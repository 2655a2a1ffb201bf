#!/usr/bin/env python3
"""Kill, interrupt and hinder `comdefend purify-dir` and `comdefend train`, and look whether anything is lost.

    python reliability/faults.py --kills 50 --signals 25 --images 20000 --out faults.json

Kills come at seeded random moments over the whole life of a process; a third of the runs are killed twice. Then the same command goes on
(`train` with --resume where there is a checkpoint), and what it leaves must be byte for byte what an undisturbed run leaves, with nothing
else in the folder nor among temporary files. Signals that ask to end must leave no half-written file and no traceback, and be answered by
what was done.
Situations are those of `situations.py`, the long run that of `long_run.py`.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from findings import write_findings
from long_run import run_long
from runs import KINDS, Kind, Run
from situations import try_situations

#: What processes that were asked to end may end with: as the command says, or before it could say anything, by the signal itself.
ASKED = {signal.SIGINT: {130, -signal.SIGINT}, signal.SIGTERM: {130, -signal.SIGTERM}}


def main(argv: Sequence[str] | None = None) -> int:
    """Do all, write what was found, and return 1 if anything was lost."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--kills", type=int, default=50, help="of each command")
    made.add_argument("--signals", type=int, default=25, help="of each kind, for each command")
    made.add_argument("--images", type=int, default=20_000, help="of the long run")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, default=Path("faults.json"))
    arguments = made.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = []
        for kind in KINDS:
            rows.append(kill(kind, folder / f"{kind.name}-kill", arguments.kills, arguments.seed))
            for number in ASKED:
                rows.append(interrupt(kind, folder / f"{kind.name}-{number.name}", number, arguments.signals, arguments.seed))
        situations = try_situations(folder / "situations")
        long = run_long(folder / "long", arguments.images) if arguments.images else {}
    write_findings(arguments.out, {"stopped": rows, "situations": situations}, long_run=long, seed=arguments.seed)
    bad = [row for row in rows if row["faults"]] + [row for row in situations if row["verdict"] != "right"]
    print(*bad, sep="\n", file=sys.stderr)
    return 1 if bad or long.get("grew") else 0


def kill(kind: Kind, folder: Path, count: int, seed: int) -> dict[str, Any]:
    """SIGKILL at random moments, then the rest in peace; the row of what was found."""
    draw, run = random.Random(f"{seed} {kind.name} kill"), Run(kind, folder)
    faults: list[str] = []
    killed, runs, moments = 0, 0, Counter[str]()
    while killed < count:
        run.clear()
        runs += 1
        for _ in range(min(draw.choice((1, 1, 2)), count - killed)):
            moment = draw.random() * run.seconds
            code, _ = run.disturb(signal.SIGKILL, moment)
            killed += code == -signal.SIGKILL
            moments[run.find_stage()] += code == -signal.SIGKILL
        code, said = run.finish()
        faults += [f"{run.describe(moment)}: {text}" for text in [*run.compare(), *([f"exit code {code}: {said}"] if code else [])]]
        _show(f"{kind.name}: killed {killed} times, {len(faults)} faults")
    return {"command": kind.name, "how": "SIGKILL", "times": killed, "runs": runs, "found": _say(moments), "faults": faults}


def interrupt(kind: Kind, folder: Path, number: signal.Signals, count: int, seed: int) -> dict[str, Any]:
    """SIGINT or SIGTERM at random moments; the row of what was found."""
    draw, run = random.Random(f"{seed} {kind.name} {number.name}"), Run(kind, folder)
    faults: list[str] = []
    codes, asked = Counter[str](), 0
    while asked < count:
        run.clear()
        moment = draw.random() * run.seconds
        code, said = run.disturb(number, moment)
        if code == 0:  # It had done everything; or it did not hear, which the stage below tells.
            faults += [f"{run.describe(moment)}: {text}" for text in run.compare()]
            if not run.late and run.lived > 1.5:  # Less is what an end takes that was reached before.
                faults.append(f"{run.describe(moment)}: went on to its end")
        elif code not in ASKED[number]:
            faults.append(f"{run.describe(moment)}: exit code {code}: {said}")
        asked += not run.late
        if "Traceback" in said and "comdefend_cli" in said:
            faults.append(f"{run.describe(moment)}: a traceback: {said}")
        if run.find_stage() == "working" and code == 130 and not kind.says_summary(said):
            faults.append(f"{run.describe(moment)}: no summary: {said}")
        faults += [f"{run.describe(moment)}: left {path}" for path in run.list_litter()]
        codes[{130: "130", 0: "done before"}.get(code, "by the signal")] += 1
        if code:
            code, said = run.finish()
            faults += [f"{run.describe(moment)}, gone on: {text}" for text in [*run.compare(), *([said] if code else [])]]
        _show(f"{kind.name}: {number.name} {asked} times, {len(faults)} faults")
    return {"command": kind.name, "how": number.name, "times": asked, "runs": asked, "found": _say(codes), "faults": faults}


def _say(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _show(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
