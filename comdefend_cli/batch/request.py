"""What is to purify, as it was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from comdefend_cli.inference.settings import Settings

if TYPE_CHECKING:
    from comdefend_cli.inference.purifier import Purifier
    from comdefend_cli.network.weight_file import Weights


@dataclass(frozen=True)
class Request:
    """Weights and how to compute them: made once, on the command line, and handed to every worker of whichever machine.

    Attributes:
        weights: a name or a file for all images, or None for the defaults: one for colour, one for grey.
        device, precision, backend: as of :meth:`comdefend_cli.inference.purifier.Purifier.from_pretrained`.
        settings: of the purifier.
    """

    weights: str | None = None
    device: str = "auto"
    precision: str = "auto"
    backend: str = "auto"
    settings: Settings = field(default_factory=Settings)

    def build(self, loaded: Weights) -> Purifier:
        """The purifier of weights that were loaded already, whatever `weights` says.

        Raises:
            UsageError: a device, precision or backend that is not there, or settings that do not suit the weights.
        """
        from comdefend_cli.inference.purifier import Purifier  # Imports PyTorch.

        return Purifier.from_weights([loaded], device=self.device, precision=self.precision, backend=self.backend, settings=self.settings)
