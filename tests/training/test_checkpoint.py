"""Checkpoints: a million steps' history, files of earlier versions, and what is refused."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from comdefend_cli.data.sources import Dataset, ImageArray
from comdefend_cli.errors import TrainingError
from comdefend_cli.training.baseline import BaselineTrainer
from comdefend_cli.training.checkpoint import KEY, checkpoint_is_final, load_checkpoint, run_with_checkpoints, save_checkpoint
from comdefend_cli.training.classifier_config import BaselineConfig
from comdefend_cli.training.history import History
from comdefend_cli.training.loop import Report

STEPS = 6


class MeanTrainer(BaselineTrainer):
    """Learns the images' mean with two parameters, one of each optimizer."""

    command = "comdefend train-baseline mean"
    unit = "levels"

    def __init__(self, **settings: object) -> None:
        images = ImageArray(torch.randint(0, 256, (8, 1, 4, 4), generator=torch.Generator().manual_seed(0)).byte(), torch.empty(0))
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 3))
        config = BaselineConfig(**{"data": "made", "steps": STEPS, "batch_size": 2, **settings})  # type: ignore[arg-type]
        super().__init__(model, [model[0].weight], config, Dataset("made", images, images), torch.device("cpu"))

    def loss(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.rand(len(pixels), 1, 4, 4, generator=generator)
        return (self.model(pixels / 255 + 0.1 * noise) - pixels.float().mean() / 255).square().mean()

    def measure(self, count: int) -> float:
        return float(self.dataset.test.pixels[:count].float().mean())


def train(trainer: MeanTrainer, path: Path, *, until: int = STEPS, history: History | None = None) -> History:
    """Train with checkpoints every two steps, and stop as on Ctrl-C after so many."""
    history = history or History(trainer.measure_name)
    for report in run_with_checkpoints(trainer, history, path, every=2, measure_every=3):
        trainer.stop_asked = report.step == until - 1  # Seen in the step after.
    return history


def rewrite(path: Path, change: Callable[[dict[str, object], dict[str, Tensor]], None]) -> None:
    """Change header and tensors of a checkpoint in place."""
    data, tensors = path.read_bytes(), load_file(path)
    header = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"][KEY])
    change(header, tensors)
    save_file(tensors, path, {KEY: json.dumps(header)})


def to_old(header: dict[str, object], tensors: dict[str, Tensor]) -> None:
    """As files were before histories had columns: a list of records in the header, neither command nor number of steps beside."""
    columns = {name: tensors.pop(f"history.{name}").tolist() for name in header.pop("columns")}  # type: ignore[attr-defined]
    rows = zip(*columns.values(), strict=True)
    header["history"] = [{name: None if value != value else value for name, value in zip(columns, row, strict=True)} for row in rows]
    del header["command"], header["steps"]


@pytest.mark.parametrize("old", [False, True])
def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path, old: bool) -> None:
    """Weights, losses and history end as those of an uninterrupted run, also from a checkpoint as earlier versions wrote it."""
    path = tmp_path / "run.checkpoint"
    whole = MeanTrainer()
    expected = list(train(whole, tmp_path / "whole.checkpoint").records())
    train(MeanTrainer(), path, until=3)
    if old:
        rewrite(path, to_old)
    assert not checkpoint_is_final(path, "mean")
    second = MeanTrainer()
    history = load_checkpoint(path, second)
    assert second.step_done == len(history) == 3 and history.last_measured() == second.measure(64)
    found = list(train(second, path, history=history).records())
    for record in (*found, *expected):
        assert record.pop("images_per_second") > 0
    assert found == expected and [record["step"] for record in found] == list(range(1, STEPS + 1))
    assert [record["measured"] is None for record in found] == [True, True, False] * 2
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(second.model.parameters(), whole.model.parameters(), strict=True))
    assert checkpoint_is_final(path, "mean")


def test_a_million_steps_have_room(tmp_path: Path) -> None:
    """The history of so many is written and read exactly, and the header, whose length has a limit, stays as short as of three."""
    count, sizes = 10**6, []
    numbers = torch.arange(1, count + 1, dtype=torch.float64)
    for steps in (3, count):
        trainer, path = MeanTrainer(steps=2 * count), tmp_path / f"{steps}.checkpoint"
        for trainer.step_done in (0, steps):
            trainer.step()
        trainer.step_done = steps
        history = History("measured")
        for name, values in {"step": numbers, "loss": 1 / numbers, "measured": numbers.sqrt(), "images_per_second": numbers / 7}.items():
            history.columns[name] = array("d", values[:steps].tolist())
        save_checkpoint(path, trainer, history)
        with path.open("rb") as file:
            sizes.append(int.from_bytes(file.read(8), "little"))
        again = MeanTrainer(steps=2 * count)
        assert load_checkpoint(path, again).columns == history.columns and again.step_done == steps
    assert abs(sizes[0] - sizes[1]) < 500 and path.stat().st_size < 33 * count


def test_figures_that_come_later_have_gaps_before(tmp_path: Path) -> None:
    """A figure that only some steps report is None in the others."""
    history = History("psnr")
    history.append(Report(1, 0.5, None, 2.0))
    history.append(Report(2, 0.25, 30.0, 2.0, {"distance": 4.0}))
    history.append(Report(3, 0.125, None, 2.0, {"logit_rms": 8.0}))
    assert [record.get("distance") for record in history.records()] == [None, 4.0, None]
    assert [record.get("logit_rms") for record in history.records()] == [None, None, 8.0]
    assert [record["psnr"] for record in history.records()] == [None, 30.0, None] and history.last_measured() == 30.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, tensors: header.update(command="comdefend train"), "it is of comdefend train"),
        (lambda header, tensors: tensors.pop("history.loss"), "history.loss"),
        (lambda header, tensors: tensors.update({"history.loss": torch.zeros(2)}), "columns of unlike length"),
        (lambda header, tensors: tensors.update({"history.loss": torch.zeros(3, 2)}), "not a checkpoint"),
        (lambda header, tensors: header.pop("step"), "step"),
        (lambda header, tensors: header.update(config=3), "not a checkpoint"),
        (lambda header, tensors: tensors.pop("momentum.0.weight"), "0.weight in the optimizer's state"),
        (lambda header, tensors: tensors.update({"exp_avg.1.weight": torch.zeros(3)}), r"exp_avg.1.weight is \(3,\), not \(1, 2, 3, 3\)"),
        (lambda header, tensors: tensors.pop("model.1.bias"), "1.bias"),
        (lambda header, tensors: header["config"].update(lr=0.5), "--lr 0.5, not 0.02"),
    ],
)
def test_damaged_and_other_checkpoints_are_one_line(
    tmp_path: Path, change: Callable[[dict[str, object], dict[str, Tensor]], None], message: str
) -> None:
    """What is missing, misshapen or of another run is said, with what to do."""
    path = tmp_path / "run.checkpoint"
    train(MeanTrainer(), path, until=3)
    rewrite(path, change)
    with pytest.raises(TrainingError, match=message) as caught:
        load_checkpoint(path, MeanTrainer())
    assert "\n" not in str(caught.value) and "anew" in str(caught.value)
