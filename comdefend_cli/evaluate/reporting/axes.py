"""What is drawn on one pair of matplotlib axes: curves over epsilon, or a scatter of clean against attacked accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from comdefend_cli.evaluate.reporting.labels import place_labels
from comdefend_cli.evaluate.reporting.styles import GRID, INK, MUTED, Style, shorten
from comdefend_cli.evaluate.reporting.tables import Measured, say_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Points between lines of labels.
LINE = 11.0
#: Of the axes' width: where the lines that lead to labels end.
LEADER = 1.08
#: Characters of a name beside its point.
LONGEST = 30


def draw_curves(title: str, epsilons: Sequence[float], lines: Sequence[tuple[Style, list[Measured]]]) -> Callable[[Axes], None]:
    """One attack: accuracy in percent over epsilon from 0 on, a line a system with its interval as a band."""

    def draw(axes: Axes) -> None:
        _frame(axes, title, "ε · 255; 0 = clean images", "accuracy, %")
        last = max(epsilons)
        axes.set_xlim(-0.03 * last, 1.03 * last)
        axes.set_xticks([0, *epsilons], _legible([0, *epsilons]))
        alpha = max(0.05, min(0.15, 0.8 / len(lines)))
        for style, points in lines:
            x, y = [each.epsilon or 0.0 for each in points], [each.accuracy for each in points]
            bottom = 4 if style.color == INK else 2
            low, high = [each.low for each in points], [each.high for each in points]
            axes.fill_between(x, low, high, color=style.color, alpha=alpha, linewidth=0, zorder=bottom - 1)
            axes.plot(x, y, **style.line(), zorder=bottom, clip_on=False)
        ends = [(points[-1].epsilon or 0.0, points[-1].accuracy) for _, points in lines]
        _label_beside(axes, ends, [str(style.number) for style, _ in lines], [style.color for style, _ in lines])

    return draw


def draw_scatter(title: str, points: Sequence[tuple[Style, Measured, Measured]], limits: tuple[float, float]) -> Callable[[Axes], None]:
    """One epsilon: clean (x, within `limits`) against attacked accuracy in percent, a named point a system."""

    def draw(axes: Axes) -> None:
        _frame(axes, title, "accuracy on clean images, %", "accuracy under all attacks, %")
        axes.set_xlim(*limits)
        axes.set_xticks(_round_ticks(*limits))
        axes.plot(limits, limits, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        for style, clean, attacked in points:
            spans: dict[str, Any] = {"color": style.color, "linewidth": 2.2, "alpha": 0.22, "zorder": 2}
            axes.plot([clean.low, clean.high], [attacked.accuracy] * 2, **spans)
            axes.plot([clean.accuracy] * 2, [attacked.low, attacked.high], **spans)
            axes.plot([clean.accuracy], [attacked.accuracy], linestyle="none", **style.points(), zorder=3, clip_on=False)
        places = [(clean.accuracy, attacked.accuracy) for _, clean, attacked in points]
        _label_beside(
            axes,
            places,
            [f"{style.number}  {shorten(style.label, LONGEST)}" for style, _, _ in points],
            [style.color for style, _, _ in points],
        )

    return draw


def _frame(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_ylim(0, 100)
    axes.set_yticks(range(0, 101, 20))
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=3)


def _round_ticks(low: float, high: float) -> list[int]:
    """At most six whole percents between two."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 1000) if (high - low) / step < 6)
    return [tick for tick in range(0, 101, step) if low <= tick <= high]


def _legible(ticks: Sequence[float]) -> list[str]:
    """Tick labels, less those that would touch the one before."""
    shown, end = [], -1.0
    for tick in ticks:
        share, half = tick / max(ticks), 0.02 * (len(say_number(tick)) + 1)
        shown.append(say_number(tick) if share - half >= end else "")
        end = share + half if shown[-1] else end
    return shown


def _label_beside(axes: Axes, places: Sequence[tuple[float, float]], labels: Sequence[str], colors: Sequence[str]) -> None:
    """Labels in a column at the right, none on another, each with a line to its place; axes must have their limits."""
    height = axes.bbox.height / axes.figure.dpi * 72
    left, right = axes.get_xlim()
    end = left + LEADER * (right - left)
    heights = place_labels(places, end, gap=100 * LINE / height, high=100.0)
    for (x, y), at, label, color in zip(places, heights, labels, colors, strict=True):
        axes.plot([x, end], [y, at], color=color, linewidth=0.6, alpha=0.6, clip_on=False, zorder=1.5)
        axes.text(end + 0.015 * (right - left), at, label, va="center", ha="left")
