"""ComDefend: purify adversarial images by a 12-bit code (Jia et al., CVPR 2019).

from comdefend_cli import Purifier
purifier = Purifier.from_pretrained()
clean = purifier(image)
"""

from typing import TYPE_CHECKING, Any

from comdefend_cli.errors import ComdefendError

if TYPE_CHECKING:
    from comdefend_cli.inference.purifier import Purifier
    from comdefend_cli.inference.settings import Settings

__version__: str

__all__ = ["ComdefendError", "Purifier", "Settings", "__version__"]


def __getattr__(name: str) -> Any:
    """Import what takes long, as torch does, only when it is asked for."""
    if name == "Purifier":
        from comdefend_cli.inference.purifier import Purifier

        return Purifier
    if name == "Settings":
        from comdefend_cli.inference.settings import Settings

        return Settings
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            globals()[name] = version("comdefend-cli")
        except PackageNotFoundError:  # Run from a source tree that was not installed.
            globals()[name] = "0+unknown"
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
