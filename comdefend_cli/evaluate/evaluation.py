"""Measuring what was planned, one cell after another, and what is known of it all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from comdefend_cli import __version__
from comdefend_cli.classifiers.loading import Classifier
from comdefend_cli.data.labelled import Labelled
from comdefend_cli.evaluate.attacker import LENGTHS, Attacker, Progress
from comdefend_cli.evaluate.attacks.catalogue import Attack, find_versions
from comdefend_cli.evaluate.attacks.victim import gradient_is_zero
from comdefend_cli.evaluate.cache import Cache, hash_identity
from comdefend_cli.evaluate.cells import ADAPTIVE, BLACK_BOX, CLEAN, GRAY_BOX, Cell, GradientCheck, compute_headlines, is_share
from comdefend_cli.evaluate.masking import Alarm, find_alarms
from comdefend_cli.evaluate.plan import Planned, plan_cells
from comdefend_cli.evaluate.protocol import Protocol
from comdefend_cli.evaluate.systems import System, fit_classifiers

FORMAT_VERSION = 1


@dataclass
class Evaluation:
    """All cells of an evaluation, one after another, from the cache where they are there already.

    Args:
        protocol: its settings.
        data: the images.
        systems: in the order of the tables; classifiers in front of whose name several stand share their grey-box images.
        cache: of finished cells.
        device: where the classifiers are.
        progress: called as the work goes on.

    Attributes:
        cells: those measured so far.
        checks: gradients looked at so far.

    Raises:
        UsageError: a classifier does not fit the images.
    """

    protocol: Protocol
    data: Labelled
    systems: list[System]
    cache: Cache
    device: torch.device
    progress: Progress | None = None
    cells: list[Cell] = field(default_factory=list)
    checks: list[GradientCheck] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.systems = fit_classifiers(self.systems, self.data, self.device)
        self._attacker = Attacker(self.protocol, self.data, self.cache, self.device, self._report)

    def run(self) -> Iterator[Cell]:
        """Measure, yielding each cell as it is there: clean, grey-box, adaptive, black-box.

        Raises:
            UsageError: the extra with the attacks is not installed.
        """
        for planned in plan_cells(self.protocol, self.systems):
            cell = self._measure(planned)
            self.cells.append(cell)
            yield cell

    def count(self) -> int:
        """How many cells `run` yields."""
        return sum(1 for _ in plan_cells(self.protocol, self.systems))

    def make_gray_images(self, classifier: Classifier, name: str, epsilon: float) -> Tensor:
        """The adversarial images that the grey-box cells of this classifier meet: float32 (N, C, H, W) in [0, 1]."""
        return self._attacker.make_gray_box(classifier, self.protocol.make(name), epsilon)

    def find_alarms(self) -> list[Alarm]:
        """Signs of gradient masking in the cells so far."""
        return find_alarms(self.cells, self.checks)

    def _report(self, label: str, done: int, count: int) -> None:
        if self.progress:
            self.progress(label, done, count)

    def _measure(self, planned: Planned) -> Cell:
        """The cell from the cache, or measured."""
        system, random = planned.system, planned.system.defence.stochastic
        attack = self.protocol.make(planned.attack, stochastic=random and planned.threat == ADAPTIVE) if planned.attack else None
        data = self._limit(planned.threat)
        submissions = self.protocol.resubmissions if random and attack else 1
        chance = {"eot": self.protocol.eot if random else 1} if planned.threat == ADAPTIVE else {}
        chance |= {"resubmissions": submissions} if random and attack else {}
        if planned.threat == ADAPTIVE:
            self._check(system, planned.gradient, data)
        about = {"cell": planned.threat, **system.identity, "gradient": planned.gradient}
        key = hash_identity({**about, **self._attacker.identify(attack, planned.epsilon, len(data)), **chance})
        if (kept := self._find(key, system, len(data))) is not None:
            return kept
        began = time.perf_counter()
        images = self._make_images(planned, attack, data)
        distance = (images - data.floats()).abs().flatten(1)
        lengths = {"lengths": LENGTHS} if planned.threat == GRAY_BOX and self._attacker.lengthens(attack) else {}
        cell = Cell(
            system.classifier.name,
            system.defence.name,
            planned.threat,
            attack.name if attack else "",
            attack.title if attack else CLEAN,
            planned.gradient,
            planned.epsilon,
            self._classify(system, images, data.labels, submissions),
            round(time.perf_counter() - began, 2),
            {**(attack.settings if attack else {}), **lengths, **chance, "pixels": "float" if self.protocol.float_pixels else "8 bits"},
            round(float(distance.amax(1).mean()) * 255, 3),
            round(float(distance.square().sum(1).sqrt().mean()), 4),
        )
        self.cache.write_record(key, cell.to_json())
        return cell

    def _limit(self, threat: str) -> Labelled:
        """The images that a threat model's cells are of: the first ones of all."""
        limits = {ADAPTIVE: self.protocol.limit_adaptive, BLACK_BOX: self.protocol.limit_black_box}
        return self.data.first(limits.get(threat, len(self.data)))

    def _find(self, key: str, system: System, n: int) -> Cell | None:
        """The cell that the cache holds, if it is one of n images."""
        record = {**(self.cache.read_record(key) or {}), "classifier": system.classifier.name, "defence": system.defence.name}
        try:
            cell = Cell.from_json(record)
        except ValueError:
            return None
        return cell if cell.n == n else None

    def _make_images(self, planned: Planned, attack: Attack | None, data: Labelled) -> Tensor:
        if attack is None or planned.epsilon is None:
            return data.floats()
        if planned.threat == GRAY_BOX:
            return self._attacker.make_gray_box(planned.system.classifier, attack, planned.epsilon)
        if planned.threat == ADAPTIVE:
            return self._attacker.make_adaptive(planned.system, attack, planned.gradient, planned.epsilon, data)
        return self._attacker.make_black_box(planned.system, attack, planned.epsilon, data)

    @torch.no_grad()
    def _classify(self, system: System, images: Tensor, labels: Tensor, submissions: int) -> tuple[bool, ...]:
        """Whether the system classifies each image right, so many times one after another: an attacker may try again."""
        system.seed(self.protocol.seed)
        model = system.deploy()
        right: list[bool] = []
        for x, y in zip(torch.split(images, self.protocol.batch), torch.split(labels, self.protocol.batch), strict=True):
            answers = [model(x.to(self.device)).argmax(1).cpu() == y for _ in range(submissions)]
            right += torch.stack(answers).all(0).tolist()
            self._report(f"{system.classifier.name} behind {system.defence.name}", len(right), len(images))
        return tuple(right)

    def _check(self, system: System, gradient: str, data: Labelled) -> None:
        """Look, once a system and gradient, whether there is a gradient at all."""
        names = (system.classifier.name, system.defence.name, gradient)
        if any((check.classifier, check.defence, check.gradient) == names for check in self.checks):
            return
        key = hash_identity({"check": gradient, **system.identity, **self._attacker.identify(None, None, len(data))})
        share = (self.cache.read_record(key) or {}).get("zero_share")
        if not is_share(share):
            system.seed(self.protocol.seed, attacker=True)
            share = gradient_is_zero(system.expose(gradient, 1), data.floats().to(self.device), data.labels.to(self.device))
            self.cache.write_record(key, {"zero_share": share})
        self.checks.append(GradientCheck(*names, share, len(data)))

    def to_json(self) -> dict[str, Any]:
        """results.json so far, less what the caller knows alone (command, hardware, seconds)."""
        return {
            "format_version": FORMAT_VERSION,
            "package_version": __version__,
            "versions": {"torch": torch.__version__, **find_versions()},
            "device": str(self.device),
            "seed": self.protocol.seed,
            "float_pixels": self.protocol.float_pixels,
            "protocol": asdict(self.protocol),
            "data": {
                "name": self.data.name,
                "n": len(self.data),
                "channels": int(self.data.pixels.shape[1]),
                "classes": list(self.data.classes),
                "sha256": self.data.sha256,
            },
            "systems": [
                {
                    "classifier": system.classifier.name,
                    "classifier_sha256": system.classifier.sha256,
                    "classifier_training": system.classifier.record,
                    "defence": system.defence.name,
                    "stochastic": system.defence.stochastic,
                    "votes": system.defence.votes,
                    "settings": system.defence.settings,
                }
                for system in self.systems
            ],
            "cells": [cell.to_json() for cell in self.cells],
            "headlines": compute_headlines(self.cells),
            "gradients": [asdict(check) for check in self.checks],
            "alarms": [asdict(alarm) for alarm in self.find_alarms()],
        }
