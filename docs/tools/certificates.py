"""Tables of what `comdefend certify` found, from its summaries."""

from __future__ import annotations

from measured import NO_BREAK, make_table, read_json, say_share


def make_certified(*names: str) -> str:
    """A row a summary: what was certified, then accuracy with its 95 % interval at each radius."""
    found = [read_json(name) for name in names]
    radii = {row["name"]: row["radius"] for summary in found for row in summary["certified"]}
    ordered = sorted(radii, key=lambda name: float(radii[name]))
    rows = []
    for summary in found:
        held = {row["name"]: say_share(row) for row in summary["certified"]}
        how = f"sigma {summary['sigma']:g}, n = {summary['images']}, {summary['n']:,} draws"
        what = f"`{summary['classifier']}` behind<br>`{summary['weights']}`<br><small>{how}</small>"
        rows.append([what, say_share(summary["clean"]), *(held.get(name, "-") for name in ordered)])
    head = ["Smoothed", "Clean, as it is", *("Right at all" if name == "0" else _head(name) for name in ordered)]
    links = ", ".join(f"[{name}.json](data/{name}.json)" for name in names)
    return (
        f"{make_table(head, rows)}\n\nAccuracy in % with its 95 % interval, at L2 radii for pixels in [0, 1]; *as it is*: the classifier "
        f"alone, without noise or purifier; *right at all*: "
        f"of the smoothed classifier, at radius 0; small: the L-infinity ball within. {links}"
    )


def _head(name: str) -> str:
    """A radius, with the L-infinity ball below."""
    return name.replace(" (L-infinity ", "<br><small>").replace(")", "</small>")


def say_certified(name: str, radius: str) -> str:
    """A number for a sentence: "52.8 %".

    Raises:
        ValueError: it was not certified at that radius.
    """
    for row in read_json(name)["certified"]:
        if row["name"].split()[0] == radius:
            return f"{row['accuracy']:g}{NO_BREAK}%"
    raise ValueError(f"{name}: nothing was certified at radius {radius}")
