"""The charts of the documents, as SVG, from docs/data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from measured import SHOWN, Row, find_shown, read_evaluation

PICTURES = Path(__file__).resolve().parent.parent / "pictures"
#: Told apart by people who see few colours, and in grey: Okabe and Ito's.
INK, COLORS = "#1c2127", ("#7f7f7f", "#0072b2", "#e69f00", "#d55e00", "#009e73")
#: How the charts call defences.
NAMES = {
    "none": "no defence",
    "comdefend-fast": "comdefend-fast\n(default)",
    "comdefend-12bit-denoise": "comdefend-\n12bit-denoise",
    "comdefend-fast-cifar10": "comdefend-\nfast-cifar10",
    "jpeg:quality=75": "JPEG,\nquality 75",
    "median:size=3": "median, 3x3",
}
STYLE = {"svg.hashsalt": "comdefend", "svg.fonttype": "path", "font.size": 11, "axes.spines.top": False, "axes.spines.right": False}


def draw_all(folder: Path = PICTURES) -> list[Path]:
    """Draw every chart into a folder; the files."""
    made: dict[str, Callable[[Any], None]] = {"protection": draw_protection, "dial": draw_dial, "photographs": draw_photographs}
    files = []
    for name, draw in made.items():
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(7.2, 4.2), layout="constrained", facecolor="white")
            draw(figure.add_subplot())
            files.append(folder / f"{name}.svg")
            figure.savefig(files[-1], metadata={"Date": None, "Creator": None})
    return files


def draw_protection(axes: Any) -> None:
    """CIFAR-10: clean, grey-box and adaptive accuracy of each defence."""
    columns = {
        "clean": ("clean", ""),
        "grey-box, epsilon 2/255": ("grey-box", "2"),
        "grey-box, epsilon 8/255": ("grey-box", "8"),
        "adaptive, epsilon 2/255": ("adaptive", "2"),
    }
    _draw_bars(axes, find_shown, {defence: _shorten(defence) for defence in SHOWN}, columns)


def draw_photographs(axes: Any) -> None:
    """ImageNet: clean and grey-box accuracy of each defence."""
    found = read_evaluation("fast-photographs")
    columns = {"clean": ("clean", ""), "grey-box, epsilon 2/255": ("grey-box", "2"), "grey-box, epsilon 8/255": ("grey-box", "8")}
    _draw_bars(axes, found.find, {defence: _shorten(defence) for _, defence in found.systems}, columns)


def draw_dial(axes: Any) -> None:
    """CIFAR-10: accuracy over the noise that is added, on clean images and under each epsilon, grey-box."""
    name = "comdefend-12bit-denoise"
    noises = {
        0: f"{name}:input-noise=0",
        10: f"{name}:input-noise=10",
        20: name,
        30: f"{name}:input-noise=30",
        40: f"{name}:input-noise=40",
    }
    found = read_evaluation("dial")
    columns = {"clean": ("clean", ""), **{f"epsilon {epsilon}/255": ("grey-box", epsilon) for epsilon in ("2", "8", "16")}}
    for number, (label, column) in enumerate(columns.items()):
        rows = [found.find(defence, *column) for defence in noises.values()]
        axes.errorbar(list(noises), _heights(rows), _intervals(rows), label=label, color=COLORS[number], marker="o", capsize=3)
    axes.set(ylim=(0, 100), ylabel="accuracy, %", xlabel="noise added before denoising, standard deviation of 255")
    axes.legend(frameon=False, fontsize=9, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.12))


def _shorten(defence: str) -> str:
    """A defence in a few short lines, to stand below its bars."""
    return NAMES.get(defence) or defence.replace("comdefend-", "comdefend-\n").replace(":input-noise=", "\nnoise ")


def _draw_bars(
    axes: Any, find: Callable[[str, str, str], Row | None], defences: dict[str, str], columns: dict[str, tuple[str, str]]
) -> None:
    """A group of bars a defence, a bar a column, with 95 % intervals; `find` takes a defence and a column."""
    width = 0.8 / len(columns)
    for number, (label, column) in enumerate(columns.items()):
        rows = [find(defence, *column) for defence in defences]
        places = [index - 0.4 + width * (number + 0.5) for index in range(len(rows))]
        axes.bar(places, _heights(rows), width * 0.94, label=label, color=COLORS[number])
        axes.errorbar(places, _heights(rows), _intervals(rows), fmt="none", ecolor=INK, elinewidth=0.9, capsize=2)
    axes.set(ylim=(0, 100), ylabel="accuracy, %")
    axes.set_xticks(range(len(defences)), defences.values(), fontsize=9.5)
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.19))


def _heights(rows: Sequence[Row | None]) -> list[float]:
    return [float(row.accuracy) if row else 0.0 for row in rows]


def _intervals(rows: Sequence[Row | None]) -> list[list[float]]:
    """How far the 95 % interval reaches below and above, as matplotlib takes it."""
    known = [(float(row.accuracy), float(row.low), float(row.high)) if row else (0.0, 0.0, 0.0) for row in rows]
    return [[accuracy - low for accuracy, low, _ in known], [high - accuracy for accuracy, _, high in known]]
