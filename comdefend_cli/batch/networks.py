"""The networks of a run, loaded and on their device."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from comdefend_cli.batch.identity import Identity, list_sha256s
from comdefend_cli.batch.request import Request
from comdefend_cli.inference.purifier import Purifier
from comdefend_cli.network.registry import DEFAULT_COLOR, DEFAULT_GRAY, load_weights
from comdefend_cli.network.weight_file import Weights
from comdefend_cli.runtime.device import describe_device, dtype_name


class Networks:
    """A purifier for colour and one for grey, or one for both.

    Args:
        request: what is asked for.
        loaded: its weights, where they were loaded already: their file may be on another machine.

    Raises:
        UsageError, WeightsError: as :meth:`Purifier.from_pretrained`; the default for grey is loaded
            with the first grey image, so what is wrong with it fails those images.
    """

    def __init__(self, request: Request, loaded: Weights | None = None) -> None:
        self._request = request
        given = loaded or (load_weights(request.weights) if request.weights else None)
        self._given = given is not None
        self._color = given or load_weights(DEFAULT_COLOR)
        self.purifier = request.build(self._color)
        self.device = next(self.purifier.parameters()).device
        self.identity = Identity(list_sha256s(given), self.purifier.precision, self.purifier.backend, request.settings)

    @property
    def where(self) -> str:
        """The device, for a person."""
        return describe_device(self.device)

    def route(self, *, gray: bool) -> tuple[Purifier, str]:
        """The purifier for a grey or a colour image, and the SHA-256 of its weights."""
        if gray and not self._given:
            return self._gray
        return self.purifier, self._color.sha256

    @cached_property
    def _gray(self) -> tuple[Purifier, str]:
        loaded = load_weights(DEFAULT_GRAY)
        settings = self._request.settings
        # Samples that were asked for because of the colour weights' own noise are all the same without noise.
        noise = settings.random or loaded.header.input_noise > 0
        parameter = next(self.purifier.parameters())
        request = replace(
            self._request,
            device=str(parameter.device),
            precision=dtype_name(parameter.dtype),
            backend=self.purifier.backend,
            settings=settings if noise else replace(settings, samples=1),
        )
        return request.build(loaded), loaded.sha256
