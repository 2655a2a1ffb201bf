"""`report.html`: one self-contained page with what was measured, how, and how to read it.

No scripts, and nothing loaded from anywhere: a content security policy in the page forbids both. All text is escaped by
:mod:`comdefend_cli.evaluate.reporting.markup`, names of defences, classifiers and classes included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from comdefend_cli.evaluate.reporting.charts import Chart, charts, inline_svg
from comdefend_cli.evaluate.reporting.gallery import AMPLIFY, GalleryItem, figures
from comdefend_cli.evaluate.reporting.html_tables import NAMED, all_cells, headline_table, named, scrolling, settings_said, threat_table
from comdefend_cli.evaluate.reporting.markup import Html, join, tag
from comdefend_cli.evaluate.reporting.styles import swatch
from comdefend_cli.evaluate.reporting.tables import THREATS, UNDEFENDED, System, Tables, plain, sizes
from comdefend_cli.evaluate.reporting.text import markdown_tables, rich_tables
from comdefend_cli.evaluate.reporting.verdicts import MEANING, verdict

__all__ = ["GalleryItem", "markdown_tables", "render", "rich_tables"]

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
SECTIONS = {
    "verdict": "What it stops, and what it does not",
    "alarms": "Gradient-masking alarms",
    "headline": "Grey-box, adaptive, black-box",
    "charts": "Charts",
    "tables": "All attacks",
    "gallery": "Gallery",
    "settings": "How this was measured",
}
READING = {
    "grey-box": "The attacker has the classifier, but not the purifier. This is the paper’s threat model, and the mildest of the three.",
    "adaptive": "The attacker has both, and attacks through the purifier (BPDA; EOT where it is random; Athalye et al., 2018). "
    "Only this tells what a defence is worth once it is known.",
    "black-box": "The attacker can only ask the whole system for answers. Random defences are left out: a lucky draw would count as a hit.",
}
MASKING = (
    "A defence can make attacks fail without making the classifier robust: by a gradient that is zero, wrong or random, so that attacks "
    "that follow gradients get lost (gradient masking; Athalye, Carlini and Wagner, ICML 2018). Each alarm is a sign of that, not a proof; "
    "where one rings, the adaptive accuracy may be lower than measured. No alarm is no proof of the opposite."
)
ALARMS = {
    "black-box-beats-white-box": ("Black-box beats white-box", "An attacker who knows more should never do worse."),
    "more-steps-do-not-hurt": (
        "More steps do not lower accuracy",
        "An attack that goes on from where a shorter one stopped should do better.",
    ),
    "larger-epsilon-does-not-hurt": ("A larger ε does not lower accuracy", "Whatever a small change does, a larger one may do as well."),
    "zero-gradient": ("Zero gradient", "Where the gradient is zero, an attack that follows it stands still."),
}


def render(results: Mapping[str, Any], gallery: Sequence[GalleryItem] = ()) -> str:
    """The page.

    Args:
        results: the contents of `results.json`.
        gallery: images to show; may be empty.

    Returns:
        A whole HTML document.

    Raises:
        UsageError: matplotlib is not installed, or the results are of a format that this release does not read.
    """
    tables = Tables(results)
    sections = {
        "verdict": _verdicts(tables),
        "alarms": _alarms(tables),
        "headline": join(_reading(), headline_table(tables)),
        "charts": _charts(tables),
        "tables": join([threat_table(tables, threat) if threat in tables.threats() else _unmeasured(threat) for threat in THREATS]),
        "gallery": _gallery(gallery),
        "settings": _settings(tables),
    }
    style = (files("comdefend_cli") / "evaluate" / "reporting" / "report.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"How much does it protect? {_subject(tables)}"),
        tag("style", Html(style)),
    )
    main = tag("main", [_section(name, content) for name, content in sections.items()], id="main")
    body = tag("body", tag("a", "Skip to the results", href="#main", class_="skip"), _header(tables), _contents(), main, _footer(tables))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en-GB')}\n"


def _section(name: str, content: Html) -> Html:
    return tag("section", tag("h2", SECTIONS[name], id=f"h-{name}"), content, id=name, aria_labelledby=f"h-{name}")


def _contents() -> Html:
    links = [tag("li", tag("a", title, href=f"#{name}")) for name, title in SECTIONS.items()]
    return tag("nav", tag("ul", links), aria_label="Contents")


def _subject(tables: Tables) -> str:
    return f"{', '.join(tables.classifiers)} on {plain(tables.results['data']['name'])}"


def _header(tables: Tables) -> Html:
    data, count = tables.results["data"], len(tables.results.get("alarms", []))
    defences = {system.defence for system in tables.systems}
    beside = " beside none" if UNDEFENDED in defences else ""
    before = f"the classifier{'s' if len(tables.classifiers) > 1 else ''} {', '.join(tables.classifiers)}"
    said = (
        f"{_counted(len(defences - {UNDEFENDED}), 'defence')}{beside} in front of {before}, on {_counted(int(data['n']), 'image')} of "
        f"{plain(data['name'])}. Threat models measured: {', '.join(tables.threats()) or 'none'}."
    )
    banner = None
    if count:
        verb = "alarm rings" if count == 1 else "alarms ring"
        banner = tag("p", tag("a", f"{count} gradient-masking {verb}", href="#alarms"), ": read them before the numbers.", class_="banner")
    return tag("header", tag("p", "comdefend evaluate", class_="over"), tag("h1", "How much does it protect?"), tag("p", said), banner)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _verdicts(tables: Tables) -> Html:
    def item(system: System) -> Html:
        return tag("li", tag("b", named(tables.label(system))), " ", verdict(tables, system))

    return join(tag("ul", [item(system) for system in tables.systems], class_="verdicts"), tag("p", MEANING, class_="note"))


def _alarms(tables: Tables) -> Html:
    alarms = tables.results.get("alarms", [])
    if not alarms:
        lacking = [threat for threat in ("adaptive", "black-box") if threat not in tables.threats()]
        said = "No alarm rang."
        if lacking:
            said += f" The checks that need {' and '.join(lacking)} attacks could not be made: none were measured."
        return join(tag("p", said), tag("p", MASKING, class_="note"))
    items = []
    for alarm in alarms:
        title, why = ALARMS.get(alarm["kind"], (plain(alarm["kind"]), ""))
        system = tables.label(System(plain(alarm["classifier"]), plain(alarm["defence"])))
        message = plain(alarm["message"]).rstrip(".")
        items.append(tag("li", tag("b", named(system)), f" {title}: {message}. ", tag("span", why, class_="note")))
    return tag("div", tag("ul", items), tag("p", MASKING), class_="alarms")


def _reading() -> Html:
    return tag("dl", [tag("div", tag("dt", NAMED[threat]), tag("dd", text)) for threat, text in READING.items()], class_="reading")


def _unmeasured(threat: str) -> Html:
    return tag("p", tag("b", f"{NAMED[threat]}."), " Not measured.")


def _charts(tables: Tables) -> Html:
    made = charts(tables)
    if not made:
        return tag("p", "Not measured.")
    order = sorted(made, key=lambda chart: chart.kind == "curves")
    said = "A defence keeps its number, colour and marker in all charts. Names cut short beside a point are whole in the keys further down."
    return join(tag("p", said), [_chart(chart) for chart in order])


def _chart(chart: Chart) -> Html:
    drawn = [tag("div", Html(inline_svg(chart, panel)), class_="panel") for panel in chart.panels]
    words = tag("figcaption", tag("h3", chart.title), tag("p", chart.note))
    if chart.kind == "scatter":  # Its points are named.
        return tag("figure", words, tag("div", drawn, class_="panels"), class_="scatter")
    key = [tag("li", swatch(style), tag("b", str(style.number)), tag("span", named(style.label))) for style in chart.styles]
    return tag("figure", words, tag("ul", key, class_="key"), tag("div", drawn, class_="panels"), class_="curves")


def _gallery(items: Sequence[GalleryItem]) -> Html:
    if not items:
        return tag("p", "No images were kept.")
    said = (
        "Below each image stands what the classifier calls it; purified is the adversarial image as the defence passes it on. "
        f"Differences are {AMPLIFY} times amplified around middle grey: grey is no change."
    )
    return join(tag("p", said), figures(items))


def _settings(tables: Tables) -> Html:
    results, data = tables.results, tables.results["data"]
    facts = {
        "Command": results.get("command"),
        "Data": f"{data['name']}, {_counted(int(data['n']), 'image')}, classes: {len(data['classes'])}",
        "SHA-256 of the data": data.get("sha256"),
        "Adversarial pixels": "as the attack made them (float)" if results.get("float_pixels") else "rounded to 8 bits, as saved files are",
        "Seed": results.get("seed"),
        "Computed on": ", ".join(str(results[key]) for key in ("hardware", "device", "precision") if results.get(key)),
        "Time": _duration(float(results["seconds"])) if results.get("seconds") is not None else None,
        "Versions": ", ".join(f"{name} {version}" for name, version in _versions(results)),
        "Protocol": settings_said(results.get("protocol") or {}),
    }
    said = [tag("div", tag("dt", name), tag("dd", plain(value))) for name, value in facts.items() if value not in (None, "")]
    notes = (
        "Intervals are Wilson’s, 95 %, for the number of images n. In a headline an image counts only if it is classified right as it is "
        "and every attack failed on it, so it is never above any single attack on these images. Attacks of different threat models may "
        "have met different numbers of images: compare by intervals. results.json holds every number and setting."
    )
    details = tag("details", tag("summary", f"Every measurement ({len(tables.cells)})"), all_cells(tables))
    return join(tag("dl", said, class_="facts"), tag("p", notes), _attacks(tables), _systems(tables), details)


def _versions(results: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    return {"comdefend": results["package_version"], **results.get("versions", {})}.items()


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    exactly = f"{seconds:.0f} s"
    return exactly if minutes < 2 else f"{minutes:.0f} min ({exactly})" if minutes < 120 else f"{minutes / 60:.1f} h ({exactly})"


def _attacks(tables: Tables) -> Html:
    """Attacks with their settings, once each, with the images and the time they took altogether."""
    runs: dict[tuple[str, str, str], list[Any]] = {}
    for cell in tables.cells:
        if cell.title:
            runs.setdefault((cell.threat, cell.attack, settings_said(cell.record.get("settings") or {})), []).append(cell)
    head = tag("thead", tag("tr", [tag("th", title, scope="col") for title in ("Threat model", "Attack", "Settings", "n", "Time")]))
    rows = []
    for (threat, attack, settings), cells in runs.items():
        seconds = sum(float(cell.record.get("seconds") or 0) for cell in cells)
        n = ", ".join(map(str, sizes(cells)))
        rows.append(
            tag("tr", tag("td", threat), tag("th", attack, scope="row"), [tag("td", text) for text in (settings, n, _duration(seconds))])
        )
    return scrolling("attacks", tag("b", "Attacks, with what they were told to do."), head, tag("tbody", rows), class_="plain")


def _systems(tables: Tables) -> Html:
    head = tag("thead", tag("tr", [tag("th", title, scope="col") for title in ("Classifier", "Defence", "Random", "Settings")]))
    rows = []
    for entry in tables.results["systems"]:
        names = [tag("td", plain(entry["classifier"])), tag("th", named(plain(entry["defence"])), scope="row")]
        others = ["yes" if entry.get("stochastic") else "no", settings_said(entry.get("settings") or {})]
        rows.append(tag("tr", names, [tag("td", text) for text in others]))
    return scrolling("systems", tag("b", "Systems, with what decides their answers."), head, tag("tbody", rows), class_="plain")


def _footer(tables: Tables) -> Html:
    return tag("footer", tag("p", f"Written by comdefend {plain(tables.results['package_version'])}. This page needs nothing but itself."))
