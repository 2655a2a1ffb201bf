"""Where labels in a column beside a chart stand, so that none covers another and their lines do not cross."""

from __future__ import annotations

from collections.abc import Sequence


def place_labels(places: Sequence[tuple[float, float]], end: float, *, gap: float, high: float) -> list[float]:
    """Heights of labels in a column at x = `end`, one a place left of it: at least `gap` apart, near their places, no lines crossing.

    Two lines that cross exchange their labels, which makes them shorter together, so this ends.

    Args:
        places: x and y of what is labelled.
        high: labels lie within 0 and this, if there is room.
    """
    order = sorted(range(len(places)), key=lambda i: (places[i][1], -places[i][0]))
    slots = spread([places[i][1] for i in order], gap, 0.0, high)
    exchanged = True
    while exchanged:
        exchanged = False
        for lower in range(len(order)):
            for upper in range(lower + 1, len(order)):
                if _cross(places[order[lower]], places[order[upper]], slots[lower], slots[upper], end):
                    order[lower], order[upper] = order[upper], order[lower]
                    exchanged = True
    heights = [0.0] * len(places)
    for slot, i in zip(slots, order, strict=True):
        heights[i] = slot
    return heights


def _cross(one: tuple[float, float], two: tuple[float, float], at_one: float, at_two: float, end: float) -> bool:
    """Whether the lines from two places to heights `at_one` < `at_two` at x = `end` cross left of it."""
    start = max(one[0], two[0])

    def height(place: tuple[float, float], at: float) -> float:
        return place[1] + (at - place[1]) * (start - place[0]) / (end - place[0])

    return start < end and height(one, at_one) > height(two, at_two) + 1e-9


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending places at least `gap` apart within `low` to `high` if there is room, by least squares nearest to `wanted`, ascending too.

    Isotonic regression (Ayer et al., 1955) of the places less their share of the gaps, then clipped, which keeps it the nearest.
    """
    blocks: list[tuple[float, int]] = []
    for rank, place in enumerate(wanted):
        mean, count = place - rank * gap, 1
        while blocks and blocks[-1][0] > mean:
            other, others = blocks.pop()
            mean, count = (mean * count + other * others) / (count + others), count + others
        blocks.append((mean, count))
    most = max(high - (len(wanted) - 1) * gap, low)
    free = [min(max(mean, low), most) for mean, count in blocks for _ in range(count)]
    return [place + rank * gap for rank, place in enumerate(free)]
