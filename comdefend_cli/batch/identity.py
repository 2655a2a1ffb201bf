"""What tells an output that is finished from one that is to do: the key that the journal holds of each.

Keys of earlier versions count, so nothing here may change what they are made of: tests/batch/test_identity.py holds some.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from comdefend_cli.backends.select import describe
from comdefend_cli.batch.options import Options
from comdefend_cli.inference.settings import Settings
from comdefend_cli.network.registry import DEFAULT_COLOR, DEFAULT_GRAY, read_registry
from comdefend_cli.network.weight_file import Weights


@dataclass(frozen=True)
class Identity:
    """All that can change a run's pixels, but the way its files are written: the same whichever engine computes them, and where.

    Attributes:
        sha256s: SHA-256 of all weights that may be used.
        precision, backend: what they are computed in and by; never "auto".
        settings: of the purifier.
    """

    sha256s: tuple[str, ...]
    precision: str
    backend: str
    settings: Settings

    @property
    def how(self) -> str:
        """What is computed in, and by what where that is not PyTorch."""
        return describe(self.precision, self.backend)

    def make_key(self, sha256: str, options: Options) -> str:
        """16 hexadecimal digits that differ if an output of these weights may differ; the format stands in the output's name."""
        settings = self.settings
        # The weights' SHA-256, beside this, says what noise they have of their own.
        noise = settings.random or settings.input_noise is None
        parts = [
            sha256,
            self.how,
            settings.tiling,
            settings.tile if self.how != "float32" else None,
            settings.noise_std,
            settings.input_noise,
            *([settings.seed, settings.samples] if noise else []),
            options.strip,
            options.quality,
            options.ending,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def make_keys(self, options: Options) -> set[str]:
        """Of all the weights."""
        return {self.make_key(sha256, options) for sha256 in self.sha256s}


def list_sha256s(loaded: Weights | None) -> tuple[str, ...]:
    """SHA-256 of all weights that may be used: the given ones, or else the defaults, which need not be loaded for it."""
    if loaded is not None:
        return (loaded.sha256,)
    registry = read_registry()
    return tuple(registry[name]["sha256"] for name in (DEFAULT_COLOR, DEFAULT_GRAY) if name in registry)
