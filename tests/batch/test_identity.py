"""What tells one run's results from another's stays what it was: journals of earlier versions are honoured."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import photo
from PIL import Image

from comdefend_cli import Settings
from comdefend_cli.batch.identity import Identity
from comdefend_cli.batch.local import open_local
from comdefend_cli.batch.networks import Networks
from comdefend_cli.batch.options import Options
from comdefend_cli.batch.request import Request
from comdefend_cli.batch.storage.folder import Folder

SHA256 = "ab" * 32
#: Keys that version 0.1 wrote into journals for weights of that hash.
RECORDED = [
    ("float32", "torch", Settings(), Options(), "53970dd95e9fdf30"),
    ("float32", "torch", Settings(tile=64), Options(), "53970dd95e9fdf30"),
    ("bfloat16", "torch", Settings(tile=64), Options(), "7db4ba59089a434f"),
    ("int8", "openvino", Settings(), Options(format="PNG"), "7534fef5a95d731e"),
    ("float32", "torch", Settings("paper"), Options(quality=80, strip=True), "00c2706688d019c8"),
    ("bfloat16", "triton", Settings(input_noise=0.0, seed=5), Options(format=".jpg"), "74d2f43092afda6d"),
    ("float32", "torch", Settings(noise_std=1.0, seed=5, samples=3, input_noise=0.0), Options(), "9dfc44cd6a7822ad"),
    ("float16", "torch", Settings(input_noise=20.0, samples=2), Options(True, None, None, False, True, 3), "8d85691782ae747f"),
]


def key(sha256: str, precision: str, backend: str, settings: Settings, options: Options) -> str:
    """The key of results so computed."""
    return Identity((sha256,), precision, backend, settings).make_key(sha256, options)


@pytest.mark.parametrize(("precision", "backend", "settings", "options", "recorded"), RECORDED)
def test_keys_are_those_of_earlier_versions(precision: str, backend: str, settings: Settings, options: Options, recorded: str) -> None:
    """Weights, precision, backend, settings and options of writing give the 16 digits that they gave before."""
    assert key(SHA256, precision, backend, settings, options) == recorded


def test_a_journal_that_an_earlier_version_wrote_is_honoured(tmp_path: Path, small_weights: Path) -> None:
    """Lines in its very words: the finished output is kept, the begun one is done again, and its half-written file goes."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    for path in (source / "a.png", source / "b.png", out / "a.png", out / "b.png"):
        Image.fromarray(photo("astronaut.png")[:16, :16]).save(path)
        os.utime(path, ns=(1_700_000_000_123_456_789, 1_700_000_000_123_456_789))
    (out / ".b.png.0123abcd.part").touch()
    networks = Networks(Request(str(small_weights), "cpu", "float32"))
    stamp = json.dumps([(source / "a.png").stat().st_size, 1_700_000_000_123_456_789], separators=(",", ":"))
    own = key(networks.identity.sha256s[0], "float32", "torch", Settings(), Options())
    lines = [
        '{"comdefend_state": 1}',
        '{"begin":["a.png","b.png"]}',
        f'{{"done":"a.png","from":"a.png","in":{stamp},"out":{stamp},"key":"{own}"}}',
    ]
    (out / ".comdefend-state.jsonl").write_text("\n".join(lines) + "\n")
    with open_local(Folder(source), Folder(out), networks) as work:
        results = [(Path(result.input).name, result.status) for result in work.results()]
    assert results == [("a.png", "kept"), ("b.png", "done")]
    assert not list(out.glob(".b.png.*"))
