"""ComDefend as a defence at test time: a weight file, with noise on the logits and votes on request."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from typing import Any, ClassVar, cast

from torch import Tensor

from comdefend_cli.evaluate.defences.base import Defence
from comdefend_cli.inference.purifier import Purifier
from comdefend_cli.inference.settings import Settings, Tiling
from comdefend_cli.network.registry import load_weights


class ComDefendDefence(Defence):
    """Purification by ComDefend (Jia et al., CVPR 2019).

    Args:
        name: canonical spec.
        weights_name: a name that ships, or a weight file; the header says for how many channels.
        noise: standard deviation of Gaussian noise on the logits before they are rounded; 0 for none. Every call
            and every image of a batch has noise of its own.
        input_noise: the same of noise on the image, in 8-bit levels. None is the weights' own noise as `comdefend purify` puts it
            there: the same for all images and calls, so known to an attacker who knows of the defence.
        samples: images rebuilt from as many draws of the noise, whose mean the classifier sees.
        votes: predictions averaged, each with noise of its own.
        tiling: "exact" or "paper", see :class:`comdefend_cli.Settings`.
        backend: "torch", or "openvino" or "triton", which have no gradient: attacks that know them take them for the identity.
        device, precision: as for :meth:`comdefend_cli.Purifier.from_pretrained`.

    Raises:
        UsageError: unknown weights, device or precision, or votes without noise.
        WeightsError: the weights cannot be read.
    """

    gradients: ClassVar[tuple[str, ...]] = ("identity", "straight-through", "soft")

    def __init__(
        self,
        name: str,
        weights_name: str,
        *,
        noise: float = 0.0,
        input_noise: float | None = None,
        samples: int = 1,
        votes: int = 1,
        tiling: str = "exact",
        backend: str = "torch",
        device: str,
        precision: str,
    ) -> None:
        loaded = load_weights(weights_name)
        settings = Settings(cast(Tiling, tiling), noise_std=noise, input_noise=input_noise, samples=samples)
        # Random noise that images shared would make their errors depend on each other, and an accuracy's interval too narrow.
        settings = replace(settings, noise_per_image=settings.random)
        purifier = Purifier.from_weights([loaded], device=device, precision=precision, backend=backend, settings=settings)
        record: dict[str, Any] = {
            "defence": "comdefend",
            "weights": loaded.name,
            "sha256": loaded.sha256,
            "channels": loaded.header.architecture.channels,
            "bits": loaded.header.architecture.bits,
            "noise": noise,
            "input-noise": purifier.input_noise(loaded.header.architecture.channels),
            "samples": samples,
            "tiling": tiling,
            "precision": purifier.precision,
            **({"backend": backend, backend: version(backend)} if purifier.engines else {}),
        }
        super().__init__(name, record, stochastic=settings.random, votes=votes)
        if purifier.engines:
            self.gradients = ("identity",)  # type: ignore[misc]  # Of this one, which has none of its own.
        self.purifier = purifier

    def purify(self, x: Tensor) -> Tensor:
        """The rebuilt images; differentiable as `purifier.settings.gradient` says."""
        if self.stochastic:
            self.purifier.settings = replace(self.purifier.settings, seed=self.next_seed())
        return self.purifier.purify(x)
