"""Images of an evaluation to look at: a few for the report, all adversarial ones as files."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from comdefend_cli.errors import ComdefendError, explain
from comdefend_cli.evaluate.cells import GRAY_BOX, Cell
from comdefend_cli.evaluate.evaluation import Evaluation
from comdefend_cli.evaluate.reporting.gallery import GalleryItem
from comdefend_cli.evaluate.systems import System
from comdefend_cli.imaging.raster import Raster
from comdefend_cli.imaging.writing import write_image
from comdefend_cli.runtime.files import write_atomically

#: Images a defence, and defences, that the report shows.
EACH, SYSTEMS = 3, 6


def make_gallery(evaluation: Evaluation) -> list[GalleryItem]:
    """For each defence some images that the attack turned, the middle epsilon's strongest grey-box attack: restored ones and not.

    The first images that fit are taken, restored and not restored in turn, so that what is shown is not only success.
    """
    items: list[GalleryItem] = []
    systems = [system for system in evaluation.systems if system.defence.name != "none"] or evaluation.systems
    for system in systems[:SYSTEMS]:
        cell = _strongest(evaluation, system)
        if cell is not None:
            items += _of_cell(evaluation, system, cell)
    return items


def _strongest(evaluation: Evaluation, system: System) -> Cell | None:
    own = [cell for cell in evaluation.cells if cell.threat == GRAY_BOX and cell.classifier == system.classifier.name]
    own = [cell for cell in own if cell.defence == system.defence.name and cell.epsilon is not None]
    if not own:
        return None
    sizes = sorted({cell.epsilon for cell in own if cell.epsilon is not None})
    middle = sizes[len(sizes) // 2]
    return min((cell for cell in own if cell.epsilon == middle), key=lambda cell: cell.correct)


@torch.no_grad()
def _of_cell(evaluation: Evaluation, system: System, cell: Cell) -> list[GalleryItem]:
    assert cell.epsilon is not None  # Grey-box cells have one.
    data, device = evaluation.data, evaluation.device
    attacked = evaluation.make_gray_images(system.classifier, cell.attack, cell.epsilon)
    model = system.classifier.model
    on_clean, on_attacked = (_labels(model, part, device) for part in (data.floats(), attacked))
    turned = (on_clean == data.labels) & (on_attacked != data.labels)
    outcome = torch.tensor(cell.outcomes)
    restored, lost = (torch.nonzero(turned & part).flatten().tolist() for part in (outcome, ~outcome))
    chosen = sorted([*restored[: EACH - EACH // 2], *lost[: EACH // 2]])
    if not chosen:
        return []
    system.seed(evaluation.protocol.seed)
    purified = system.defence(attacked[chosen].to(device)).cpu().float()
    after = system.deploy()
    system.seed(evaluation.protocol.seed)
    on_purified = _labels(after, attacked[chosen], device)

    def name(label: Tensor) -> str:
        index = int(label)
        return data.classes[index] if index < len(data.classes) else str(index)

    return [
        GalleryItem(
            threat=GRAY_BOX,
            classifier=system.classifier.name,
            attack=cell.title,
            epsilon=cell.epsilon,
            defence=system.defence.name,
            true_label=name(data.labels[index]),
            clean_label=name(on_clean[index]),
            adversarial_label=name(on_attacked[index]),
            purified_label=name(on_purified[place]),
            clean=_array(data.floats()[index]),
            adversarial=_array(attacked[index]),
            purified=_array(purified[place]),
        )
        for place, index in enumerate(chosen)
    ]


def _labels(model: torch.nn.Module, images: Tensor, device: torch.device) -> Tensor:
    return torch.cat([model(part.to(device)).argmax(1).cpu() for part in torch.split(images, 100)])


def _array(image: Tensor) -> np.ndarray:
    """An image (C, H, W) in [0, 1] as uint8 (H, W, C)."""
    return (image * 255).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()


def save_adversarial(evaluation: Evaluation, folder: Path) -> int:
    """Write the grey-box images as PNG: a folder a classifier, attack and epsilon, each with labels.csv as `evaluate` reads it.

    Returns:
        How many were written.

    Raises:
        ComdefendError: they cannot be.
    """
    count = 0
    done: set[tuple[str, str, float]] = set()
    for cell in evaluation.cells:
        if cell.threat != GRAY_BOX or cell.epsilon is None or (cell.classifier, cell.attack, cell.epsilon) in done:
            continue
        done.add((cell.classifier, cell.attack, cell.epsilon))
        classifier = next(s.classifier for s in evaluation.systems if s.classifier.name == cell.classifier)
        where = folder / _file_name(f"{cell.classifier}-{cell.attack}-{cell.epsilon:g}")
        count += _save(evaluation, evaluation.make_gray_images(classifier, cell.attack, cell.epsilon), where)
    return count


def _file_name(text: str) -> str:
    return "".join(character if character.isalnum() or character in "-._" else "_" for character in text)[:100].lstrip(".")


def _save(evaluation: Evaluation, shown: Tensor, folder: Path) -> int:
    data, table = evaluation.data, io.StringIO()
    rows = csv.writer(table)
    rows.writerow(("file", "class", "name"))
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ComdefendError(f"{folder}: cannot make this folder: {explain(error)}") from error
    for index, (each, label) in enumerate(zip(shown, data.labels.tolist(), strict=True)):
        path = folder / f"{index:05}.png"
        write_image(path, Raster(_array(each)), overwrite=False)
        rows.writerow((path.name, label, data.classes[label] if label < len(data.classes) else label))
    write_atomically(folder / "labels.csv", table.getvalue().encode())
    return len(shown)
