"""ComDefend: purify adversarial images by a 12-bit code (Jia et al., CVPR 2019).

from comdefend_cli import Purifier
purifier = Purifier.from_pretrained()
clean = purifier(image)
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from comdefend_cli.errors import ComdefendError

if TYPE_CHECKING:
    from comdefend_cli.purifier import Purifier, Settings

try:
    __version__ = version("comdefend-cli")
except PackageNotFoundError:  # Run from a source tree that was not installed.
    __version__ = "0+unknown"

__all__ = ["ComdefendError", "Purifier", "Settings", "__version__"]


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for."""
    if name in ("Purifier", "Settings"):
        from comdefend_cli import purifier

        return getattr(purifier, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
