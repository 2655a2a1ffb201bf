"""Libraries that only some commands need, in extras of the package, imported only when used."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType

from comdefend_cli.errors import UsageError, explain

#: The extras that users install, and of each the packages with the module that tells whether they are there.
EXTRAS = {
    "evaluate": {
        "adversarial-robustness-toolbox": "art",
        "foolbox": "foolbox",
        "jinja2": "jinja2",
        "matplotlib": "matplotlib",
        "scikit-image": "skimage",
        "scipy": "scipy",
    },
    "imagenet": {"efficientnet-lite-pytorch": "efficientnet_lite_pytorch"},
    "int8": {"openvino": "openvino", "nncf": "nncf"},
    "large": {"pyvips": "pyvips"},
    "onnx": {"onnx": "onnx", "onnxruntime": "onnxruntime", "onnxscript": "onnxscript"},
    "openvino": {"openvino": "openvino"},
    "ray": {"ray": "ray", "fsspec": "fsspec"},
}


def is_installed(module: str) -> bool:
    """Whether a module is there, without importing it; a folder of its name, which Python would import as well, is not it."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):  # Hidden, or half imported.
        return False
    return spec is not None and spec.origin is not None


def find_version(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def require(module: str, *, extra: str) -> ModuleType:
    """Import a module of an extra.

    OpenVINO and NNCF would report each import to their makers, unasked, from a forked process that prints a traceback where there is no
    network. That package is theirs to miss: without it they stay silent. One that the caller imported before is left. ONNX Runtime would
    keep a number of the user in the home folder and report from threads of its own, unless a variable says no before it is imported.

    Args:
        module: its dotted name.
        extra: of this package, that installs it.

    Raises:
        UsageError: it is not installed, or is broken; the message names the extra.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None is Python's own way to hide a module.
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A module that is there but lacks something of its own is not mended by naming it.
        missing = (error.name or module).split(".")[0]
        raise UsageError(f"{missing} is not installed: pip install 'comdefend-cli[{extra}]'") from error
    except (ImportError, OSError) as error:
        again = f"install it again: pip install --force-reinstall 'comdefend-cli[{extra}]'"
        raise UsageError(f"{module} is installed but cannot be imported ({explain(error)}); {again}") from error
