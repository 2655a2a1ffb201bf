"""Tables of what `comdefend certify` found, from its summaries."""

from __future__ import annotations

from measured import make_table, read_json


def make_certified(*names: str) -> str:
    """A row a summary: sigma, then accuracy with its 95 % interval at each radius."""
    found = [read_json(name) for name in names]
    radii = {row["name"]: row["radius"] for summary in found for row in summary["certified"]}
    ordered = sorted(radii, key=lambda name: float(radii[name]))
    rows = []
    for summary in found:
        held = {
            row["name"]: f"{row['accuracy']:.1f}<br><small>{row['low']}\N{EN DASH}{row['high']}</small>" for row in summary["certified"]
        }
        rows.append([f"{summary['sigma']:g}", *(held.get(name, "-") for name in ordered)])
    first = found[0]
    bare = f"Without smoothing {first['clean']['accuracy']:.1f} % of the same images are right."
    links = ", ".join(f"[{name}.json](data/{name}.json)" for name in names)
    note = f"Accuracy in % with its 95 % interval, n = {first['images']} images, {first['n']:,} draws each. {bare} {links}"
    return make_table(["Sigma", *("radius 0: right at all" if name == "0" else name for name in ordered)], rows) + f"\n\n{note}"
