"""Which system of this project stands for which row of the paper: the lines of a table.

Classifiers are files of `comdefend train-classifier` named ARCH-DATA[-KIND].safetensors, such as small-cifar10-fgsm.safetensors.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from published import TEST, TRAINING, Row, Table

from comdefend_cli.classifiers.loading import EFFICIENTNET, Classifier, load_classifier
from comdefend_cli.evaluate.defences.base import Defence
from comdefend_cli.evaluate.defences.catalogue import make_defence
from comdefend_cli.evaluate.systems import System
from comdefend_cli.runtime.device import resolve_device

NONE = "none"
#: Networks that are looked for, the paper's last.
ARCHITECTURES = ("small", "medium", "resnet18", "resnet50")
#: A kind of classifier, and the options of `comdefend train-classifier` that make it.
KINDS = {
    "": "",
    "fgsm": "--adversarial fgsm",
    "bim": "--adversarial bim",
    "smoothed": "--label-smoothing 0.1",
    "purified": "--purify {weights}",
}
#: The methods of tables 5 and 6 that are ways to train.
TRAINED = {"Normal": "", "Adversarial FGSM": "fgsm", "Adversarial BIM": "bim", "Label Smoothing": "smoothed"}
SQUEEZERS = ("bits:depth=3", "median:size=3")
#: Levels that PixelDefend may move a value by, as its paper has them.
REACH = {"cifar10": 16, "fashion-mnist": 32}


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Attributes:
        published: the paper's rows beside it, one a network; () for a system that the paper's table does not have.
        label: the system in words.
        system: what is measured, or None.
        why: the reason where it is None, with what to do.
        note: what a reader must know of it.
    """

    published: tuple[Row, ...]
    label: str
    system: System | None = None
    why: str = ""
    note: str = ""

    @property
    def name(self) -> str:
        """The paper's name of it."""
        if not self.published:
            return "not in the paper's table"
        return f"{self.published[0].name}, {' / '.join(row.network for row in self.published)}"


class Shelf:
    """Classifiers and defences, each loaded once."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device = resolve_device(arguments.device)
        self._classifiers: dict[str, Classifier] = {}
        self._defences: dict[str, Defence] = {}

    def classifier(self, spec: str) -> Classifier:
        """As `load_classifier`."""
        if spec not in self._classifiers:
            self._classifiers[spec] = load_classifier(spec, self.device)
        return self._classifiers[spec]

    def defence(self, spec: str) -> Defence:
        """As `comdefend_cli.evaluate.defences.catalogue.make_defence`."""
        if spec not in self._defences:
            self._defences[spec] = make_defence(spec, device=str(self.device), precision=self.arguments.precision)
        return self._defences[spec]

    def line(self, published: tuple[Row, ...], classifier: str, spec: str = NONE, note: str = "") -> Line:
        """A line that can be measured."""
        system = System(self.classifier(classifier), self.defence(spec))
        return Line(published, shown(system.classifier.name, system.defence.name), system, note=note)

    @cached_property
    def comdefends(self) -> list[str]:
        """ComDefend with each of the weights."""
        return list(dict.fromkeys(self.arguments.weights))

    def fitting(self, classifier: Classifier) -> tuple[str, str]:
        """The weights among those given that a classifier was trained behind, with a note where there are none such."""
        wanted = classifier.record.get("purify", "")
        for spec in self.comdefends:
            if self.defence(spec).settings.get("sha256") == wanted:
                return spec, ""
        learnt = f"images purified by weights of SHA-256 {wanted[:12]}" if wanted else "images that were not purified"
        return self.comdefends[0], f"{classifier.name} learnt from {learnt}, and is tested behind {short(self.comdefends[0])}"


def short(spec: str) -> str:
    """A spec with its files' names in place of their paths."""
    return re.sub(r"(^|=)[^=,:]*/", r"\1", spec)


def shown(classifier: str, defence: str) -> str:
    """A system in words."""
    return classifier if defence == NONE else f"{classifier} behind {short(defence)}"


def lines_of_small_images(table: Table, data: str, arguments: argparse.Namespace) -> list[Line]:
    """Tables 5 and 6: the classifiers in a folder, by architecture."""
    shelf, folder = Shelf(arguments), arguments.classifiers
    found = [arch for arch in ARCHITECTURES if any(path_of(folder, arch, data, kind).is_file() for kind in KINDS)]
    return [line for arch in found or ARCHITECTURES[:1] for line in _lines_of(shelf, table, data, arch)]


def absent_networks(data: str, arguments: argparse.Namespace) -> list[str]:
    """A sentence where the paper's own network is not there."""
    arch = ARCHITECTURES[-1]
    path = path_of(arguments.classifiers, arch, data, "")
    if path.is_file():
        return []
    command = f"comdefend train-classifier --data {data} --arch {arch} --out {path}"
    return [f"The paper's network was not measured: {path} is absent; make it, best on a GPU, with: {command}"]


def path_of(folder: Path, arch: str, data: str, kind: str) -> Path:
    """The file of a classifier."""
    return folder / f"{'-'.join(filter(None, (arch, data, kind)))}.safetensors"


def _lines_of(shelf: Shelf, table: Table, data: str, arch: str) -> list[Line]:
    arguments = shelf.arguments

    def trained(published: tuple[Row, ...], kind: str, spec: str = NONE) -> Line:
        path = path_of(arguments.classifiers, arch, data, kind)
        if path.is_file():
            if kind == "purified":
                spec, note = shelf.fitting(shelf.classifier(str(path)))
                return shelf.line(published, str(path), spec, note)
            return shelf.line(published, str(path), spec)
        options = KINDS[kind].format(weights=shelf.comdefends[0])
        command = f"comdefend train-classifier --data {data} --arch {arch} {options} --out {path}".replace("  ", " ")
        return Line(published, shown(path.stem, spec), why=f"{path} is absent; make it with: {command}")

    lines = [trained(table.find(defence, TRAINING), kind) for defence, kind in TRAINED.items()]
    lines.append(trained(table.find("Proposed method", TRAINING), "purified"))
    lines += [trained(table.find("Feature Squeezing", TEST), "", spec) for spec in SQUEEZERS]
    if arguments.pixelcnn:
        spec = f"pixeldefend:weights={arguments.pixelcnn},epsilon={REACH[data]}"
        lines.append(trained(table.find("PiexlDefend", TEST), "", spec))
    else:
        why = f"no --pixelcnn was given; make one with: comdefend train-baseline pixelcnn --data {data}"
        lines.append(Line(table.find("PiexlDefend", TEST), "PixelDefend", why=why))
    lines += [trained(table.find("Proposed method", TEST), "", spec) for spec in shelf.comdefends]
    further = [trained((), kind, shelf.comdefends[0]) for kind in ("fgsm", "bim", "smoothed")]
    further += [trained((), "", f"hgd:weights={arguments.hgd}")] if arguments.hgd else []
    return lines + [line for line in further if line.system]


def lines_of_imagenet(table: Table, arguments: argparse.Namespace) -> list[Line]:
    """Tables 7 to 9: EfficientNet-Lite0 in place of the paper's networks."""
    shelf = Shelf(arguments)
    lines = [shelf.line(table.find("Normal"), EFFICIENTNET)]
    if arguments.hgd:
        lines.append(shelf.line(table.find("HGD"), EFFICIENTNET, f"hgd:weights={arguments.hgd}"))
    elif table.find("HGD"):
        command = f"comdefend train-baseline hgd --data FOLDER --crop {arguments.size} --classifier {EFFICIENTNET}"
        lines.append(Line(table.find("HGD"), "HGD", why=f"no --hgd was given; make one with: {command}"))
    lines.append(shelf.line(table.find("ICLR2018"), EFFICIENTNET, "resize-pad:output=larger"))
    ours = table.find("Our method") or table.find("Proposed method")
    return lines + [shelf.line(ours, EFFICIENTNET, spec) for spec in shelf.comdefends]
