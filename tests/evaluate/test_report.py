"""The report, its charts and its tables: every number where it belongs, what is missing said, and nothing from outside trusted."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

pytest.importorskip("matplotlib", reason="charts need the extra [evaluate]")

from comdefend_cli.errors import UsageError
from comdefend_cli.evaluate.reporting.charts import make_charts
from comdefend_cli.evaluate.reporting.drawing import draw_inline, write_charts
from comdefend_cli.evaluate.reporting.gallery import AMPLIFY, GalleryItem
from comdefend_cli.evaluate.reporting.labels import place_labels
from comdefend_cli.evaluate.reporting.page import render
from comdefend_cli.evaluate.reporting.styles import COLORS, PAPER
from comdefend_cli.evaluate.reporting.tables import System, Tables
from comdefend_cli.evaluate.reporting.text import make_markdown, make_rich_tables
from comdefend_cli.evaluate.reporting.verdicts import say_verdict
from comdefend_cli.evaluate.stats import compare_paired, compute_percentages

VOID = {"br", "hr", "img", "link", "meta", "wbr"}
THREATS = ("grey-box", "adaptive", "black-box")
EVIL = '<script>alert(1)</script> "&$\\frac{$ \x1b[31m|[red]'


def cell(
    defence: str, threat: str, accuracy: float, attack: str = "", epsilon: float | None = None, n: int = 500, **more: Any
) -> dict[str, Any]:
    """One made measurement, of which the first images are right."""
    titles = {"fgsm": "FGSM", "bim": "BIM", "pgd": "PGD", "square": "Square"}
    fields = {
        "classifier": "small",
        "defence": defence,
        "threat": threat,
        "attack": attack or None,
        "title": titles.get(attack, "clean"),
        "gradient": None,
        "epsilon": epsilon,
        "seconds": 1.5,
        "settings": {"steps": 10},
        "mean_linf": 7.9,
        "mean_l2": 1.2,
        **more,
    }
    return recounted(fields, n, round(n * accuracy / 100))


def recounted(fields: dict[str, Any], n: int, correct: int) -> dict[str, Any]:
    """A measurement with other outcomes."""
    return {**fields, "outcomes": "1" * correct + "0" * (n - correct), "n": n, "correct": correct, **compute_percentages(correct, n)}


def made(cells: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A results dict around made cells."""
    systems = dict.fromkeys((each["classifier"], each["defence"]) for each in cells)
    return {
        "format_version": 1,
        "package_version": "9.9.9",
        "versions": {"torch": "1.2.3"},
        "hardware": "an abacus, 2 cores",
        "device": "cpu",
        "precision": "float32",
        "command": "comdefend evaluate --seed 7",
        "seed": 7,
        "float_pixels": False,
        "seconds": 90.0,
        "data": {"name": "made", "n": 500, "channels": 3, "classes": ["cat", "dog"]},
        "systems": [{"classifier": one, "defence": two, "stochastic": False, "settings": {}} for one, two in systems],
        "cells": cells,
        "headlines": [],
        "alarms": [],
        **more,
    }


DEFENCES = ("none", "jpeg:quality=75", "comdefend-12bit")


def usual(epsilons: tuple[float, ...] = (2, 8), defences: tuple[str, ...] = DEFENCES) -> dict[str, Any]:
    """Three threat models, every number another."""
    cells, turn = [], 0

    def accuracy() -> float:
        nonlocal turn
        turn += 1
        return 3.4 + turn * 7.4 % 90

    for i, defence in enumerate(defences):
        cells.append(cell(defence, "clean", 99.8 - 0.2 * i))
        for epsilon in epsilons:
            cells += [cell(defence, "grey-box", accuracy(), attack, epsilon) for attack in ("fgsm", "bim")]
            gradients = ("identity", "soft") if defence.startswith("comdefend") else ("identity",)
            cells += [cell(defence, "adaptive", accuracy(), "pgd", epsilon, gradient=each, n=50) for each in gradients]
            cells.append(cell(defence, "black-box", accuracy(), "square", epsilon, n=20))
    return made(cells)


def draw_svgs(results: dict[str, Any]) -> dict[str, str]:
    """Every panel of the page by "CHART/PANEL"."""
    return {f"{chart.name}/{panel.name}": draw_inline(chart, panel) for chart in make_charts(Tables(results)) for panel in chart.panels}


def without(results: dict[str, Any], *threats: str) -> dict[str, Any]:
    """The same, less some threat models."""
    return {**results, "cells": [each for each in results["cells"] if each["threat"] not in threats]}


class Page(HTMLParser):
    """A page taken apart: elements with attributes, tables by id as rows of (tag, text), text, and whether tags nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.tables: dict[str, list[list[tuple[str, str]]]] = {}
        self.text, self._open, self._table = "", [], ""
        self.feed(page)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.elements.append((tag, values))
        if tag == "table":
            self._table = values["id"]
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append((tag, ""))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-3:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data
        if "td" in self._open or "th" in self._open:
            tag, text = self.tables[self._table][-1][-1]
            self.tables[self._table][-1][-1] = (tag, text + data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def rows(self, table: str) -> dict[str, list[str]]:
        """The texts of a table's data cells, by the row's heading."""
        body = [row for row in self.tables[f"table-{table}"] if row[0][0] == "th" and len(row) > 1 and row[1][0] == "td"]
        return {row[0][1]: [" ".join(text.split()) for _, text in row[1:]] for row in body}


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return usual()


@pytest.fixture(scope="module")
def page(results: dict[str, Any]) -> Page:
    return Page(render(results, []))


def said(each: dict[str, Any]) -> str:
    """A measurement as tables show it."""
    return f"{each['accuracy']:.1f} ({each['low']:.1f}-{each['high']:.1f})"


def place(results: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    """The cells that have these values, lowest first."""
    found = [each for each in results["cells"] if all(each[name] == value for name, value in wanted.items())]
    return sorted(found, key=lambda each: each["accuracy"])


def test_headlines_stand_side_by_side_each_in_its_place(results: dict[str, Any], page: Page) -> None:
    """A row holds clean, then grey-box, adaptive and black-box for each epsilon, with interval and the attack that did most harm."""
    rows = page.rows("headline")
    assert list(rows) == ["none", "jpeg:quality=75", "comdefend-12bit"]
    for defence, texts in rows.items():
        assert texts[0] == said(place(results, defence=defence, threat="clean")[0])
        expected = []
        for epsilon in (2, 8):
            for threat in THREATS:
                least = place(results, defence=defence, threat=threat, epsilon=epsilon)[0]
                how = least["title"] if defence == "none" or not least["gradient"] else f"{least['title']}, {least['gradient']}"
                expected.append(f"{said(least)} {how}")
        assert texts[1:] == expected
    head = [text for _, text in page.tables["table-headline"][0] + page.tables["table-headline"][1]]
    columns = ["Grey-box n = 500", "Adaptive n = 50", "Black-box n = 20"]
    assert head == ["Defence", "Clean n = 500", "ε = 2/255", "ε = 8/255", *columns, *columns]


def halves() -> dict[str, Any]:
    """No defence, which two attacks and one attack's two gradients each leave other images of; black-box attacks of two sizes."""
    cells = [cell("none", "clean", 90.0, n=10), cell("x", "clean", 90.0, n=10)]
    for attack, gradient, threat, outcomes in (
        ("fgsm", None, "grey-box", "1111100000"),
        ("bim", None, "grey-box", "0000111111"),
        ("pgd", "identity", "adaptive", "1111110000"),
        ("pgd", "soft", "adaptive", "0011111111"),
        ("square", None, "black-box", "110000"),
        ("fgsm", None, "black-box", "0111111111"),
    ):
        fields = cell("x", threat, 0.0, attack, 8, gradient=gradient)
        cells.append({**recounted(fields, len(outcomes), outcomes.count("1")), "outcomes": outcomes})
    return made(cells)


def test_headlines_count_images_that_no_attack_breaks() -> None:
    """Page, Markdown, terminal and charts show what all attacks together leave, whatever headlines the file itself holds."""
    stale = {"classifier": "small", "defence": "x", "threat": "grey-box", "epsilon": 8, "attack": "fgsm", "gradient": None}
    results = {**halves(), "headlines": [{**stale, "n": 10, "accuracy": 50.0, "low": 23.7, "high": 76.3}]}
    wanted = {"grey-box": compute_percentages(1, 10), "adaptive": compute_percentages(4, 10), "black-box": compute_percentages(1, 6)}
    texts = Page(render(results, [])).rows("headline")["x"]
    (row,) = [line for line in make_markdown(results).split("### Grey-box")[0].splitlines() if line.startswith("| x |")]
    for threat, text in zip(THREATS, texts[1:], strict=True):
        assert text.startswith(said(wanted[threat])) and said(wanted[threat]) in row and said(wanted[threat]) in printed(results)
    for text in (make_markdown(results), Page(render(results, [])).text):
        assert "of those that all of them met: 6 of 10 (black-box)." in text
    tables = Tables(results)
    assert str(tables.find_under(System("small", "x"), "adaptive", "PGD", 8)) == said(compute_percentages(4, 10))
    judged_x = say_verdict(tables, System("small", "x")).replace("\N{NO-BREAK SPACE}", " ")
    assert "rey-box attacks at ε = 8/255 (10.0 %)" in judged_x and "adaptive attacks at ε = 8/255 (40.0 %)" in judged_x


def test_what_was_called_autoattack_has_its_own_name() -> None:
    """Results of earlier releases, whose ensembles without FAB were called AutoAttack, show what these are."""
    cells = [cell("none", "clean", 90.0), cell("x", "clean", 90.0)]
    for defence, attack, title in (("none", "autoattack", "AutoAttack"), ("x", "autoattack-rand", "AutoAttack (rand)")):
        cells.append(cell(defence, "adaptive", 10.0, attack, 8, title=title))
    for text in (make_markdown(made(cells)), Page(render(made(cells), [])).text):
        assert "AutoAttack" not in text and "APGD (rand)" in text and "APGD + FMN + Square" in text


@pytest.mark.parametrize("damage", [{"outcomes": None}, {"outcomes": "10x"}, {"epsilon": "8"}, {"threat": "white"}])
def test_damaged_measurements_are_refused(damage: dict[str, Any]) -> None:
    """What is no measurement is an error of one line, not a wrong number."""
    results = usual(epsilons=(2,), defences=("none",))
    results["cells"][1].update(damage)
    with pytest.raises(UsageError, match=f"damaged measurement: {next(iter(damage))} is not what it should be"):
        make_markdown(results)


def test_every_attack_has_its_columns(results: dict[str, Any], page: Page) -> None:
    """The table of a threat model shows each attack at each epsilon, all gradients of one attack in its cell, worst first."""
    for threat, attacks in {"grey-box": ("fgsm", "bim"), "adaptive": ("pgd",), "black-box": ("square",)}.items():
        for defence, texts in page.rows(threat).items():
            expected = []
            for attack in attacks:
                for epsilon in (2, 8):
                    found = place(results, defence=defence, threat=threat, attack=attack, epsilon=epsilon)
                    how = [each["gradient"] if each["gradient"] and defence != "none" else "" for each in found]
                    expected.append("".join(f"{said(each)} {gradient}".strip() for each, gradient in zip(found, how, strict=True)))
            assert texts == expected
    assert [text for _, text in page.tables["table-grey-box"][0]] == ["Defence", "FGSM", "BIM"]
    assert [text for _, text in page.tables["table-grey-box"][1]] == ["ε = 2/255", "ε = 8/255"] * 2


def test_every_measurement_is_listed(results: dict[str, Any], page: Page) -> None:
    """The last table has a row a cell of the results, with its settings."""
    rows = page.tables["table-cells"][1:]
    assert len(rows) == len(results["cells"])
    for row, each in zip(rows, results["cells"], strict=True):
        texts = [text for _, text in row]
        assert texts[1:3] == [each["defence"], each["threat"]]
        assert texts[5:8] == [str(each["n"]), str(each["correct"]), said(each)]
        assert texts[-1] == "steps = 10"


def test_what_was_not_measured_says_so() -> None:
    """A threat model that is missing takes no column, table or chart; the verdicts say that it was not measured."""
    results = without(usual(), "adaptive", "black-box")
    page = Page(render(results, []))
    assert all(len(texts) == 3 for texts in page.rows("headline").values())  # Clean, and grey-box at two epsilons.
    assert "table-adaptive" not in page.tables
    assert "adaptive attacks not measured" in page.text
    assert "could not be made" in page.text
    assert not [name for name in draw_svgs(results) if "adaptive" in name or "black-box" in name]
    assert not {"Adaptive", "Black-box", "not measured"} & set(re.findall(r"Adaptive|Black-box|not measured", make_markdown(results)))


def test_a_single_hole_says_so() -> None:
    """One system without black-box attacks, and one epsilon without an attack, are words too; other rows keep their numbers."""
    results = usual()
    results["cells"] = [each for each in results["cells"] if (each["defence"], each["threat"]) != ("jpeg:quality=75", "black-box")]
    results["cells"] = [each for each in results["cells"] if (each["attack"], each["epsilon"], each["defence"]) != ("bim", 8, "none")]
    page = Page(render(results, []))
    assert page.rows("headline")["jpeg:quality=75"][3] == "not measured"
    assert re.match(r"[\d.]+ \(", page.rows("headline")["comdefend-12bit"][3])
    assert page.rows("black-box")["jpeg:quality=75"] == ["not measured"] * 2
    assert page.rows("grey-box")["none"][3] == "not measured"


def test_clean_alone_makes_a_page() -> None:
    """Without any attack there is a page, a Markdown and a terminal table with clean accuracies, and no chart."""
    results = without(usual(), *THREATS)
    page = Page(render(results, []))
    assert page.rows("headline")["none"] == [said(place(results, defence="none")[0])]
    assert draw_svgs(results) == {}
    assert f"| none | {said(place(results, defence='none')[0])} |\n" in make_markdown(results)
    assert "not measured" not in printed(results) and "ε" not in printed(results)


def test_different_n_stand_with_the_numbers() -> None:
    """Where one column mixes numbers of images, each number says its own, in the page, in Markdown and in the terminal."""
    results = usual()
    for each in place(results, defence="jpeg:quality=75", threat="adaptive"):
        each.update(recounted(each, 33, 11))
    page = Page(render(results, []))
    assert page.rows("headline")["jpeg:quality=75"][2].endswith("n = 33")
    assert page.rows("headline")["comdefend-12bit"][2].endswith("n = 50")
    assert not page.rows("headline")["jpeg:quality=75"][1].endswith("n = 500")
    assert all(text.endswith("n = 33") for text in page.rows("adaptive")["jpeg:quality=75"])
    assert "n = 33" in make_markdown(results)
    assert "n = 33" in printed(results)


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    """Names with tags, quotes, mathematics and control characters appear as text in page, charts, Markdown and terminal."""
    results = usual(epsilons=(2,), defences=("none", EVIL))
    for each in [*results["cells"], *results["systems"]]:
        each["classifier"] = "<b>x</b>"
    results["data"]["name"] = "<img src=x onerror=alert(1)>"
    results["command"] = "</style></title><script>"
    results["alarms"] = [{"classifier": "<b>x</b>", "defence": EVIL, "kind": "<i>", "message": "<script>"}]
    item = gallery_item(defence=EVIL, true_label="<u>", clean_label="<u>", adversarial_label='"><script>')
    text = render(results, [item])
    page = Page(text)
    assert not {"script", "b1", "i", "u"} & {tag for tag, _ in page.elements}
    assert not [attributes for _, attributes in page.elements if any(name.startswith("on") for name in attributes)]
    visible = EVIL.replace("\x1b", "\N{REPLACEMENT CHARACTER}")
    assert f"{visible} alarm" in page.rows("headline")
    assert "\x1b" not in text
    for svg in draw_svgs(results).values():
        ElementTree.fromstring(svg)
    for path in write_charts(results, tmp_path, overwrite=False):
        assert path.suffix == ".png" or ElementTree.parse(path)
    table = next(line for line in make_markdown(results).splitlines() if "script" in line)
    assert "\\<script\\>" in table
    assert len(re.findall(r"(?<!\\)\|", table)) == 7
    assert "[red]" in printed(results)


def test_page_needs_nothing_from_outside(results: dict[str, Any]) -> None:
    """No script, no link elsewhere, no import; the policy in the page forbids what is not in it."""
    text = render(results, [gallery_item()])
    page = Page(text)
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "xlink:href", "srcset", "poster", "data", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,")), (tag, attributes)
        assert all(
            found.startswith("#") for found in re.findall(r"url\((.*?)\)", attributes.get("style", "") + attributes.get("clip-path", ""))
        )
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    policy = next(each["content"] for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "script" not in policy


def test_page_can_be_read_without_eyes(results: dict[str, Any]) -> None:
    """One h1, no level left out, captions, scopes, alternative texts, and every reference leads to one element."""
    page = Page(render({**results, "alarms": [alarm()]}, [gallery_item()]))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert len(page.all("caption")) == len(page.all("table")) >= 7
    assert all(each.get("scope") in ("row", "col", "rowgroup", "colgroup") for each in page.all("th"))
    assert all(len(each["alt"]) > 5 for each in page.all("img"))
    assert all(each.get("aria-hidden") or (each["role"] == "img" and each["aria-label"]) for each in page.all("svg"))
    scrolling = [each for each in page.all("div") if each.get("class") == "scroll"]
    assert len(scrolling) == len(page.all("table")) and all(each["tabindex"] == "0" for each in scrolling)
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for _, attributes in page.elements:
        for name in ("href", "xlink:href"):
            if attributes.get(name, "").startswith("#"):
                assert attributes[name][1:] in identifiers
        assert set(attributes.get("aria-labelledby", "").split()) <= set(identifiers)


def test_settings_are_on_the_page(page: Page) -> None:
    """Command, seed, versions, hardware, time and rounding can be read."""
    for text in ("comdefend evaluate --seed 7", "torch 1.2.3", "comdefend 9.9.9", "an abacus, 2 cores", "90 s", "rounded to 8 bits"):
        assert text in page.text


def alarm() -> dict[str, str]:
    """One that rang."""
    return {
        "classifier": "small",
        "defence": "jpeg:quality=75",
        "kind": "zero-gradient",
        "message": "the gradient is zero on 34% of 50 images",
    }


def test_alarms_are_seen_first(results: dict[str, Any], page: Page) -> None:
    """An alarm is announced above everything, explained, and marks its system in tables and verdict; without one the page says so."""
    rung = Page(render({**results, "alarms": [alarm()]}, []))
    assert rung.text.index("1 gradient-masking alarm rings") < rung.text.index("What it stops")
    assert "zero on 34% of 50 images" in rung.text
    assert "gradient masking; Athalye" in rung.text
    assert "jpeg:quality=75 alarm" in rung.rows("headline")
    assert "none" in rung.rows("headline")
    assert "No alarm rang." in page.text
    assert "alarm rings" not in page.text


def test_several_classifiers_are_told_apart() -> None:
    """Rows stand below their classifier's name, and charts name both."""
    cells = usual(epsilons=(8,), defences=("none", "median"))["cells"]
    other = [{**recounted(each, each["n"], each["correct"] - 1), "classifier": "robust"} for each in cells]
    results = made([*cells, *other])
    page = Page(render(results, []))
    groups = [row[0][1] for row in page.tables["table-headline"] if len(row) == 1]
    assert groups == ["Classifier small", "Classifier robust"]
    labels = [style.label for style in make_charts(Tables(results))[0].styles]
    assert labels == ["small alone", "small + median", "robust alone", "robust + median"]
    assert "| Classifier | Defence |" in make_markdown(results)


def judged(defended: float, bare: float, clean: float = 80.0, threat: str = "grey-box") -> str:
    """The verdict on a defence that leaves so much, and no defence so much."""
    cells = [cell("none", "clean", 88.0), cell("x", "clean", clean)]
    cells += [cell("none", threat, bare, "bim", 8), cell("x", threat, defended, "bim", 8)]
    return say_verdict(Tables(made(cells)), System("small", "x")).replace("\N{NO-BREAK SPACE}", " ")


def test_verdicts_follow_from_the_numbers() -> None:
    """Most, some and not measurably, by half the clean accuracy and by the same images without a defence; the price in points."""
    assert judged(60.0, 5.0).startswith("Stops most grey-box attacks at ε = 8/255 (60.0 %); ")
    assert judged(48.4, 5.0).startswith("Stops most ")  # The interval begins at 44.0, half of 88.
    assert judged(48.2, 5.0).startswith("Stops some ")
    assert judged(8.2, 5.0).startswith("Stops some ")  # 16 images more, and none less: the intervals overlap, the images tell.
    assert judged(5.8, 5.0).startswith("Does not measurably stop grey-box attacks at ε = 8/255 (5.8 %); ")
    assert judged(70.0, 69.0).startswith("Does not measurably stop ")
    assert "adaptive attacks not measured; black-box attacks not measured; clean accuracy 80.0 %, 8.0 points below no defence." in judged(
        60, 5
    )
    assert judged(60.0, 5.0, clean=88.0).endswith("clean accuracy 88.0 %, as without a defence.")
    assert "stops most adaptive attacks" in judged(60.0, 5.0, threat="adaptive")


def test_verdicts_tell_epsilons_apart() -> None:
    """A sentence names the epsilons that it stops and those it does not, also for no defence and for a lost reference."""
    cells = [cell("none", "clean", 88.0), cell("x", "clean", 88.0)]
    for epsilon, bare, defended in ((2, 50.0, 80.0), (8, 0.0, 20.0), (16, 0.0, 1.0)):
        cells += [cell("none", "grey-box", bare, "bim", epsilon), cell("x", "grey-box", defended, "bim", epsilon)]
    tables = Tables(made(cells))
    text = say_verdict(tables, System("small", "x")).replace("\N{NO-BREAK SPACE}", " ")
    assert text.startswith(
        "Stops most grey-box attacks at ε = 2/255 (80.0 %), some at ε = 8/255 (20.0 %), not measurably any at ε = 16/255 (1.0 %); "
    )
    bare = say_verdict(tables, System("small", "none")).replace("\N{NO-BREAK SPACE}", " ")
    assert bare == "No defence: grey-box attacks leave 50.0, 0.0 and 0.0 % at each ε; black-box attacks not measured; " + (
        "clean accuracy 88.0 %."
    )
    alone = Tables(made([each for each in cells if each["defence"] == "x"]))
    assert "with no undefended classifier to compare with" in say_verdict(alone, System("small", "x"))


def test_a_difference_on_other_images_counts_for_less() -> None:
    """As many more right, once with none lost and once with many lost as well: the paired test tells them apart."""
    assert compare_paired([True] * 30 + [False] * 10, [True] * 20 + [False] * 20) == pytest.approx(2 / 2**10)
    assert compare_paired([True] * 30 + [False] * 20, [False] * 30 + [True] * 20) == pytest.approx(0.203, abs=1e-3)
    assert compare_paired([True, False], [True, False, True]) == 1.0


def test_few_images_are_warned_of() -> None:
    """Page and Markdown name what was measured on fewer than 100 images; with more, nothing is said."""
    results = usual()
    for text in (make_markdown(results), Page(render(results, [])).text):
        assert "Fewer than 100 images (adaptive: 50, black-box: 20)" in text
    enough = without(results, "adaptive", "black-box")
    assert "Fewer than" not in make_markdown(enough) + Page(render(enough, [])).text


def gallery_item(size: int = 32, channels: int = 3, **more: Any) -> GalleryItem:
    """A made image, its attacked and its purified version."""
    random = np.random.default_rng(0)
    clean = random.integers(0, 256, (size, size, channels), np.uint8)
    adversarial = np.clip(clean.astype(int) + random.integers(-8, 9, clean.shape), 0, 255).astype(np.uint8)
    purified = np.clip(clean.astype(int) + random.integers(-30, 31, clean.shape), 0, 255).astype(np.uint8)
    fields: dict[str, Any] = {"attack": "BIM", "epsilon": 8, "defence": "jpeg", "true_label": "cat", "clean_label": "cat"}
    fields |= {"adversarial_label": "dog", "purified_label": "ship"}
    return GalleryItem(**{**fields, "clean": clean, "adversarial": adversarial, "purified": purified, **more})


@pytest.mark.parametrize("channels", [1, 3])
def test_gallery_holds_the_images_themselves(channels: int) -> None:
    """Five PNG files an image, exact to the value, differences amplified around middle grey; right and wrong in words."""
    item = gallery_item(channels=channels)
    page = Page(render(without(usual(), *THREATS), [item]))
    images = page.all("img")
    assert len(images) == 5
    pixels = [
        np.array(Image.open(io.BytesIO(base64.b64decode(each["src"].partition(",")[2])))).reshape(32, 32, channels) for each in images
    ]
    for shown, expected in zip(pixels, (item.clean, item.adversarial, item.purified), strict=False):
        assert np.array_equal(shown, expected)
    for shown, after in zip(pixels[3:], (item.adversarial, item.purified), strict=True):
        assert np.array_equal(shown, np.clip(128 + AMPLIFY * (after.astype(int) - item.clean), 0, 255))
    assert all(each["class"] == "pixelated" for each in images)
    assert f"× {AMPLIFY}" in page.text
    marks = re.findall(r"(cat|dog|ship) (✓ right|✗ wrong)", page.text)
    assert marks == [("cat", "✓ right"), ("dog", "✗ wrong"), ("ship", "✗ wrong")]


def test_large_images_are_not_pixelated() -> None:
    """A photograph is scaled as usual; an image of floats or of two sizes is refused."""
    page = Page(render(without(usual(), *THREATS), [gallery_item(size=200)]))
    assert not [each for each in page.all("img") if "class" in each]
    with pytest.raises(ValueError, match="uint8"):
        gallery_item(clean=np.zeros((32, 32, 3), np.float32))
    with pytest.raises(ValueError, match="one shape"):
        gallery_item(clean=np.zeros((31, 32, 3), np.uint8))


def test_charts_are_files_that_open(results: dict[str, Any], tmp_path: Path) -> None:
    """For each threat model curves and a scatter, as PNG with colours and as well-formed SVG; the same results give the same bytes."""
    assert [chart.name for chart in make_charts(Tables(results))] == [
        f"{kind}-{each}" for kind in ("curves", "clean-against") for each in THREATS
    ]
    results = without(results, "adaptive", "black-box")
    paths = write_charts(results, tmp_path / "one", overwrite=False)
    assert [path.name for path in paths] == [f"{kind}-grey-box.{end}" for kind in ("curves", "clean-against") for end in ("png", "svg")]
    for path in paths:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert len(image.convert("RGB").getcolors(1 << 24)) > 20
                assert min(image.size) > 400
        else:
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
            assert b"<dc:date>" not in path.read_bytes()
    again = write_charts(results, tmp_path / "two", overwrite=False)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_charts_do_not_overwrite(results: dict[str, Any], tmp_path: Path) -> None:
    """A file that exists stops everything before anything is written, unless it may be replaced."""
    last = tmp_path / "clean-against-black-box.svg"
    last.write_text("mine")
    with pytest.raises(UsageError, match="already exists"):
        write_charts(results, tmp_path, overwrite=False)
    assert list(tmp_path.iterdir()) == [last]
    small = without(results, "grey-box", "adaptive")
    write_charts(small, tmp_path, overwrite=True)
    assert last.read_text() != "mine"


def drawn(svg: str) -> list[tuple[float, float, str]]:
    """Texts of an SVG with x and y."""
    root = ElementTree.fromstring(svg)
    return [(float(e.get("x", 0)), float(e.get("y", 0)), "".join(e.itertext())) for e in root.iter() if e.tag.endswith("text")]


def test_labels_do_not_cover_each_other() -> None:
    """With 13 systems of which all but one end at the same accuracy, labels beside a chart stand a line apart, all there."""
    defences = ("none", *(f"defence-{i}" for i in range(12)))
    results = usual(epsilons=(8,), defences=defences)
    for each in results["cells"]:
        if each["epsilon"] and each["defence"] != "none":
            each.update(recounted(each, each["n"], 1))
    svgs = draw_svgs(results)
    for name in ("curves-grey-box/fgsm", "clean-against-adaptive/epsilon-8"):
        texts = drawn(svgs[name])
        column = max(x for x, _, _ in texts)
        heights = sorted(y for x, y, _ in texts if x == column)
        assert len(heights) == len(defences)
        assert min(np.diff(heights)) > 8.5
    assert {text.split()[-1] for x, _, text in texts if x == column} == set(defences)


@given(
    places=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=14, unique=True),
    gap=st.floats(0.5, 7),
)
def test_labels_beside_any_points(places: list[tuple[float, float]], gap: float) -> None:
    """Whatever the points, labels are a gap apart, within the axes, and no two of their lines cross."""
    end = 110.0
    heights = place_labels(places, end, gap=gap, high=100.0)
    ordered = sorted(heights)
    assert all(after - before >= gap - 1e-6 for before, after in pairwise(ordered))
    assert ordered[0] >= -1e-6 and ordered[-1] <= 100 + 1e-6
    for (x, y), a in zip(places, heights, strict=True):
        for (u, v), b in zip(places, heights, strict=True):
            start = max(x, u)
            here, there = y + (a - y) * (start - x) / (end - x), v + (b - v) * (start - u) / (end - u)
            assert (here - there) * (a - b) >= -1e-5 * (1 + abs(a - b))


def test_a_defence_looks_the_same_in_all_charts() -> None:
    """Number, colour, marker and dashes belong to the defence, differ between any two of 20, also where a classifier has its own charts."""
    defences = ("none", *(f"defence-{i}" for i in range(19)))
    cells = usual(epsilons=(8,), defences=defences)["cells"]
    two = made([*cells, *({**each, "classifier": "robust"} for each in cells)])
    drawings = make_charts(Tables(two))
    assert {chart.group for chart in drawings} == {"small", "robust"}
    assert all(chart.styles == drawings[0].styles for chart in drawings)
    looks = {(style.color, style.marker, str(style.dashes), style.filled) for style in drawings[0].styles}
    assert len(looks) == len(defences)
    assert len({chart.name for chart in drawings}) == len(drawings)


def luminance(color: str) -> float:
    """Relative luminance of WCAG 2.1."""
    parts = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return float(np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


def test_colours_stand_out_in_light_and_dark(results: dict[str, Any]) -> None:
    """Lines have a contrast of 3, text of 4.5 (WCAG 2.1) in both schemes, and the page's light colours are those of the charts."""
    style = re.search(r"<style>(.*?)</style>", render(without(results, *THREATS), []), re.DOTALL)
    assert style
    schemes = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part)) for part in re.findall(r":root \{(.*?)\}", style[1], re.DOTALL)]
    assert len(schemes) == 2
    for colors in schemes:
        paper = luminance(colors["paper"])
        assert len([name for name in colors if name.startswith("series")]) == len(COLORS)
        for name, color in colors.items():
            ink = luminance(color)
            contrast = (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05)
            assert not name.startswith("series") or contrast >= 3, name
            assert name not in ("ink", "muted", "link", "right", "wrong", "alarm") or contrast >= 4.5, name
    light = schemes[0]
    assert [light["paper"], *(light[f"series-{i}"] for i in range(len(COLORS)))] == [PAPER, *COLORS]


def test_markdown_has_the_same_numbers(results: dict[str, Any]) -> None:
    """Every number of the results stands in a Markdown table, rows as wide as their heads, headlines side by side."""
    text = make_markdown(results)
    for each in results["cells"]:
        assert said(each) in text
    tables = [part.splitlines() for part in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]
    assert len(tables) == 4
    for lines in tables:
        assert len({line.count("|") for line in lines}) == 1
    head, _, first, *_ = tables[0]
    assert head == "| Defence | Clean, n = 500 | ε | Grey-box, n = 500 | Adaptive, n = 50 | Black-box, n = 20 |"
    least = [place(results, defence="none", threat=threat, epsilon=2)[0] for threat in THREATS]
    clean = place(results, defence="none", threat="clean")[0]
    assert first == f"| none | {said(clean)} | 2/255 | " + " | ".join(f"{said(each)} {each['title']}" for each in least) + " |"


def printed(results: dict[str, Any], width: int = 140) -> str:
    """What the terminal shows."""
    console = Console(width=width, file=io.StringIO())
    for table in make_rich_tables(results):
        console.print(table)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_terminal_shows_threat_models_side_by_side(results: dict[str, Any]) -> None:
    """A table an epsilon, a line a defence with clean, grey-box, adaptive and black-box in this order; narrow ones lose nothing."""
    assert len(make_rich_tables(results)) == 2
    lines = [line for line in printed(results).splitlines() if "jpeg:quality=75" in line]
    for line, epsilon in zip(lines, (2, 8), strict=True):
        wanted = [said(place(results, defence="jpeg:quality=75", threat="clean")[0])]
        wanted += [said(place(results, defence="jpeg:quality=75", threat=threat, epsilon=epsilon)[0]) for threat in THREATS]
        assert re.findall(r"[\d.]+ \([\d.]+-[\d.]+\)", line) == wanted
    narrow = printed(results, width=66)
    assert all(len(line) <= 66 for line in narrow.splitlines())
    assert "adaptive" in narrow and "…" not in narrow


def test_other_formats_are_refused(results: dict[str, Any]) -> None:
    """Results of a format that this release does not know are an error that says so, everywhere."""
    for read in (render, make_markdown, make_rich_tables, draw_svgs):
        with pytest.raises(UsageError, match="format 2"):
            read({**results, "format_version": 2})


def test_without_matplotlib_the_extra_is_named(results: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts say what to install; tables need nothing of it."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"comdefend-cli\[evaluate\]"):
        draw_svgs(results)
    assert make_markdown(results)


def test_charts_leave_matplotlib_as_it_was(results: dict[str, Any], tmp_path: Path) -> None:
    """No pyplot, no changed settings: a program that uses both is not disturbed."""
    (tmp_path / "results.json").write_text(json.dumps(without(results, "adaptive", "black-box")))
    program = """
import json, sys, matplotlib
before = matplotlib.rcParams.copy()  # As a dict, it would look for a backend by importing pyplot.
from comdefend_cli.evaluate.reporting.page import render
render(json.load(open(sys.argv[1])), [])
assert matplotlib.rcParams.copy() == before
assert "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "results.json")], capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr.decode()


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
#: Loads the report in a frame of each width and writes down what it sees; with a width, the page itself has that many CSS pixels.
HARNESS = """<!DOCTYPE html><meta charset="utf-8"><body><script>
const widths = [1280, 400], seen = [];
for (const width of widths) {
  const frame = document.createElement("iframe");
  frame.style = `width: ${width}px; height: 900px; border: 0`;
  frame.onload = () => {
    const page = frame.contentDocument, root = page.documentElement;
    const high = [...page.querySelectorAll("svg, img, table")].filter(each => each.getBoundingClientRect().height > 10).length;
    seen.push([width, frame.contentWindow.innerWidth, root.scrollWidth, page.querySelector("h1").textContent, high]);
    if (seen.length === widths.length) document.body.textContent = `SEEN${JSON.stringify(seen)}NEES`;
  };
  frame.src = "report.html";
  document.body.append(frame);
}
</script>"""


def browse(folder: Path, page: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    """Open a page of a folder in headless Chromium, as a file; the console goes to standard error."""
    assert CHROMIUM
    profile = folder / f"profile-{len(list(folder.iterdir()))}"
    profile.mkdir()
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    quiet += [
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        "--allow-file-access-from-files",
    ]
    command = [CHROMIUM, *quiet, f"--user-data-dir={profile}", *options, (folder / page).as_uri()]
    return subprocess.run(command, capture_output=True, check=True, timeout=120)


def console_errors(result: subprocess.CompletedProcess[bytes]) -> list[str]:
    return [line for line in result.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found: apt-get install chromium")
def test_page_in_a_browser(tmp_path: Path) -> None:
    """In Chromium the page shows its tables, charts and images, at 1280 and 400 pixels no wider than the window, without an error."""
    defences = ("none", *(f"a-defence-with-a-long-name:key={i},another=0.25" for i in range(11)))
    results = {**usual(epsilons=(2, 8, 16), defences=defences), "alarms": [alarm()]}
    (tmp_path / "report.html").write_text(render(results, [gallery_item(), gallery_item(size=224)]), encoding="utf-8")
    (tmp_path / "harness.html").write_text(HARNESS)
    (tmp_path / "broken.html").write_text("<script>console.error('seen')</script>")
    assert console_errors(browse(tmp_path, "broken.html", "--dump-dom")), "this test would not see an error"

    watched = browse(tmp_path, "harness.html", "--dump-dom", "--virtual-time-budget=10000", "--window-size=1400,1000")
    found = re.search(r"SEEN(.*)NEES", watched.stdout.decode())
    assert found, watched.stderr.decode()[-2000:]
    seen = sorted(json.loads(found[1]))
    assert [each[0] for each in seen] == [400, 1280]
    for width, inner, scroll, title, shown in seen:
        assert inner == width and scroll <= width
        assert title == "How much does it protect?"
        # Tables but the folded one, 12 swatches a threat model, panels, and ten images.
        assert shown >= 6 + 3 * 12 + 4 + 9 + 10
    assert not console_errors(watched)

    for scheme in ("1", "0"):
        shot = tmp_path / f"shot-{scheme}.png"
        options = (f"--screenshot={shot}", "--window-size=1280,3000", f"--blink-settings=preferredColorScheme={scheme}")
        assert not console_errors(browse(tmp_path, "report.html", *options))
        with Image.open(shot) as image:
            assert image.size == (1280, 3000)
            pixels = np.array(image.convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
        assert (pixels[5, 5] > 200).all() == (scheme == "1")
        assert pixels[-1000:].std() > 5
