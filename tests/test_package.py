"""The built wheel, installed elsewhere, is the whole tool: weights inside, no network, no source tree."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr + result.stdout
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_carries_the_weights_and_nothing_else(wheel: Path) -> None:
    """Every registered weight file and every file of the package is in the wheel; tests, docs and data are not."""
    import json

    names = zipfile.ZipFile(wheel).namelist()
    registry = json.loads((ROOT / "weights" / "registry.json").read_text())
    for entry in registry.values():
        assert f"comdefend_cli/bundled_weights/{entry['file']}" in names
    package = [path for path in (ROOT / "comdefend_cli").rglob("*") if path.is_file() and path.suffix not in (".pyc", ".safetensors")]
    assert {path.relative_to(ROOT).as_posix() for path in package} <= set(names)  # Templates and styles too.
    assert all(name.startswith(("comdefend_cli/", "comdefend_cli-")) for name in names)


@pytest.mark.slow
def test_the_installed_wheel_purifies_from_another_folder(wheel: Path, tmp_path: Path, astronaut: np.ndarray) -> None:
    """In a clean environment that sees only the dependencies, offline, `comdefend purify` works with the bundled weights."""
    environment = tmp_path / "env"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--disable-pip-version-check", str(wheel)]
    subprocess.run(install, check=True)
    # The dependencies of the running environment, without its editable install of this project.
    site = [Path(path) for path in sys.path if path.endswith("site-packages")]
    (found,) = (environment / "lib").glob("python*/site-packages")
    for folder in site:
        for item in folder.iterdir():
            if "comdefend" not in item.name and item.suffix != ".pth" and not (found / item.name).exists():
                (found / item.name).symlink_to(item)
    Image.fromarray(astronaut[:40, 200:250]).save(tmp_path / "in.png")
    command = [str(environment / "bin" / "comdefend"), "purify", "in.png", "out.png"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"})
    assert result.returncode == 0, result.stderr
    assert np.array(Image.open(tmp_path / "out.png")).shape == (40, 50, 3)
    where = subprocess.run(
        [str(python), "-c", "import comdefend_cli; print(comdefend_cli.__file__)"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert str(environment) in where.stdout
