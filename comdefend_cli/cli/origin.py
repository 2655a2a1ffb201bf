"""Where weights come from: said by every command that runs some that do not ship."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from comdefend_cli.cli.console import notice

if TYPE_CHECKING:
    from torch import nn

    from comdefend_cli.network.weight_file import Weights


def tell_origin(sha256s: Iterable[str], *, quiet: bool) -> None:
    """Say of weights, by their files' SHA-256, where they are none of those that ship; once each."""
    from comdefend_cli.network.registry import read_registry

    shipped = {entry["sha256"] for entry in read_registry().values()}
    for sha256 in dict.fromkeys(sha256s):
        if sha256 not in shipped:
            notice(
                f"weights of unknown origin, SHA-256 {sha256[:16]}: they run no code; what they make of images, their maker chose",
                quiet=quiet,
            )


def load_told(name_or_path: str, *, quiet: bool) -> Weights:
    """Load weights as :func:`.load_weights`, which also says what is raised, and tell their origin."""
    from comdefend_cli.network.registry import load_weights

    loaded = load_weights(name_or_path)
    tell_origin([loaded.sha256], quiet=quiet)
    return loaded


def tell_origin_of_defences(modules: Iterable[nn.Module], *, quiet: bool) -> None:
    """The same of those among modules that are defences with weights, ComDefend's or others'."""
    from comdefend_cli.evaluate.defences.base import Defence

    settings = [module.settings for module in modules if isinstance(module, Defence)]
    tell_origin([each["sha256"] for each in settings if "sha256" in each], quiet=quiet)
