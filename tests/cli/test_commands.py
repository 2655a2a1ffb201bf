"""All commands, walked through: help, documents, defaults."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from conftest import Run
from PIL import Image
from typer.testing import CliRunner

from comdefend_cli.batch.options import Options
from comdefend_cli.batch.request import Request
from comdefend_cli.cli import app, console
from comdefend_cli.cli.epsilons import parse_epsilons
from comdefend_cli.cli.helping import EXAMPLES
from comdefend_cli.evaluate.protocol import Protocol
from comdefend_cli.inference.settings import Settings
from comdefend_cli.training.classifier_config import BaselineConfig, ClassifierConfig
from comdefend_cli.training.config import TrainConfig

ROOT = Path(__file__).parent.parent.parent


def walk(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command below one, and itself, by the words that call it."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, f"{path} {name}".strip())


COMMANDS = dict(walk(typer.main.get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_sentences(name: str) -> None:
    """Every command and every option has help that begins with a capital, ends with a full stop, and is no fragment such as "Of ..."."""
    texts = {"the command": COMMANDS[name].help}
    texts |= {parameter.name: parameter.help for parameter in COMMANDS[name].params if not parameter.name.endswith("_completion")}
    for parameter, text in texts.items():
        assert text, f"{name}: {parameter} has no help"
        assert re.match(r"(?s)(?!Of )[A-Z].*\.$", text.strip()), f"{name}: {parameter}: {text!r} is no sentence"


@pytest.mark.parametrize("name", EXAMPLES)
def test_help_is_readable_on_80_columns(name: str) -> None:
    """Three examples whose options there are, options by what they are about, no types, and no line that a terminal would break."""
    done = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "80"}, terminal_width=80)
    assert done.exit_code == 0 and max(map(len, done.stdout.splitlines())) <= 80
    assert "INTEGER" not in done.stdout and "TEXT RANGE" not in done.stdout
    visible = [each for each in COMMANDS[name].params if not getattr(each, "hidden", False) and each.param_type_name == "option"]
    assert all(option in done.stdout for parameter in visible for option in parameter.opts)
    assert len(EXAMPLES[name]) == 3
    for example in EXAMPLES[name]:
        assert example.startswith(f"comdefend {name}") and f"  {example}\n" in done.stdout
        known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
        assert {word for word in example.split()[2:] if word.startswith("-") and word != "-"} <= known | {"-o"}


def test_variables_stand_for_options(run: Run, tmp_path: Path) -> None:
    """What is common may be set once; what is on the command line goes before."""
    (tmp_path / "a.png").write_bytes(b"x")
    for option, variable in (("weights", "COMDEFEND_WEIGHTS"), ("device", "COMDEFEND_DEVICE"), ("precision", "COMDEFEND_PRECISION")):
        Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
        done = run("purify", tmp_path / "a.png", **{variable: "nonsense"})
        assert done.returncode == 2 and b"nonsense" in done.stderr, option
    assert run("purify", tmp_path / "a.png", "--device", "cpu", "-q", COMDEFEND_DEVICE="nonsense").returncode == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["purify"], "error: missing argument 'IN... [OUT]'; see "),
        (["purify", "a.png", "--tile", "x"], "error: invalid value for '--tile'"),
        (["purify", "a.png", "--nonsense"], "error: no such option: --nonsense"),
        (["nonsense"], "error: no such command 'nonsense'"),
        (["purify-dir", "a", "b"], "error: got unexpected extra argument(s) (b); where to write is -o; see "),
    ],
)
def test_a_wrong_command_line_is_an_error_like_others(run: Run, words: list[str], message: str) -> None:
    """One line that says where help is, exit code 2."""
    done = run(*words)
    said = done.stderr.decode()
    assert (done.returncode, done.stdout, said.count("\n")) == (2, b"", 1)
    assert said.startswith(message) and said.endswith("--help\n")


@pytest.mark.parametrize(("words", "said"), [(["purify-dir", ""], "a name or value"), (["weights", "verify", "--out="], "--out=")])
def test_an_empty_word_is_not_the_current_folder(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A variable of a shell that is not set is refused, whatever takes it."""
    monkeypatch.setattr(sys, "argv", ["comdefend", *words])
    assert console.run_app(app) == 2
    assert capsys.readouterr().err.startswith(f"error: {said} is empty, as of a variable that is not set; ")


def test_completion_knows_weights_and_devices() -> None:
    """The shell's questions behind --weights and --device are answered with names, without torch."""
    for typed, expected in (("--weights comdefend-12", {"comdefend-12bit", "comdefend-12bit-denoise"}), ("--backend open", {"openvino"})):
        words = f"comdefend purify a.png {typed}"
        question = {"_COMDEFEND_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "4"}
        command = [str(Path(sys.executable).with_name("comdefend"))]
        done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, **question})
        assert set(done.stdout.decode().split()) == expected, done.stderr


def test_help_imports_nothing_large() -> None:
    """No command's help waits for torch, NumPy or Pillow, wherever its defaults come from."""
    code = """
import sys
from typer.testing import CliRunner
from comdefend_cli.cli import app
from comdefend_cli.cli.epsilons import parse_epsilons
from comdefend_cli.cli.helping import EXAMPLES
for name in sys.argv[1:]:
    assert CliRunner().invoke(app, [*name.split(), "--help"]).exit_code == 0
print(*sorted({"torch", "numpy", "PIL"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code, *COMMANDS], capture_output=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in (ROOT / "README.md", *ROOT.glob("*/*.md"), *ROOT.glob("docs/*/*.md"))
}
BENCHMARKS = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").rglob("*.py"))
LEAVES = [name for name, command in COMMANDS.items() if name and not hasattr(command, "commands")]


@pytest.mark.parametrize("width", [40, 80])
def test_the_first_help_is_whole(width: int) -> None:
    """Each command's line says all that it has to say, also on narrow terminals, where it takes several."""
    for group in ([], ["weights"]):
        said = CliRunner().invoke(app, [*group, "--help"], terminal_width=width, env={"COLUMNS": str(width)}).output
        listed = said[said.index("Commands:") :].partition("Exit codes:")[0]
        assert "..." not in listed
        assert all(name.split(" ")[-1] in listed for name in COMMANDS if name.split(" ")[:-1] == group)


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_is_in_the_documents(name: str) -> None:
    """README or a page of docs shows how each command is called."""
    assert any(f"comdefend {name}" in text for text in PAGES.values())


def test_documents_name_what_there_is() -> None:
    """Options of the command lines that documents show are those commands', and the files of this repository that they name are there."""
    calls = re.compile(rf"comdefend(?:_cli)? ({'|'.join(sorted(LEAVES, key=len, reverse=True))})\b([^\n`#]*)")
    for page, text in PAGES.items():
        for name, rest in calls.findall(text.replace("\\\n", " ")):
            known = {option for parameter in COMMANDS[name].params for option in (*parameter.opts, *parameter.secondary_opts)}
            unknown = set(re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", rest)) - known
            assert not unknown, f"{page}: comdefend {name} has no {unknown}"
        for script, rest in re.findall(r"python (benchmarks/[\w/]+\.py)([^\n`#]*)", text.replace("\\\n", " ")):
            unknown = {option for option in re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", rest) if f'"{option}"' not in BENCHMARKS}
            assert not unknown, f"{page}: {script} has no {unknown}"
        for path in re.findall(r"\b(?:comdefend_cli|benchmarks|examples|docs|tests|weights)/[\w/.-]*\.(?:py|md|png|json|jpg)\b", text):
            assert (ROOT / path).exists(), f"{page}: there is no {path}"


def flatten(value: Any) -> Any:
    """A default as it can be compared: what an option leaves to the command or has as text is the dataclass's nothing, or its text."""
    if isinstance(value, tuple):
        return ",".join(f"{part:g}" if isinstance(part, float) else part for part in value)
    return None if value == "" else value


@pytest.mark.parametrize(
    ("name", "made", "others"),
    [
        ("purify", Request, set()),
        ("purify", Settings, set()),
        ("purify-dir", Request, set()),
        ("purify-dir", Settings, set()),
        ("purify-dir", Options, set()),
        ("train", TrainConfig, {"data", "precision"}),  # One must be given, the other is settled by the device.
        ("train-classifier", ClassifierConfig, {"data", "precision"}),
        ("train-baseline", BaselineConfig, {"data", "precision", "steps", "batch_size"}),  # The last two depend on the kind.
        ("evaluate", Protocol, set()),
    ],
)
def test_defaults_are_the_dataclasses(name: str, made: type, others: set[str]) -> None:
    """What an option is where it is not given is what its dataclass says, or it is None and that is what the help shows."""
    fields = {field.name: field for field in dataclasses.fields(made)}
    compared = 0
    for option in COMMANDS[name].params:
        field = fields.get(option.name)
        if field is None or option.name in others:
            continue
        compared += 1
        expected, shown = flatten(field.default), option.show_default
        if "epsilon" in option.name and field.default is not None:
            assert parse_epsilons(option.name, option.default) == (field.default if isinstance(field.default, tuple) else (field.default,))
        elif option.default is None and expected is not None:
            assert (f"{expected:g}" if isinstance(expected, float) else str(expected)) in str(shown) or shown == "all", (
                f"{name}: {option.name} shows {shown}, not {expected}"
            )
        else:
            assert option.default == expected, f"{name}: {option.name} is {option.default}, not {expected}"
    assert compared >= 2, f"{name} has hardly an option of {made.__name__}"


@pytest.mark.skipif(os.name != "posix", reason="processes end by signals")
def test_ctrl_c_while_modules_are_imported_ends_at_once() -> None:
    """Without a traceback, and also where whatever imports them drops exceptions."""
    code = """
import signal, sys
from comdefend_cli.__main__ import main
class Finder:
    def find_spec(self, name, *_):
        if name == "comdefend_cli.cli.helping":
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                pass
signal.signal(signal.SIGINT, signal.default_int_handler)  # It is ignored where the tests run in the background of a script.
sys.meta_path.insert(0, Finder())
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")
