"""What the fuzzer asks of the readers of foreign files, of its seeds and of a few changes of each."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent.parent / "reliability"


@pytest.mark.parametrize("reader", ["image", "cifar", "idx", "authors", "weights"])
def test_readers_answer_or_refuse(reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, cut in half, and with bytes changed: each gives what the reader promises, or one of its own errors in one line."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import fuzz_targets

    monkeypatch.setattr(fuzz_targets, "_folder", lambda: tmp_path)
    target, draw = fuzz_targets.TARGETS[reader], random.Random(reader)
    seeds = target.make_seeds()
    assert seeds
    for seed in seeds:
        changed = bytearray(seed)
        for _ in range(4):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        for data in (seed, seed[: len(seed) // 2], bytes(changed)):
            target.run(data)
