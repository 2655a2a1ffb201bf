#!/usr/bin/env python3
"""Coverage-guided fuzzing of the readers of foreign files: images, CIFAR-10, IDX, the authors' checkpoints, weight files.

    pip install atheris
    python reliability/fuzz.py --minutes 60 --out fuzz.json [--only image] [--corpus FOLDER]

The minutes are shared out between the targets of fuzz_targets.py by `SHARES`. What a reader may do is return, or raise one of its own
errors in one line; anything else is a finding: another exception, an input that takes more than `TIMEOUT` seconds or `MEMORY` MB, the end
of the process. Inputs that reached new code stay in FOLDER/TARGET, from where a later run begins; findings in FOLDER/TARGET-findings. The
JSON says executions, seconds and findings of each target. Python's code guides the fuzzer; C code (decoders, NumPy, PyTorch) runs unguided.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comdefend_cli.runtime.machine import read_cpu

#: Of the time; pictures have the most code.
SHARES = {"image": 0.5, "cifar": 0.15, "idx": 0.05, "authors": 0.15, "weights": 0.15}
#: Seconds and MB that one input may take, on a core that may be shared.
TIMEOUT = 20
MEMORY = 3072
MAX_INPUT = 32768


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzz, and say what was found."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--minutes", type=float, default=60)
    made.add_argument("--only", choices=SHARES)
    made.add_argument("--corpus", type=Path, help="where inputs are kept; else they are dropped at the end")
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--child", choices=SHARES, help=argparse.SUPPRESS)
    options, rest = made.parse_known_args(argv)
    if options.child:
        fuzz_here(options.child, options.out, rest)
    memory = Path("/dev/shm")  # What is read from files is in memory where the machine has such a place.
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        corpus = options.corpus or Path(folder)
        shares = {options.only: 1.0} if options.only else SHARES
        results = {name: fuzz(name, 60 * options.minutes * share, corpus, scratch) for name, share in shares.items()}
    report = {
        "command": f"python reliability/fuzz.py --minutes {options.minutes:g}",
        "cpu": read_cpu()[0],
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("atheris", "pillow", "numpy", "torch", "safetensors")},
        "hours": round(sum(result["seconds"] for result in results.values()) / 3600, 3),
        "executions": sum(result["executions"] for result in results.values()),
        "findings": sum(len(result["findings"]) for result in results.values()),
        "readers": [{"reader": name, **result, "findings": ", ".join(result["findings"])} for name, result in results.items()],
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{report['executions']} executions in {report['hours']} hours, {report['findings']} findings: {options.out}")
    return 1 if report["findings"] else 0


def fuzz(name: str, seconds: float, corpus: Path, scratch: str) -> dict[str, Any]:
    """Fuzz one target in processes of their own, with temporary files in `scratch`, until the time is up; one may follow another."""
    kept, found = corpus / name, corpus / f"{name}-findings"
    kept.mkdir(parents=True, exist_ok=True)
    found.mkdir(parents=True, exist_ok=True)
    began, executions, coverage = time.monotonic(), 0, 0
    while (left := seconds - (time.monotonic() - began)) > 1:
        flags = [f"-max_total_time={int(left)}", f"-timeout={TIMEOUT}", f"-rss_limit_mb={MEMORY}", f"-max_len={MAX_INPUT}"]
        flags += ["-print_final_stats=1", f"-artifact_prefix={found}/", "-close_fd_mask=1", str(kept)]
        command = [sys.executable, __file__, "--out", str(found), "--child", name, *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": scratch}
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False, env=environment
        )
        log = ended.stdout + ended.stderr
        counted = re.findall(r"stat::number_of_executed_units:\s*(\d+)", log) or re.findall(r"^#(\d+)\t", log, re.MULTILINE)
        executions += int(counted[-1]) if counted else 0
        coverage = max([coverage, *map(int, re.findall(r"cov: (\d+)", log))])
        if not counted:
            raise SystemExit(f"{name}: the fuzzer did not start:\n{log[-2000:]}")
    names = [path.name for path in sorted(found.iterdir()) if path.suffix != ".txt"]
    findings = [name for name in names if not name.startswith("slow-unit")]  # Half of `TIMEOUT`, which on a busy core says little.
    inputs = len(list(kept.iterdir()))
    spent = round(time.monotonic() - began)
    return {
        "executions": executions,
        "seconds": spent,
        "coverage": coverage,
        "inputs_kept": inputs,
        "slow": len(names) - len(findings),
        "findings": findings,
    }


def fuzz_here(name: str, found: Path, flags: list[str]) -> None:
    """Fuzz one target in this process, which ends with it. Exceptions are kept, one a place and type, and the fuzzer goes on."""
    import atheris

    prefixes = {"image": ("comdefend_cli", "PIL")}.get(name, ("comdefend_cli", "safetensors"))
    with atheris.instrument_imports(include=list(prefixes)):
        from fuzz_targets import TARGETS
        from PIL import Image

        Image.init()  # Imports the decoders.
    target = TARGETS[name]
    for module in target.modules:
        if module in ("pickletools", "tarfile", "gzip", "zipfile", "json"):
            instrument_module(module)
    for seed in target.make_seeds():
        path = Path(flags[-1]) / f"seed-{hashlib.sha256(seed).hexdigest()[:16]}"
        path.write_bytes(seed)

    def run(data: bytes) -> None:
        try:
            target.run(data)
        except Exception as error:
            keep(error, data, found)

    atheris.Setup([sys.argv[0], *flags], run)
    atheris.Fuzz()


def instrument_module(name: str) -> None:
    """Let the functions of a module that is imported already guide the fuzzer."""
    import importlib
    import types

    import atheris

    module = importlib.import_module(name)
    for value in [module, *vars(module).values()]:
        for key, function in list(vars(value).items()) if isinstance(value, (type, types.ModuleType)) else []:
            if isinstance(function, types.FunctionType) and function.__module__ == name:
                setattr(value, key, atheris.instrument_func(function))


def keep(error: Exception, data: bytes, found: Path) -> None:
    """Write an input and its traceback down, the first of each type and place in our code."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "comdefend_cli" in frame.filename]
    place = f"{Path(frames[-1].filename).stem}-{frames[-1].lineno}" if frames else "outside"
    path = found / f"{type(error).__name__}-{place}"
    if not path.exists():
        path.write_bytes(data)
        path.with_suffix(".txt").write_text("".join(traceback.format_exception(error)))


if __name__ == "__main__":
    sys.exit(main())
