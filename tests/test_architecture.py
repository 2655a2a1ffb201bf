"""The packages' imports point one way, as pyproject.toml says."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_imports_point_one_way() -> None:
    """Import-linter finds no import against the layers, lazy ones included."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "Layers KEPT" in found.stdout


def test_every_package_has_a_layer() -> None:
    """A package that the contract does not name would be free to import anything."""
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    rooms = [path.stem for path in (ROOT / "comdefend_cli").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    free = {"__init__", "__main__"}
    assert all(f"comdefend_cli.{room}" in contract for room in rooms if room not in free)
