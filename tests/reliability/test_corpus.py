"""A fixed share of the corpus of bad input, through `purify`; and what counts as right, refused and wrong there."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).parent.parent.parent / "reliability"


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts may import each other, and leave Pillow's settings as they were."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


@pytest.mark.usefixtures("folder")
def test_a_share_of_the_corpus(tmp_path: Path) -> None:
    """Each file becomes a correct image, or one line of error."""
    import corpus
    from judging import decode
    from made_files import make_cases

    cases = list(make_cases())[::53]
    (tmp_path / "in").mkdir()
    for case in cases:
        (tmp_path / "in" / case.name).write_bytes(case.data)
    found = corpus.try_here(cases, {case.name: decode(case.data) for case in cases}, tmp_path)
    assert len(found) == len(cases) > 60
    assert [(case.name, verdict) for case, verdict, _ in found if corpus.sort(verdict) == "wrong"] == []
    assert {"correct", "refused"} <= {verdict for _, verdict, _ in found}


@pytest.mark.usefixtures("folder")
def test_what_is_wrong_is_called_so(tmp_path: Path) -> None:
    """An output with other pixels, alpha, colour or size; one that is there although the command failed; files that are left; a crash."""
    from judging import Decoded, Ran, judge

    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    alpha = pixels[::-1].copy()
    known = Decoded(pixels, alpha, None, "LA", "PNG")
    out = tmp_path / "out.png"

    def verdict(image: np.ndarray, ran: Ran | None = None) -> str:
        Image.fromarray(image).save(out)
        return judge(ran or Ran(0, "note: x"), b"", out, known, same_pixels=True)

    both = np.stack([pixels, alpha], 2)
    assert verdict(both) == "correct"
    assert verdict(np.stack([pixels + 1, alpha], 2)) == "pixels"
    assert verdict(np.stack([pixels, alpha + 1], 2)) == verdict(pixels) == "alpha"
    assert verdict(both[:2]).startswith("size")
    assert verdict(np.stack([pixels, pixels, pixels, alpha], 2)) == "grey became colour"
    assert verdict(both, Ran(1, "error: x: y")).startswith("fails, and leaves")
    assert verdict(both, Ran(0, "", crash="ValueError")).startswith("crash")
    assert verdict(both, Ran(0, "", memory=2**30)).startswith("memory")
    out.unlink()
    assert judge(Ran(1, "error: x: y"), b"", out, known, same_pixels=True) == "refused"
    assert judge(Ran(1, "odd\nerror: x"), b"", out, known, same_pixels=True).startswith("says")
    (tmp_path / ".out.png.part").write_bytes(b"")
    assert judge(Ran(1, "error: x: y"), b"", out, known, same_pixels=True) == "leaves files behind"


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
@pytest.mark.usefixtures("folder")
def test_a_process_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And its code says so."""
    import corpus

    sleeping = tmp_path / "python"
    sleeping.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeping.chmod(0o755)
    monkeypatch.setattr(corpus.sys, "executable", str(sleeping))
    assert corpus.run_process(0.2, "purify").code == -9
