"""The protocol: which attacks meet which systems under three threat models, never mixed up.

Grey-box (the paper's): the attacker has the classifier, not the purifier; one set of adversarial images a classifier, which
every defence then meets. Adaptive: the attacker has both, and differentiates through the purifier in each way that it offers
(BPDA, Athalye et al., ICML 2018), over its noise where it has some (EOT). Black-box: queries to the whole system alone.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from comdefend_cli import __version__
from comdefend_cli.classifiers.loading import Classifier
from comdefend_cli.data.labelled import Labelled
from comdefend_cli.errors import UsageError, reason
from comdefend_cli.evaluate import attacks as library
from comdefend_cli.evaluate.attacks import Attack
from comdefend_cli.evaluate.cache import Cache, key_of
from comdefend_cli.evaluate.cells import ADAPTIVE, BLACK_BOX, CLEAN, GRAY_BOX, THREATS, Cell, GradientCheck, compute_headlines
from comdefend_cli.evaluate.defences import Defence
from comdefend_cli.evaluate.masking import Alarm, alarms
from comdefend_cli.integrations import Defended

FORMAT_VERSION = 1
#: Attacks on the classifier alone; FGSM's single step also tells how much PGD's many gain, in the adaptive model.
GRAY_ATTACKS = ("fgsm", "bim", "mi-fgsm", "pgd", "deepfool", "cw")
ADAPTIVE_ATTACKS = ("fgsm", "pgd", "autoattack")
BLACK_ATTACKS = ("square",)
#: By what the smallest perturbations are multiplied until they outlast rounding to 8 bits.
LENGTHS = (1.0, 1.1, 1.2, 1.35, 1.5, 2.0, 3.0, 4.0, 8.0)
SLOW_ATTACKS = ("autoattack", "square")
#: At which these are made unless told otherwise; where it is not asked for, at the middle one that is.
SLOW_EPSILON = 8.0
#: Images that a classifier answers for before anything is measured.
PROBED = 8
DEFAULT_ATTACKS = (*GRAY_ATTACKS, "autoattack", *BLACK_ATTACKS)
#: Of "straight-through", "soft" and "identity", the first that a defence offers is what AutoAttack goes through.
_PREFERENCE = ("straight-through", "identity", "soft")


@dataclass(frozen=True)
class Protocol:
    """The settings of an evaluation.

    Attributes:
        attacks: names, see `DEFAULT_ATTACKS`.
        epsilons: most L-infinity distances, in 8-bit levels.
        slow_epsilons: those of them at which AutoAttack and Square are made, which take far longer than the rest.
        threats: of `THREATS`; "clean" is always measured.
        limit_adaptive: images that adaptive attacks are made for, the first of all.
        limit_black_box: images for Square, likewise.
        steps: of PGD, for each of `restarts`.
        restarts: of PGD.
        eot: samples that a gradient is averaged over where a defence is random.
        queries: of Square.
        float_pixels: leave adversarial images as they are, and do not round them to 8 bits as saved files are.
        seed: of the attacks and random defences.
        batch: images at a time.

    Raises:
        UsageError: a value out of range.
    """

    attacks: tuple[str, ...] = DEFAULT_ATTACKS
    epsilons: tuple[float, ...] = (2.0, 8.0, 16.0)
    slow_epsilons: tuple[float, ...] | None = None
    threats: tuple[str, ...] = THREATS
    limit_adaptive: int = 50
    limit_black_box: int = 20
    steps: int = 20
    restarts: int = 2
    eot: int = 20
    queries: int = 5000
    float_pixels: bool = False
    seed: int = 0
    batch: int = 100

    def __post_init__(self) -> None:
        if not self.attacks or not self.threats:
            raise UsageError("no attack, or no threat model, is named; leave the option out for all of them")
        object.__setattr__(self, "attacks", tuple(library.canonical(name) for name in self.attacks))
        if unknown := [name for name in self.attacks if name not in DEFAULT_ATTACKS]:
            raise UsageError(f"unknown attack {unknown[0]!r}: use some of {', '.join(DEFAULT_ATTACKS)}")
        if unknown := [name for name in self.threats if name not in THREATS]:
            raise UsageError(f"unknown threat model {unknown[0]!r}: use some of {', '.join(THREATS)}")
        if not self.epsilons or not all(0 < epsilon <= 255 for epsilon in (*self.epsilons, *(self.slow_epsilons or ()))):
            raise UsageError("epsilons must be above 0 and at most 255 8-bit levels")
        if self.slow_epsilons is not None and not set(self.slow_epsilons) & set(self.epsilons):
            raise UsageError("the slow attacks' epsilons must be some of the epsilons, or AutoAttack and Square would be left out")
        for name in ("limit_adaptive", "limit_black_box", "steps", "restarts", "eot", "queries", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        if self.seed < 0:
            raise UsageError(f"a seed must be 0 or more, not {self.seed}")

    def chosen(self, names: tuple[str, ...]) -> list[str]:
        """Those of `names` that were asked for."""
        return [name for name in names if name in self.attacks]

    def sizes(self, attack: str) -> tuple[float, ...]:
        """The epsilons at which an adaptive or black-box attack is made."""
        if attack not in SLOW_ATTACKS:
            return self.epsilons
        usual = SLOW_EPSILON if SLOW_EPSILON in self.epsilons else sorted(self.epsilons)[len(self.epsilons) // 2]
        slow = (usual,) if self.slow_epsilons is None else self.slow_epsilons
        return tuple(epsilon for epsilon in self.epsilons if epsilon in slow)

    def make(self, name: str, *, stochastic: bool = False) -> Attack:
        """An attack with these settings, in its version for random defences where there is one."""
        if name == "pgd":
            return library.make("pgd", steps=self.steps, restarts=self.restarts)
        if name == "square":
            return library.make("square", queries=self.queries)
        if name == "autoattack":
            return library.make("autoattack-rand") if stochastic else library.make("autoattack", queries=self.queries)
        return library.make(name)


@dataclass(frozen=True)
class System:
    """A classifier and the defence in front of it."""

    classifier: Classifier
    defence: Defence

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its answers."""
        return {"classifier": self.classifier.sha256, "defence": self.defence.name, "settings": self.defence.settings}

    def deployed(self) -> Defended:
        """As it is used: no gradient, and all its votes."""
        return Defended(self.defence, self.classifier.model, gradient="none", votes=self.defence.votes).eval()

    def attacked(self, gradient: str, eot: int) -> nn.Module:
        """As the adaptive attacker differentiates it; over `eot` samples of its noise where it is random."""
        model = Defended(self.defence, self.classifier.model, gradient=gradient).eval()  # type: ignore[arg-type]
        return library.Expectation(model, eot) if self.defence.stochastic else model


def fitted(classifier: Classifier, data: Labelled, device: torch.device) -> Classifier:
    """The classifier, once it has answered for some of the images; a user's own network gets a fingerprint in place of a file's SHA-256.

    The fingerprint is of structure, weights and the answers, since code, constants and buffers that are not saved decide them too.

    Raises:
        UsageError: it fails on the images, or does not return logits of enough classes for them.
    """
    shown = data.first(PROBED).floats().to(device)
    try:
        with torch.no_grad():
            logits = classifier.model(shown)
    except Exception as error:  # The user's own code raises what it likes.
        wrong = f"{type(error).__name__}: {reason(error)}"
        raise UsageError(f"{classifier.name}: fails on images of the shape {tuple(shown.shape)} ({wrong}); give one for such") from error
    classes = max(2, int(data.labels.max()) + 1)
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[0] != len(shown) or shape[1] < classes:
        raise UsageError(f"{classifier.name}: must return logits ({len(shown)}, {classes} or more classes) for these images, not {shape}")
    if classifier.sha256:
        return classifier
    digest = hashlib.sha256(repr(classifier.model).encode())
    # To three places, as the last digits depend on threads and devices.
    for name, tensor in (*classifier.model.state_dict().items(), ("", logits.float().mul(1000).round())):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return replace(classifier, sha256=digest.hexdigest())


#: Called with what is being measured, and how many images of how many are done.
Progress = Callable[[str, int, int], None]


@dataclass
class Evaluation:
    """All cells of an evaluation, one after another, from the cache where they are there already.

    Args:
        protocol: its settings.
        data: the images.
        systems: in the order of the tables; classifiers in front of whose name several stand share their grey-box images.
        cache: of finished cells.
        device: where the classifiers are.

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
        tried: dict[int, Classifier] = {}
        for system in self.systems:
            if id(system.classifier) not in tried:
                tried[id(system.classifier)] = fitted(system.classifier, self.data, self.device)
        self.systems = [replace(system, classifier=tried[id(system.classifier)]) for system in self.systems]

    def run(self) -> Iterator[Cell]:
        """Measure, yielding each cell as it is there: clean, grey-box, adaptive, black-box.

        Raises:
            UsageError: the extra with the attacks is not installed.
        """
        for measure in self._plan():
            cell = measure()
            self.cells.append(cell)
            yield cell

    def count(self) -> int:
        """How many cells `run` yields."""
        return len(self._plan())

    def _plan(self) -> list[Callable[[], Cell]]:
        plan: list[Callable[[], Cell]] = []
        protocol = self.protocol
        plan += [lambda s=s: self._clean(s) for s in self.systems]  # type: ignore[misc]
        for name in protocol.chosen(GRAY_ATTACKS) if GRAY_BOX in protocol.threats else ():
            for epsilon in protocol.epsilons:
                plan += [lambda s=s, a=name, e=epsilon: self._gray_box(s, a, e) for s in self.systems]  # type: ignore[misc]
        for system in self.systems if ADAPTIVE in protocol.threats else ():
            for name in protocol.chosen(ADAPTIVE_ATTACKS):
                for gradient in self._gradients(system, name):
                    plan += [
                        lambda s=system, a=name, g=gradient, e=epsilon: self._adaptive(s, a, g, e)  # type: ignore[misc]
                        for epsilon in protocol.sizes(name)
                    ]
        for system in self.systems if BLACK_BOX in protocol.threats else ():
            if not system.defence.stochastic:  # Square keeps the best of noisy answers, which is luck and no attack.
                for name in protocol.chosen(BLACK_ATTACKS):
                    plan += [lambda s=system, a=name, e=epsilon: self._black_box(s, a, e) for epsilon in protocol.sizes(name)]  # type: ignore[misc]
        return plan

    def _gradients(self, system: System, attack: str) -> list[str]:
        offered = [gradient for gradient in _PREFERENCE if gradient in system.defence.gradients]
        return offered[:1] if attack == "autoattack" else offered

    def _clean(self, system: System) -> Cell:
        return self._cell(system, CLEAN, None, "", None, lambda: (self.data.floats(), {}))

    def _gray_box(self, system: System, name: str, epsilon: float) -> Cell:
        attack = self.protocol.make(name)

        def make() -> tuple[Tensor, dict[str, Any]]:
            lengths = {"lengths": LENGTHS} if self._lengthens(attack) else {}
            return self._gray_images(system.classifier, attack, epsilon), lengths

        return self._cell(system, GRAY_BOX, attack, "", epsilon, make)

    def gray_images(self, classifier: Classifier, name: str, epsilon: float) -> Tensor:
        """The adversarial images that the grey-box cells of this classifier meet: float32 (N, C, H, W) in [0, 1]."""
        return self._gray_images(classifier, self.protocol.make(name), epsilon)

    def _gray_images(self, classifier: Classifier, attack: Attack, epsilon: float) -> Tensor:
        # An attack that seeks the smallest perturbation needs to be run once for all epsilons.
        reach = 255.0 if attack.minimum_norm else epsilon
        identity = {"pictures": GRAY_BOX, "classifier": classifier.sha256, **self._common(attack, reach, len(self.data))}
        key = key_of(identity)
        made = self.cache.images(key)
        if made is None:
            made = self._attack(attack, classifier.model, self.data, reach, f"{attack.title} on {classifier.name}")
            if self._lengthens(attack):
                made = self._lengthened(classifier.model, made)
            # Bytes hold all of it where it will be rounded anyway, but not before it is brought within epsilon.
            exact = self.protocol.float_pixels or attack.minimum_norm
            self.cache.put_images(key, made if exact else self._rounded(made, self.data, epsilon).mul(255).round().byte())
        if made.dtype == torch.uint8:
            return made.float() / 255
        return self._rounded(library.within(made, self.data.floats(), epsilon / 255), self.data, epsilon)

    def _lengthens(self, attack: Attack | None) -> bool:
        return attack is not None and attack.minimum_norm and not self.protocol.float_pixels

    @torch.no_grad()
    def _lengthened(self, model: nn.Module, made: Tensor) -> Tensor:
        """Smallest perturbations, each by the first of `LENGTHS` at which it still fools the classifier after rounding to 8 bits.

        They end just beyond a class border, and rounding alone would undo half of them: an attacker who saves files looks to that.
        """
        clean = self.data.floats()
        result = made.clone()
        standing = torch.arange(len(made))
        for length in LENGTHS:
            tried = (clean + length * (made - clean)).clamp(0, 1)[standing]
            result[standing] = tried
            parts = torch.split((tried * 255).round() / 255, self.protocol.batch)
            predicted = torch.cat([model(part.to(self.device)).argmax(1).cpu() for part in parts])
            standing = standing[predicted == self.data.labels[standing]]
            if len(standing) == 0:
                break
        result[standing] = made[standing]  # Nothing helped these.
        return result

    def _adaptive(self, system: System, name: str, gradient: str, epsilon: float) -> Cell:
        attack = self.protocol.make(name, stochastic=system.defence.stochastic)
        data = self.data.first(self.protocol.limit_adaptive)
        samples = self.protocol.eot if system.defence.stochastic else 1

        def make() -> tuple[Tensor, dict[str, Any]]:
            self.seed(system, 1)
            model = system.attacked(gradient, samples)
            label = f"{attack.title} through {system.defence.name}, {gradient} gradient"
            return self._rounded(self._attack(attack, model, data, epsilon, label), data, epsilon), {"eot": samples}

        self._check(system, gradient, data)
        return self._cell(system, ADAPTIVE, attack, gradient, epsilon, make, len(data), {"eot": samples})

    def _black_box(self, system: System, name: str, epsilon: float) -> Cell:
        attack = self.protocol.make(name)
        data = self.data.first(self.protocol.limit_black_box)

        def make() -> tuple[Tensor, dict[str, Any]]:
            made = self._attack(attack, system.deployed(), data, epsilon, f"{attack.title} on {system.defence.name}")
            return self._rounded(made, data, epsilon), {}

        return self._cell(system, BLACK_BOX, attack, "", epsilon, make, len(data))

    def _cell(
        self,
        system: System,
        threat: str,
        attack: Attack | None,
        gradient: str,
        epsilon: float | None,
        make: Callable[[], tuple[Tensor, dict[str, Any]]],
        n: int | None = None,
        extra: dict[str, Any] | None = None,
    ) -> Cell:
        """The cell from the cache, or measured on the images that `make` makes."""
        n = len(self.data) if n is None else n
        identity = {"cell": threat, **system.identity, "gradient": gradient, **self._common(attack, epsilon, n), **(extra or {})}
        key = key_of(identity)
        if (kept := self.cache.record(key)) is not None:
            return Cell.from_json({**kept, "classifier": system.classifier.name, "defence": system.defence.name})
        began = time.perf_counter()
        images, settings = make()
        rounding = "float" if self.protocol.float_pixels else "8 bits"
        data = self.data.first(n)
        distance = (images - data.floats()).abs().flatten(1)
        cell = Cell(
            system.classifier.name,
            system.defence.name,
            threat,
            attack.name if attack else "",
            attack.title if attack else "clean",
            gradient,
            epsilon,
            self._outcomes(system, images, data.labels),
            round(time.perf_counter() - began, 2),
            {**(attack.settings if attack else {}), **settings, "pixels": rounding},
            round(float(distance.amax(1).mean()) * 255, 3),
            round(float(distance.square().sum(1).sqrt().mean()), 4),
        )
        self.cache.put_record(key, cell.to_json())
        return cell

    def _common(self, attack: Attack | None, epsilon: float | None, n: int) -> dict[str, Any]:
        """What every key has: data, attack, libraries, seed."""
        return {
            "data": self.data.sha256,
            "n": n,
            "attack": attack and {"name": attack.name, "settings": attack.settings, "version": library.versions()[attack.library]},
            "epsilon": epsilon if epsilon is None else float(epsilon),  # 2 and 2.0 are the same distance.
            "float": self.protocol.float_pixels,
            **({"lengths": LENGTHS} if self._lengthens(attack) else {}),
            "seed": self.protocol.seed,
            "batch": self.protocol.batch,
            "device": self.device.type,
            "versions": {"torch": torch.__version__, "comdefend": __version__},
        }

    def _attack(self, attack: Attack, model: nn.Module, data: Labelled, epsilon: float, label: str) -> Tensor:
        """Adversarial images for `model`, as the attack leaves them: float32 (N, C, H, W) in [0, 1] on the CPU."""
        x, y, done = data.floats().to(self.device), data.labels.to(self.device), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if self.progress:
                self.progress(label if attack.minimum_norm else f"{label}, {epsilon:g} levels", done, len(data))

        advance(0)
        return attack.run(model, x, y, epsilon / 255, seed=self.protocol.seed, batch=self.protocol.batch, progress=advance).cpu()

    def _rounded(self, images: Tensor, data: Labelled, epsilon: float) -> Tensor:
        """The nearest 8-bit levels within epsilon, as saved files have them, unless the protocol wants floats."""
        if self.protocol.float_pixels:
            return images
        # Rounding alone could step out of the ball where epsilon is no whole number.
        clean, reach = data.pixels.float(), math.floor(epsilon)
        levels = torch.max(torch.min((images * 255).round(), clean + reach), clean - reach)
        return levels.clamp(0, 255) / 255

    @torch.no_grad()
    def _outcomes(self, system: System, images: Tensor, labels: Tensor) -> tuple[bool, ...]:
        self.seed(system)
        model = system.deployed()
        right: list[bool] = []
        for x, y in zip(torch.split(images, self.protocol.batch), torch.split(labels, self.protocol.batch), strict=True):
            right += (model(x.to(self.device)).argmax(1).cpu() == y).tolist()
            if self.progress:
                self.progress(f"{system.classifier.name} behind {system.defence.name}", len(right), len(images))
        return tuple(right)

    def seed(self, system: System, stream: int = 0) -> None:
        """Restart a random defence; attackers draw from another stream than the one that answers are scored on."""
        if system.defence.stochastic:
            system.defence.seed(2 * self.protocol.seed + stream)

    def _check(self, system: System, gradient: str, data: Labelled) -> None:
        """Look, once a system and gradient, whether there is a gradient at all."""
        names = (system.classifier.name, system.defence.name, gradient)
        if any((check.classifier, check.defence, check.gradient) == names for check in self.checks):
            return
        key = key_of({"check": gradient, **system.identity, **self._common(None, None, len(data))})
        kept = self.cache.record(key)
        if kept is None:
            self.seed(system, 1)
            model = system.attacked(gradient, 1)
            share = library.gradient_is_zero(model, data.floats().to(self.device), data.labels.to(self.device))
            kept = {"zero_share": share}
            self.cache.put_record(key, kept)
        self.checks.append(GradientCheck(*names, float(kept["zero_share"]), len(data)))

    def alarms(self) -> list[Alarm]:
        """Signs of gradient masking in the cells so far."""
        return alarms(self.cells, self.checks)

    def results(self) -> dict[str, Any]:
        """results.json so far, less what the caller knows alone (command, hardware, seconds)."""
        return {
            "format_version": FORMAT_VERSION,
            "package_version": __version__,
            "versions": {"torch": torch.__version__, **library.versions()},
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
            "alarms": [asdict(alarm) for alarm in self.alarms()],
        }
