#!/usr/bin/env python3
"""What strong attackers who know the purifier leave of a classifier behind it, attack by attack and image by image.

    pip install pyautoattack
    python benchmarks/adaptive.py --defence comdefend-fast --classifier classifiers/small-cifar10.safetensors --out found
    python benchmarks/adaptive.py ... --attacks square --epsilons 8 --out found         a share of the work, in a process of its own
    python benchmarks/adaptive.py ... --out found --report found.json                   all that lies in the folder, as one table

Every attack meets all images that the system gets right, alone, so that each has an accuracy of its own (or with --standing those that
stood the attacks before it, which is far less work); "worst" counts an image only if it stood all of them. All gradients go through both
networks and the classifier. With --precision bfloat16 attacks are made on a system that computes so; an image counts as held only if the
system is right in that precision and in float32.

PGD: 50 steps from 5 random starts, through the rounding as the identity (straight-through) and through the sigmoid's slope (soft).
APGD on cross-entropy, APGD on the targeted DLR loss, targeted FAB, Square with 5,000 queries: the four of AutoAttack's standard version
(Croce and Hein, ICML 2020) with its own settings, in the authors' code as the package pyautoattack has it, through the sigmoid's slope.
APGD on cross-entropy again, through a sigmoid eight times as wide: its slope reaches logits where the other's is nearly 0.
Transfer: the same PGD on a copy whose activations are ReLU, then tried on the system itself.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from copy import deepcopy
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from json_out import emit
from torch import Tensor, nn

from comdefend_cli.classifiers.loading import Classifier, load_classifier
from comdefend_cli.data.labelled import Labelled, load_labelled
from comdefend_cli.errors import ComdefendError
from comdefend_cli.evaluate.attacks.catalogue import make_attack
from comdefend_cli.evaluate.attacks.victim import find_device, leave_undisturbed
from comdefend_cli.evaluate.certification import InPrecision
from comdefend_cli.evaluate.defences.catalogue import make_defence
from comdefend_cli.evaluate.stats import compute_percentages
from comdefend_cli.evaluate.systems import System
from comdefend_cli.network.layers import ELU, LeakyReLU, Residual
from comdefend_cli.network.model import ComCNN
from comdefend_cli.runtime.machine import read_cpu

PGD_STEPS, PGD_RESTARTS = 50, 5
AUTO = ("apgd-ce", "apgd-t", "fab-t", "square")
#: APGD on the cross-entropy, through a sigmoid so many times as wide.
WIDE_APGD, WIDTH = "apgd-ce-wide", 8
ATTACKS = ("pgd-straight-through", "pgd-soft", "apgd-ce", WIDE_APGD, *AUTO[1:], "transfer")
PACKAGES = ("torch", "foolbox", "pyautoattack")


def make_system(defence: str, classifier: Classifier, precision: str) -> System:
    """The defence before the classifier, both computed in that precision."""
    model = classifier.model if precision == "float32" else InPrecision(classifier.model, precision).eval()
    return System(replace(classifier, model=model), make_defence(defence, device="cpu", precision=precision))


class ReluResidual(Residual):
    """:class:`.Residual` with ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) to the same."""
        return x + self.second(self.first(x.relu()).relu())


def copy_with_relu(system: System) -> System | None:
    """The system with ReLU for every activation of its networks, or None for a defence without networks."""
    defence = deepcopy(system.defence)
    found = False
    for module in list(defence.modules()):
        if isinstance(module, Residual):
            module.__class__, found = ReluResidual, True
        for name, child in list(module.named_children()):
            if isinstance(child, ELU | LeakyReLU):
                setattr(module, name, nn.ReLU())
                found = True
    return System(system.classifier, defence) if found else None


def widen(system: System) -> System | None:
    """The same system, bit for bit, whose logits are smaller: the sigmoid's slope is that of one `WIDTH` times as wide; None as above."""
    defence = deepcopy(system.defence)
    found = [module for module in defence.modules() if isinstance(module, ComCNN)]
    with torch.no_grad():
        for com in found:
            for parameter in com.find_convolutions()[-1].parameters():
                parameter.div_(WIDTH)  # A power of two, so that nothing is rounded.
    return System(system.classifier, defence) if found else None


def perturb(attack: str, system: System, x: Tensor, y: Tensor, epsilon: float, batch: int, seed: int) -> Tensor:
    """Adversarial images by the attack of that name, (N, C, H, W) in [0, 1]."""
    if attack == WIDE_APGD:
        wide = widen(system)
        if wide is None:
            return x
        system, attack = wide, "apgd-ce"
    if attack in AUTO:
        from pyautoattack import AutoAttack

        model = system.expose("soft" if "soft" in system.defence.gradients else system.defence.gradients[0], 1)
        with leave_undisturbed(model):
            device = find_device(model, x.device)
            auto = AutoAttack(model, attacks=[attack], version="custom", eps=epsilon / 255, seed=seed, device=device)
            auto.apgd_targeted.n_restarts = auto.apgd.n_restarts = auto.fab.n_restarts = 1  # As its standard version has them.
            auto.apgd_targeted.n_target_classes = auto.fab.n_target_classes = 9
            found: Tensor = auto.run_standard_evaluation(x, y, batch_size=batch)[0]
        return found
    made = make_attack("pgd", steps=PGD_STEPS, restarts=PGD_RESTARTS)
    if attack == "transfer":
        copied = copy_with_relu(system)
        if copied is None:
            return x
        return made.run(copied.expose("soft", 1), x, y, epsilon / 255, seed=seed, batch=batch)
    gradient = attack.removeprefix("pgd-")
    gradient = gradient if gradient in system.defence.gradients else "identity"
    return made.run(system.expose(gradient, 1), x, y, epsilon / 255, seed=seed, batch=batch)


@torch.no_grad()
def right(systems: list[System], x: Tensor, y: Tensor, batch: int) -> Tensor:
    """Whether the system, in each precision, is right once deployed, bool (N,)."""
    models = [system.deploy() for system in systems]
    answers = [torch.cat([model(part).argmax(1) for part in x.split(batch)]) == y for model in models]
    return torch.stack(answers).all(0)


def measure(asked: argparse.Namespace, systems: list[System], data: Labelled) -> None:
    """Every attack at every epsilon that has no file yet, made on the first system; what is found is tried on all."""
    x, y = data.floats(), data.labels
    clean = right(systems, x, y, asked.batch)
    keep(asked.out / "clean.json", {"attack": "clean", "epsilon": 0, "held": clean.tolist(), "seconds": 0})
    for epsilon in asked.epsilons:
        for attack in asked.attacks:
            path = asked.out / f"{attack}-{epsilon:g}.json"
            if path.is_file():
                continue
            began, after = time.perf_counter(), read_standing(asked.out, epsilon) if asked.standing else {}
            held = clean & torch.tensor([all(answers) for answers in zip(*after.values(), strict=True)]) if after else clean.clone()
            for rows in held.nonzero().flatten().split(asked.batch):
                found = perturb(attack, systems[0], x[rows], y[rows], epsilon, asked.batch, asked.seed)
                far = float((found - x[rows]).abs().max()) * 255
                if far > epsilon + 1e-3:
                    raise SystemExit(f"{attack} left epsilon: {far}")
                held[rows] = right(systems, found, y[rows], asked.batch)
                print(
                    f"{attack} {epsilon:g}: {int(held.sum())} of {int(clean.sum())} so far, {time.perf_counter() - began:.0f} s", flush=True
                )
            seconds = round(time.perf_counter() - began)
            keep(path, {"attack": attack, "epsilon": epsilon, "held": held.tolist(), "seconds": seconds, "after": list(after)})


def read_standing(folder: Path, epsilon: float) -> dict[str, list[bool]]:
    """Which images stood each attack at that epsilon whose result lies in the folder."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob(f"*-{epsilon:g}.json"))]
    return {each["attack"]: each["held"] for each in found}


def keep(path: Path, found: dict[str, Any]) -> None:
    """Write one attack's result, whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found))
    part.replace(path)


def summarize(folder: Path) -> list[dict[str, Any]]:
    """A row an attack and epsilon, and the worst of all: held of n, in % with the interval of Wilson at 95 %."""
    found = sorted((json.loads(path.read_text()) for path in folder.glob("*.json")), key=lambda each: each["epsilon"])
    rows = []
    for epsilon in dict.fromkeys(each["epsilon"] for each in found):
        own = [each for each in found if each["epsilon"] == epsilon]
        own.sort(key=lambda each: ATTACKS.index(each["attack"]) if each["attack"] in ATTACKS else -1)
        if epsilon:
            held = [all(answers) for answers in zip(*(each["held"] for each in own), strict=True)]
            own.append({"attack": "worst", "epsilon": epsilon, "held": held, "seconds": sum(each["seconds"] for each in own)})
        for each in own:
            held, n = sum(each["held"]), len(each["held"])
            share = compute_percentages(held, n)
            about = {"attack": each["attack"], "epsilon": epsilon, "n": n, **share, "seconds": each["seconds"]}
            rows.append({**about, "after": each["after"]} if each.get("after") else about)
    return rows


def main() -> None:
    """Measure, or report what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--defence", required=True, help="as of comdefend evaluate --defences, one of them; none for the classifier alone")
    parser.add_argument("--classifier", required=True)
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--epsilons", nargs="+", type=float, default=[8.0, 2.0])
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument(
        "--standing", action="store_true", help="attack only what stood the attacks in the folder; the rest counts as fallen"
    )
    parser.add_argument("--batch", type=int, default=125)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="float32")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of what each attack left; attacks that have a file are not made again"
    )
    parser.add_argument("--report", type=Path, help="write a table of all that is in the folder, and make no attack")
    asked = parser.parse_args()
    if asked.report is None and {*AUTO, WIDE_APGD} & {*asked.attacks} and find_spec("pyautoattack") is None:
        parser.error(f"{', '.join(AUTO)} and {WIDE_APGD} need AutoAttack: pip install pyautoattack, or choose other --attacks")
    try:
        data = load_labelled(asked.data, asked.data_dir, limit=asked.limit, download=False)
        classifier = load_classifier(asked.classifier, data=asked.data)
        systems = [make_system(asked.defence, classifier, name) for name in dict.fromkeys((asked.precision, "float32"))]
    except ComdefendError as error:
        parser.error(str(error))
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.report is None:
        measure(asked, systems, data)
        return
    about = {
        "defence": asked.defence,
        "settings": systems[0].defence.settings,
        "classifier": classifier.name,
        "classifier_sha256": classifier.sha256,
        "data": {"name": data.name, "n": len(data), "sha256": data.sha256},
        "cpu": read_cpu()[0],
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES if find_spec(name)}},
    }
    emit({**about, "rows": summarize(asked.out)}, asked.report)


if __name__ == "__main__":
    main()
