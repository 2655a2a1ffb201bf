"""What is attacked and measured: a classifier with a defence in front."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from comdefend_cli.classifiers.loading import Classifier, try_classifier
from comdefend_cli.data.labelled import Labelled
from comdefend_cli.errors import UsageError
from comdefend_cli.evaluate.attacks.victim import Expectation
from comdefend_cli.evaluate.defences.base import Defence
from comdefend_cli.integrations.defended import Defended

#: Images that a classifier answers for before anything is measured.
PROBED = 8


@dataclass(frozen=True)
class System:
    """A classifier and the defence in front of it."""

    classifier: Classifier
    defence: Defence

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its answers."""
        return {"classifier": self.classifier.sha256, "defence": self.defence.name, "settings": self.defence.settings}

    def deploy(self) -> Defended:
        """As it is used: no gradient, and all its votes."""
        return Defended(self.defence, self.classifier.model, gradient="none", votes=self.defence.votes).eval()

    def expose(self, gradient: str, samples: int) -> nn.Module:
        """As the adaptive attacker differentiates it; over `samples` of its noise where it is random."""
        model = Defended(self.defence, self.classifier.model, gradient=gradient).eval()  # type: ignore[arg-type]
        return Expectation(model, samples) if self.defence.stochastic else model

    def seed(self, seed: int, *, attacker: bool = False) -> None:
        """Restart a random defence; attackers draw from another stream than the one that answers are scored on."""
        if self.defence.stochastic:
            self.defence.seed(2 * seed + attacker)


def fit_classifiers(systems: list[System], data: Labelled, device: torch.device) -> list[System]:
    """The systems, once each classifier has been tried by :func:`fit_classifier`."""
    tried: dict[int, Classifier] = {}
    for system in systems:
        if id(system.classifier) not in tried:
            tried[id(system.classifier)] = fit_classifier(system.classifier, data, device)
    return [replace(system, classifier=tried[id(system.classifier)]) for system in systems]


def fit_classifier(classifier: Classifier, data: Labelled, device: torch.device) -> Classifier:
    """The classifier, once it has answered for some of the images; a user's own network gets a fingerprint in place of a file's SHA-256.

    The fingerprint is of structure, weights and the answers, since code, constants and buffers that are not saved decide them too.

    Raises:
        UsageError: it fails on the images, or does not return logits of enough classes for them.
    """
    shown = data.first(PROBED).floats().to(device)
    logits = try_classifier(classifier.model, shown, classifier.name)
    classes = max(2, int(data.labels.max()) + 1)
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[0] != len(shown) or shape[1] < classes:
        raise UsageError(f"{classifier.name}: must return logits ({len(shown)}, {classes} or more classes) for these images, not {shape}")
    if data.by_folder and len(data.classes) != shape[1]:
        counts = f"{len(data.classes)} sub-folders, numbered from 0 by name, and {classifier.name} answers with {shape[1]} classes"
        raise UsageError(f"{data.name}: has {counts}: say which is which in a labels.csv (file, class index, class name)")
    if classifier.sha256:
        return classifier
    digest = hashlib.sha256(repr(classifier.model).encode())
    # Of the first image alone, so that a larger sample has the same; to three places, as the last digits depend on threads and devices.
    for name, tensor in (*classifier.model.state_dict().items(), ("", logits[:1].float().mul(1000).round())):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return replace(classifier, sha256=digest.hexdigest())
