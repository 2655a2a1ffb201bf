"""The packages' imports point one way, as pyproject.toml says, and what is in them is short."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "comdefend_cli"


def test_imports_point_one_way() -> None:
    """Import-linter finds no import against the layers, lazy ones included."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "Layers KEPT" in found.stdout


def test_every_package_has_a_layer() -> None:
    """A package that the contract does not name would be free to import anything."""
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    rooms = [path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    free = {"__init__", "__main__"}
    assert all(f"comdefend_cli.{room}" in contract for room in rooms if room not in free)


#: Longest file, function and body of a command, in lines. A command's signature is a list of its options and does not count.
FILE, FUNCTION, COMMAND = 300, 50, 40
#: Files and functions that are longer, and why; one that is long for no reason is split.
LONGER: dict[str, str] = {}


def measure_functions(node: ast.AST, name: str = "") -> Iterator[tuple[str, int, int]]:
    """Name, lines and most lines of every function below a node, those within classes and functions included."""
    for child in ast.iter_child_nodes(node):
        inner = name
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inner = f"{name}.{child.name}".lstrip(".")
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            command = any(ast.unparse(decorator) == "console.command" for decorator in child.decorator_list)
            first = child.body[0].lineno if command else child.lineno
            yield inner, (child.end_lineno or first) - first + 1, COMMAND if command else FUNCTION
        yield from measure_functions(child, inner)


def test_files_and_functions_are_short() -> None:
    """No file of the package is over 300 lines, no function over 50 and no command's body over 40, but those listed with a reason."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(PACKAGE).as_posix()
        lengths = [(name, len(text.splitlines()), FILE)]
        lengths += [(f"{name}::{function}", lines, most) for function, lines, most in measure_functions(ast.parse(text))]
        found.update({where: lines for where, lines, most in lengths if lines > most})
    assert {where: lines for where, lines in found.items() if where not in LONGER} == {}
    assert not LONGER.keys() - found.keys(), "what was split is to leave the list"
