"""Weight files: those that ship are whole and described, others are checked before they are trusted."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAMILIES, Run, small_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as serialize
from typer.testing import CliRunner

from comdefend_cli.cli import app
from comdefend_cli.errors import UsageError, WeightsError
from comdefend_cli.network import registry, weight_file
from comdefend_cli.network.architecture import Architecture, PaperArchitecture, ResidualArchitecture
from comdefend_cli.network.model import ComDefend
from comdefend_cli.network.registry import DEFAULT_COLOR, DEFAULT_GRAY, load_weights, read_registry, read_weights_header
from comdefend_cli.network.weight_file import FORMAT, Header, Quantized, save_weights
from comdefend_cli.runtime import tensor_files
from comdefend_cli.runtime.files import find_weights_folder
from comdefend_cli.runtime.tensor_files import read_metadata

NARROW = PaperArchitecture(3, 12, (4,) * 8)
SQUARES = ResidualArchitecture(3, 12, 2, 4, 1)
SHIPPED = sorted(read_registry())


def content(change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None] | None = None, architecture: Architecture = NARROW) -> bytes:
    """The bytes of a weight file, after a change to its header and tensors."""
    torch.manual_seed(0)
    model = ComDefend(architecture)
    fields = json.loads(json.dumps({"format_version": FORMAT.version, **asdict(Header(architecture, {"data": "none"}))}))
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    if change:
        change(fields, tensors)
    return serialize(tensors, {FORMAT.key: json.dumps(fields)})


GOOD = content()
GOOD_SQUARES = content(architecture=SQUARES)


def with_header(text: bytes) -> bytes:
    """A file whose safetensors header is any text."""
    return struct.pack("<Q", len(text)) + text + GOOD[8 + int.from_bytes(GOOD[:8], "little") :]


def set_architecture(**values: Any) -> bytes:
    """A file whose header claims another architecture than its tensors have."""
    return content(lambda fields, tensors: fields["architecture"].update(values))


def set_squares(**values: Any) -> bytes:
    """The same of the second family; a value that is None is left out."""

    def change(fields: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        kept = {**fields["architecture"], **values}
        fields["architecture"] = {name: value for name, value in kept.items() if value is not None}

    return content(change, SQUARES)


def set_tensor(name: str, tensor: torch.Tensor) -> bytes:
    """A file with one tensor replaced or added."""
    return content(lambda fields, tensors: tensors.update({name: tensor}))


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty; make one"),
    "three bytes": (b"abc", "too short"),
    "an image": (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "not a weight file of comdefend"),
    "a PyTorch pickle": (b"PK\x03\x04" + b"\0" * 100, "not a weight file of comdefend"),
    "header only": (GOOD[: 8 + int.from_bytes(GOOD[:8], "little")], "truncated weight file"),
    "truncated in the header": (GOOD[:100], "header's length"),
    "truncated in the tensors": (GOOD[:-10], "truncated weight file"),
    "bytes at the end": (GOOD + b"more", "damaged"),
    "foreign safetensors": (serialize({"x": torch.zeros(1)}), "has no '__metadata__'"),
    "other metadata": (serialize({"x": torch.zeros(1)}, {"format": "pt"}), "has no 'comdefend'"),
    "header of a list": (with_header(b"[1, 2]"), "not a weight file"),
    "header nested deeply": (with_header(b"[" * 100_000), "not a weight file"),
    "header that is not text": (with_header(b"\xff\xfe"), "not a weight file"),
    "metadata that is a number": (with_header(b'{"__metadata__": {"comdefend": 3}}'), "not a weight file"),
    "newer format": (content(lambda fields, tensors: fields.update(format_version=2)), "pip install -U comdefend-cli"),
    "unknown format": (content(lambda fields, tensors: fields.update(format_version="x")), "format version"),
    "no training": (content(lambda fields, tensors: fields.pop("training")), "has no 'training'"),
    "noise in words": (content(lambda fields, tensors: fields.update(input_noise="much")), "not a number from 0 to 255"),
    "noise that is true": (content(lambda fields, tensors: fields.update(input_noise=True)), "not a number from 0 to 255"),
    "noise below none": (content(lambda fields, tensors: fields.update(input_noise=-1)), "not a number from 0 to 255"),
    "noise above white": (content(lambda fields, tensors: fields.update(input_noise=256)), "not a number from 0 to 255"),
    "endless noise": (content(lambda fields, tensors: fields.update(input_noise=float("inf"))), "not a number from 0 to 255"),
    "huge widths": (set_architecture(hidden=[1024] * 8), "its header's architecture has"),
    "widths beyond all": (set_architecture(hidden=[10**9] * 8), "widths from 1 to 1024"),
    "infinite width": (set_architecture(hidden=[float("inf")] * 8), "whole numbers"),
    "seven widths": (set_architecture(hidden=[4] * 7), "must be 8 widths"),
    "two channels": (set_architecture(channels=2), "channels must be"),
    "other bits": (set_architecture(bits=8), "its header's architecture has"),
    "wrong shape": (set_tensor("com.0.weight", torch.zeros(4, 3, 5, 5)), r"'com.0.weight' is \(4, 3, 5, 5\)"),
    "missing tensor": (content(lambda fields, tensors: tensors.__delitem__("rec.16.bias")), "'rec.16.bias' is missing"),
    "extra tensor": (set_tensor("virus", torch.zeros(1)), "'virus'"),
    "not a number": (set_tensor("com.0.bias", torch.full((4,), torch.nan)), "not finite"),
    "infinite": (set_tensor("rec.0.bias", torch.full((4,), torch.inf)), "not finite"),
    "half precision": (set_tensor("com.0.bias", torch.zeros(4, dtype=torch.float16)), "not float32"),
    "squares of three": (set_squares(downscale=3), "downscale must be one of"),
    "squares of one": (set_squares(downscale=1), "downscale must be one of"),
    "squares of half": (set_squares(downscale=2.0), "whole numbers"),
    "squares in words": (set_squares(downscale="2"), "whole numbers"),
    "squares that are true": (set_squares(downscale=True), "whole numbers"),
    "no squares": (set_squares(downscale=None), "has no 'downscale'"),
    "other squares": (set_squares(downscale=4), "its header's architecture has"),
    "no width": (set_squares(width=0), "width must be from 1 to 1024"),
    "width in words": (set_squares(width="64"), "whole numbers"),
    "width left out": (set_squares(width=None), "has no 'width'"),
    "endless width": (set_squares(width=10**30), "width must be"),
    "another width": (set_squares(width=1024), "its header's architecture has"),
    "fewer than no blocks": (set_squares(blocks=-1), "blocks must be from 0 to 64"),
    "too many blocks": (set_squares(blocks=65), "blocks must be from 0 to 64"),
    "more blocks": (set_squares(blocks=2), "'com.2.first.bias' is missing"),
    "blocks left out": (set_squares(blocks=None), "has no 'blocks'"),
    "both families": (set_squares(hidden=[4] * 8), "its header's architecture has"),
    "squares for two channels": (set_squares(channels=2), "channels must be"),
    "integers": (set_tensor("com.0.bias", torch.zeros(4, dtype=torch.int32)), "not float32"),
}  # fmt: skip


def without_memory(*arguments: Any) -> ComDefend:
    """Networks where they take no memory, and nowhere else."""
    assert torch.get_default_device().type == "meta"
    return ComDefend(*arguments)


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged, foreign or lying file is refused in one line that names it and what to do, before networks are made."""
    data, words = BAD[kind]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    monkeypatch.setattr(weight_file, "ComDefend", without_memory)
    with pytest.raises(WeightsError, match=words) as caught:
        load_weights(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and "; " in message and len(message) < len(str(path)) + 300
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_saved_is_loaded(channels: int, family: str, tmp_path: Path) -> None:
    """A saved network comes back with equal values, header and hash, ready for inference."""
    model = small_model(channels, family=family)
    path = tmp_path / "w.safetensors"
    sha256 = save_weights(path, model, {"steps": 7, "data": "none"})
    loaded = load_weights(str(path))
    assert sha256 == loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (loaded.name, loaded.header) == ("w.safetensors", Header(model.architecture, {"steps": 7, "data": "none"}))
    assert all(torch.equal(loaded.model.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert not loaded.model.training and not any(parameter.requires_grad for parameter in loaded.model.parameters())
    with pytest.raises(UsageError, match="--overwrite"):
        save_weights(path, model, {})
    assert read_weights_header(str(path)) == (loaded.header, sha256, path)


@pytest.mark.parametrize("family", FAMILIES[1:])
def test_a_file_says_how_large_residual_networks_are(family: str, tmp_path: Path) -> None:
    """Its header, and `weights show`, say the squares' side, the width and the blocks in place of the paper's widths."""
    path = tmp_path / "w.safetensors"
    save_weights(path, small_model(bits=8, family=family), {"psnr_db": 30.5})
    expected = {"channels": 3, "bits": 8, "downscale": int(family[-1]), "width": 16, "blocks": 2}
    assert read_metadata(path.read_bytes(), FORMAT.key)["architecture"] == expected
    shown = json.loads(CliRunner().invoke(app, ["weights", "show", str(path)]).stdout)
    assert (shown["architecture"], shown["psnr_db"]) == (expected, 30.5)
    assert CliRunner().invoke(app, ["weights", "verify", str(path)]).stdout.split()[0] == "ok"


def test_residual_weights_that_ship_are_listed_like_others(copied: Path) -> None:
    """A line with channels, bits, noise and PSNR, whatever the family; all of it also as JSON."""
    model = small_model(1, 4, family="residual-2")
    model.input_noise = 20.0
    sha256 = save_weights(copied / "squares.safetensors", model, {"psnr_db": 31.25, "ssim": 0.9})
    entry = {"file": "squares.safetensors", "sha256": sha256, "about": "half the resolution"}
    (copied / "registry.json").write_text(json.dumps({"squares": entry}))
    lines = CliRunner().invoke(app, ["weights", "list"]).stdout.splitlines()
    assert len(lines) == 2 and lines[1].split() == ["squares", "1", "4", "20", "31.25", *entry["about"].split()]
    (row,) = json.loads(CliRunner().invoke(app, ["weights", "list", "--json"]).stdout)
    wanted = {"name": "squares", "channels": 1, "bits": 4, "input_noise": 20.0, "psnr_db": 31.25, "ssim": 0.9, "sha256": sha256}
    assert wanted.items() <= row.items()


def test_a_file_says_what_noise_belongs_before_its_networks(tmp_path: Path) -> None:
    """It is saved and loaded with the networks; a file from before there was such noise has none."""
    for level in (20.0, 255.0):
        save_weights(tmp_path / "w.safetensors", ComDefend(NARROW, input_noise=level), {}, overwrite=True)
        loaded = load_weights(str(tmp_path / "w.safetensors"))
        assert loaded.header.input_noise == loaded.model.input_noise == level
    old = content(lambda fields, tensors: fields.pop("input_noise", None))
    (tmp_path / "old.safetensors").write_bytes(old)
    assert load_weights(str(tmp_path / "old.safetensors")).model.input_noise == 0.0


def test_networks_in_integers_are_kept_beside_the_others(tmp_path: Path) -> None:
    """Graph and constants come back byte for byte; one without the other, or of another kind, is refused."""
    quantized = Quantized(b"<net/>\0\xff", bytes(range(7)))
    save_weights(tmp_path / "w.safetensors", ComDefend(NARROW), {}, quantized=quantized)
    assert load_weights(str(tmp_path / "w.safetensors")).quantized == quantized
    for damage in (
        {"int8.graph": torch.zeros(3, dtype=torch.uint8)},
        {"int8.graph": torch.zeros(3), "int8.constants": torch.zeros(3, dtype=torch.uint8)},
        {"int8.graph": torch.zeros(3, dtype=torch.uint8), "int8.constants": torch.zeros(3, 1, dtype=torch.uint8)},
    ):
        (tmp_path / "bad.safetensors").write_bytes(content(lambda fields, tensors, damage=damage: tensors.update(damage)))  # type: ignore[misc]
        with pytest.raises(WeightsError, match="int8 networks are damaged; make them again"):
            load_weights(str(tmp_path / "bad.safetensors"))


def test_a_changed_byte_in_a_file_of_one_s_own_is_found(tmp_path: Path) -> None:
    """What `save` wrote is refused after a change to a tensor or to the header; a file from before it said its hash is not."""
    path = tmp_path / "w.safetensors"
    save_weights(path, ComDefend(NARROW), {"psnr_db": 33.25, "name": "\N{SNOWMAN}", "numbers": {1: 2, 10: 3}})
    data = path.read_bytes()
    load_weights(str(path))
    start = 8 + int.from_bytes(data[:8], "little")
    for changed in (data[:start] + bytes([data[start] ^ 1]) + data[start + 1 :], data.replace(b"33.25", b"34.25")):
        assert changed != data
        path.write_bytes(changed)
        with pytest.raises(WeightsError, match="a byte was changed"):
            load_weights(str(path))
    path.write_bytes(GOOD)
    load_weights(str(path))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_raises_weights_errors_only(tmp_path: Path, data: st.DataObject) -> None:
    """A file with bytes changed or cut off is read or ends in a WeightsError, never in another exception."""
    whole = data.draw(st.sampled_from([GOOD, GOOD_SQUARES]))
    damaged = bytearray(whole[: data.draw(st.sampled_from([len(whole), 3000, 400, 20]))])
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, min(3000, len(damaged) - 1)))] = data.draw(st.integers(0, 255))
    path = tmp_path / "w.safetensors"
    path.write_bytes(damaged)
    try:
        load_weights(str(path))
    except WeightsError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["no-such-weights", "no/such/file.safetensors", "x" * 5000, "", "nul\0byte"])
def test_unknown_names_are_wrong_usage(name: str) -> None:
    """A name or path that does not exist is a wrong request that lists what there is."""
    if name == "":
        with pytest.raises((UsageError, WeightsError)):
            load_weights(name)
        return
    with pytest.raises(UsageError, match=f"no such weights.*{SHIPPED[0]}"):
        load_weights(name)


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the folder of shipped weights that stands in for it."""
    folder = tmp_path / "weights"
    shutil.copytree(find_weights_folder(), folder)
    monkeypatch.setattr(registry, "find_weights_folder", lambda: folder)
    read_registry.cache_clear()
    yield folder
    read_registry.cache_clear()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_changed_byte_in_shipped_weights_is_found(name: str, copied: Path) -> None:
    """One bit changed, or the file lost, and every way to use the weights by name refuses them."""
    path = copied / read_registry()[name]["file"]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    for use in (load_weights, read_weights_header):
        with pytest.raises(WeightsError, match=r"SHA-256 is not the registry's.* install comdefend-cli again"):
            use(name)
    path.unlink()
    with pytest.raises(WeightsError, match=r"cannot read the weights.* install comdefend-cli again"):
        load_weights(name)


def test_verify_reports_each_damaged_file(copied: Path) -> None:
    """`verify` without a name goes through all that ship, and fails with a line for each that is damaged."""
    for entry in read_registry().values():
        (copied / entry["file"]).write_bytes(GOOD)
    result = CliRunner().invoke(app, ["weights", "verify"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("error: ") == result.stderr.count("\n") == len(SHIPPED)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"x": 3}', '{"x": {"file": "x"}}', '{"x": {"file": 1, "sha256": "", "about": ""}}'])
def test_a_damaged_registry_is_refused(text: str, copied: Path) -> None:
    """A registry that is not one ends in one line that says to install again."""
    (copied / "registry.json").write_text(text)
    with pytest.raises(WeightsError, match=r"registry\.json: damaged registry.*install comdefend-cli again"):
        load_weights("anything")


def test_every_shipped_file_is_in_the_registry() -> None:
    """The folder holds the files of the registry and no other, and the defaults are among the names there will be."""
    files = {path.name for path in find_weights_folder().iterdir() if path.suffix == ".safetensors"}
    assert files == {entry["file"] for entry in read_registry().values()}
    assert {DEFAULT_COLOR, DEFAULT_GRAY} <= read_registry().keys()


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_described(name: str) -> None:
    """Shipped weights load, fit their name, and say what they were trained on, how, how long, and how good they are."""
    loaded = load_weights(name)
    training = loaded.header.training
    assert f"-{loaded.header.architecture.bits}bit" in name or "-fast" in name
    assert (loaded.header.architecture.channels == 1) == ("gray" in name)
    wanted = "data steps batch_size seed bits channels penalty noise_std input_noise optimizer lr lr_end warmup precision init"
    wanted += " train_images test_images psnr_db ssim comdefend_version torch_version"
    assert set(wanted.split()) <= training.keys()
    assert training["steps"] > 0 and 5 < training["psnr_db"] < 60 and 0 < training["ssim"] <= 1
    assert (training["bits"], training["channels"]) == (loaded.header.architecture.bits, loaded.header.architecture.channels)
    assert read_registry()[name]["about"]


def test_list_show_and_verify_commands(run: Run, small_weights: Path) -> None:
    """`list` is whole on narrow output and in JSON, `show` prints header, PSNR and hash, `verify` passes all that ship."""
    listed = run("weights", "list", COLUMNS="30").stdout.decode().splitlines()
    assert len(listed) == 1 + len(SHIPPED) and listed[0].split() == ["name", "channels", "bits", "noise", "PSNR", "dB", "about"]
    for line, (name, entry) in zip(listed[1:], read_registry().items(), strict=True):
        assert line.startswith(name + " ") and line.endswith(entry["about"])
    rows = json.loads(CliRunner().invoke(app, ["weights", "list", "--json"]).stdout)
    assert [row["sha256"] for row in rows] == [entry["sha256"] for entry in read_registry().values()]
    shown = json.loads(CliRunner().invoke(app, ["weights", "show", SHIPPED[0]]).stdout)
    header = read_weights_header(SHIPPED[0])[0]
    assert shown["sha256"] == read_registry()[SHIPPED[0]]["sha256"]
    assert shown["psnr_db"] == header.training["psnr_db"]
    assert (shown["training"], shown["architecture"]["hidden"]) == (header.training, list(header.architecture.hidden))
    verified = run("weights", "verify")
    assert (verified.returncode, verified.stderr, verified.stdout.count(b"ok ")) == (0, b"", len(SHIPPED))
    assert CliRunner().invoke(app, ["weights", "verify", str(small_weights)]).stdout.split()[0] == "ok"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_list_that_cannot_be_written_is_an_error() -> None:
    """On a full disk `list` ends with one line and exit code 1."""
    command = [sys.executable, "-m", "comdefend_cli", "weights", "list"]
    with Path("/dev/full").open("wb") as full:
        refused = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert (refused.returncode, refused.stderr.count(b"\n")) == (1, 1), refused.stderr


def test_the_real_command_refuses_in_one_line(run: Run, tmp_path: Path) -> None:
    """Bad weights end the command with one line and exit code 1, absent ones with 2, without a traceback."""
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(BAD["newer format"][0])
    changed = tmp_path / "changed.safetensors"
    save_weights(changed, ComDefend(NARROW), {"psnr_db": 33.25})
    changed.write_bytes(changed.read_bytes().replace(b"33.25", b"34.25"))
    for arguments, code in [
        (("show", bad), 1),
        (("verify", tmp_path), 1),
        (("verify", changed), 1),
        (("verify", tmp_path / "absent"), 2),
    ]:
        refused = run("weights", *arguments)
        assert (refused.returncode, refused.stdout) == (code, b"")
        assert refused.stderr.startswith(f"error: {arguments[1]}: ".encode()) and refused.stderr.count(b"\n") == 1


def test_list_on_a_terminal_is_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal the same rows stand in a table."""
    from rich.console import Console

    from comdefend_cli.cli import console
    from comdefend_cli.cli.weights import list_

    monkeypatch.setattr(console, "out", Console(force_terminal=True, width=80, soft_wrap=True))
    list_()
    lines = capsys.readouterr().out.splitlines()
    assert any(SHIPPED[0][:10] in line and "│" in line for line in lines)


def test_devices_and_large_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is larger than any weight file is refused without reading more than the limit."""
    monkeypatch.setattr(tensor_files, "MAX_BYTES", 1000)
    path = tmp_path / "large.safetensors"
    path.write_bytes(b"\0" * 5000)
    with pytest.raises(WeightsError, match="too large"):
        load_weights(str(path))
