#!/usr/bin/env python3
"""The paper's figure 4: accuracy on CIFAR-10 against epsilon under FGSM, BIM, DeepFool and C&W, with and without ComDefend.

    python benchmarks/paper/figure4.py --data-dir DATA --out FOLDER [--classifiers DIR] [--weights NAME|PATH] [--epsilons 2,8,16]

Lines: no defence (dotted), ComDefend at test time, and at training and test time where DIR holds ARCH-cifar10-purified.safetensors.
Crosses are the paper's table 5, whose numbers the figure shows. Writes FOLDER/figure4.png, .svg, .md and .json; finished cells are
kept in FOLDER/cache, and shared with table5.py.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from measuring import Measured, about, as_json, markdown, measure, write
from options import add_classifiers, add_evaluation, add_weights, parser, run
from published import CLEAN, FIGURE4_CAPTION, TABLE5, TRAINING, Column
from systems import NONE, Line, lines_of_small_images

from comdefend_cli.data.labelled import load_labelled
from comdefend_cli.errors import UsageError
from comdefend_cli.evaluate.stats import compute_percentages
from comdefend_cli.runtime.extras import require
from comdefend_cli.runtime.files import write_atomically

DATA = "cifar10"
#: A line's colour and dashes; as the evaluation's report has them.
LOOKS = {
    "no defence": ("#1c2127", (0, (1, 1.5))),
    "test time": ("#122ca1", "-"),
    "training and test time": ("#c0597c", (0, (5, 1.6))),
}
RC = {"font.family": ["DejaVu Sans"], "font.size": 8.5, "text.parse_math": False, "svg.hashsalt": "comdefend"}


def chosen(lines: Sequence[Line], arch: str) -> dict[str, Line]:
    """The figure's lines by name, of one architecture and the first weights."""
    picked: dict[str, Line] = {}
    for line in lines:
        if not line.published or not line.label.startswith(f"{arch}-"):
            continue
        row = line.published[0]
        name = {"Normal": "no defence", "Proposed method": "training and test time" if row.group == TRAINING else "test time"}.get(
            row.defence
        )
        if name and name not in picked:
            picked[name] = line
    return {name: picked[name] for name in LOOKS if name in picked}


def draw(lines: dict[str, Line], columns: Sequence[Column], measured: Measured, n: int, ending: str) -> bytes:
    """The chart as bytes of a PNG or SVG file: a panel an attack."""
    matplotlib, figures = require("matplotlib", extra="evaluate"), require("matplotlib.figure", extra="evaluate")
    shown = [column for column in columns if column.attack in measured.attacks]
    with matplotlib.rc_context(RC):
        figure = figures.Figure((3.0 * len(shown), 3.6), layout="constrained")
        for axes, column in zip(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown, strict=True):
            _panel(axes, column, lines, measured)
        figure.axes[0].set_ylabel("accuracy, %")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        # Column by column: a line above its crosses.
        figure.legend(handles, labels, loc="outside lower left", ncols=len(lines) if len(shown) > 2 else 1, frameon=False)
        figure.suptitle(f"Accuracy on CIFAR-10 under grey-box attacks, n = {n}; bands are 95 % intervals", x=0.01, ha="left")
        file = io.BytesIO()
        options: dict[str, Any] = {"dpi": 150} if ending == "png" else {"metadata": {"Date": None, "Creator": None}}
        figure.savefig(file, format=ending, **options)
    return file.getvalue()


def _panel(axes: Any, column: Column, lines: dict[str, Line], measured: Measured) -> None:
    axes.set_title(column.title, loc="left", fontweight="bold")
    axes.set_xlabel("ε in steps of 1/255; 0 = clean")
    axes.set_xticks([0, *column.epsilons], [f"{epsilon:g}" for epsilon in (0, *column.epsilons)])
    axes.set_ylim(0, 100)
    axes.grid(axis="y", color="#dde1e6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    for name, line in lines.items():
        color, dashes = LOOKS[name]
        cells = [measured.cell(line, CLEAN, None), *(measured.cell(line, column.attack, epsilon) for epsilon in column.epsilons)]
        points = [(cell.epsilon or 0.0, compute_percentages(cell.correct, cell.n)) for cell in cells if cell]
        x, accuracies = [at for at, _ in points], [found["accuracy"] for _, found in points]
        axes.fill_between(x, [f["low"] for _, f in points], [f["high"] for _, f in points], color=color, alpha=0.12, linewidth=0)
        axes.plot(x, accuracies, color=color, linestyle=dashes, marker="o", markersize=4, linewidth=1.6, clip_on=False, label=name)
        (row,) = line.published
        paper = [(epsilon, TABLE5.value(row, column.attack, epsilon)) for epsilon in column.epsilons]
        x, y = [at for at, value in paper if value is not None], [value for _, value in paper if value is not None]
        axes.plot(
            x, y, color=color, linestyle="none", marker="x", markersize=6, alpha=0.7, clip_on=False, label=f"{name}, the paper's table 5"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, draw, write."""
    made = parser(__doc__)
    add_classifiers(made)
    made.add_argument("--arch", default="small", help="of the classifiers: small, medium, resnet18 or resnet50; default small")
    made.add_argument("--epsilons", default="2,8,16", help="in 8-bit levels; default 2,8,16")
    add_weights(made, "comdefend-12bit-denoise")
    add_evaluation(made, limit=500, batch_size=100)
    arguments = made.parse_args(argv)
    try:
        epsilons = tuple(sorted({float(part) for part in arguments.epsilons.split(",")}))
    except ValueError:
        raise UsageError(f"--epsilons takes numbers separated by commas, not {arguments.epsilons!r}") from None
    lines = chosen(lines_of_small_images(TABLE5, DATA, arguments), arguments.arch)
    if not any(line.system and line.system.defence.name == NONE for line in lines.values()):
        raise UsageError(f"{arguments.classifiers}: holds no {arguments.arch}-{DATA}.safetensors; make it with comdefend train-classifier")
    data = load_labelled(DATA, arguments.data_dir, limit=arguments.limit, seed=arguments.seed)
    columns = tuple(Column(column.title, column.attack, epsilons) for column in TABLE5.columns)
    rows = list(lines.values())
    measured = measure(columns, rows, data, arguments)
    drawn = {name: line for name, line in lines.items() if line.system}
    for ending in ("png", "svg"):
        write_atomically(arguments.out / f"figure4.{ending}", draw(drawn, columns, measured, len(data), ending), overwrite=True)
    remarks = [f"The figure's caption: “{FIGURE4_CAPTION.rstrip('.')}”", about(rows, data, measured, arguments), arguments.note]
    text = markdown(TABLE5, columns, rows, measured, remarks, title="Figure 4")
    print(text)
    write(arguments.out / "figure4", text, {"figure": 4, **as_json(TABLE5, columns, rows, measured, arguments)})


if __name__ == "__main__":
    run(main)
