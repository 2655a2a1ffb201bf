"""Rows of certificates on disk: never more than what is certified, gone on with or refused, and what they come to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from comdefend_cli.data.labelled import Labelled
from comdefend_cli.errors import ComdefendError, UsageError
from comdefend_cli.evaluate.certification import COLUMNS, Row, RowFile, certify_images, draw_curve, list_radii, sum_up
from comdefend_cli.evaluate.stats import compute_percentages
from comdefend_cli.integrations import Smoothed
from comdefend_cli.integrations.grid_noise import bound_share, find_radius, make_stream

pytest.importorskip("scipy")
SETTINGS = {"sigma": 0.12, "noise seed": 3}


class Bright(nn.Module):
    """Class 0 for dark images, 1 for bright ones."""

    def forward(self, x: Tensor) -> Tensor:
        score = x.mean((1, 2, 3)) - 0.5
        return torch.stack([-score, score], 1)


def flat(*levels: int) -> Labelled:
    """Flat images of these levels, labelled by whether they are bright."""
    pixels = torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    return Labelled("flat", pixels, (torch.tensor(levels) > 127).long())


ROWS = [Row(0, 0, 0, 0.3, True, 1.5), Row(1, 1, -1, 0.0, False, 61.25), Row(2, 1, 1, 0.25, True, 3661.0)]


def write_rows(path: Path, settings: Mapping[str, Any] = SETTINGS, data: Labelled | None = None, rows: list[Row] = ROWS) -> str:
    file = RowFile(path, settings, data or flat(10, 200, 220))
    for row in rows:
        file.add(row)
    assert list(file.rows.values()) == rows
    return path.read_text()


@given(st.integers(0, 10**6), st.integers(0, 999), st.integers(-1, 999), st.floats(0, 16), st.floats(0, 80_000))
def test_a_row_is_read_as_written(idx: int, label: int, predict: int, radius: float, seconds: float) -> None:
    """All fields come back; a radius to a millionth and never larger than it was, time to a microsecond."""
    row = Row(idx, label, predict, radius, predict == label, seconds)
    line = row.to_line()
    again = Row.from_line(line)
    assert (again.idx, again.label, again.predict, again.correct) == (idx, label, predict, predict == label)
    assert radius - 1.01e-6 < again.radius <= radius and again.seconds == pytest.approx(seconds, abs=1e-6)
    assert len(line.split("\t")) == len(COLUMNS) and line.split("\t")[3] == f"{again.radius:.6f}"


@pytest.mark.parametrize("line", ["", "1\t2", "0\t1\t1\t0.5\t0\t0:00:01", "0\t1\t2\t0.5\t1\t0:00:01", "0\t1\t1\t-0.5\t1\t0:00:01"])
def test_a_row_that_is_none_is_refused(line: str) -> None:
    """Too few fields, a row that calls itself right or wrong against its classes, and a radius below 0."""
    with pytest.raises(ValueError):
        Row.from_line(line)


def test_a_file_is_gone_on_with(tmp_path: Path) -> None:
    """Settings and columns above, a line a row; opened again the rows are there, a line that was cut off is not, and the file is mended."""
    path, data = tmp_path / "rows.tsv", flat(10, 200, 220)
    text = write_rows(path)
    head, lines = text.splitlines()[:5], text.splitlines()[5:]
    assert head[:3] == ["# sigma: 0.12", "# noise seed: 3", "# images: 3"] and head[4] == "idx\tlabel\tpredict\tradius\tcorrect\ttime"
    assert head[3] == f'# images sha256: "{data.sha256}"' and lines == [row.to_line() for row in ROWS]
    assert RowFile(path, SETTINGS, data).rows == dict(enumerate(ROWS)) and path.read_text() == text
    path.write_text(text[:-3])
    assert list(RowFile(path, SETTINGS, data).rows) == [0, 1] and path.read_text().splitlines() == [*head, *lines[:2]]
    # More images: the rows of the first ones stay, and the head tells of all.
    more = flat(10, 200, 220, 30)
    assert list(RowFile(path, SETTINGS, more).rows) == [0, 1] and "# images: 4\n" in path.read_text()
    with pytest.raises(UsageError, match="of more images, 4; use --overwrite"):
        RowFile(path, SETTINGS, data)
    # Settings alone, of any kind: nothing is lost by beginning anew.
    RowFile(tmp_path / "new.tsv", {"sigma": 1}, data)
    assert RowFile(tmp_path / "new.tsv", SETTINGS, data).rows == {}


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    """Other settings, which are named; other images; other text; a damaged row. With `overwrite` it is begun anew."""
    path, data = tmp_path / "rows.tsv", flat(10, 200, 220)
    text = write_rows(path)
    for settings, images, words in (
        ({**SETTINGS, "sigma": 0.5}, data, r"other settings \(sigma\)"),
        ({**SETTINGS, "sigma": 0.5, "new": 1}, data, r"other settings \(sigma, new\)"),
        ({"sigma": 0.12}, data, r"other settings \(noise seed\)"),
        (SETTINGS, flat(10, 200, 221), r"other settings \(images sha256\)"),
    ):
        with pytest.raises(UsageError, match=words):
            RowFile(path, settings, images)
        assert path.read_text() == text
    for changed, words in (("mine", r"other settings \(sigma"), (text.replace("time\n", "times\n"), r"\(columns\)")):
        path.write_text(changed)
        with pytest.raises(UsageError, match=words):
            RowFile(path, SETTINGS, data)
    for damage in ("x\t", "0\t1\n"):
        path.write_text(text + damage + "\n")
        with pytest.raises(UsageError, match=r"is damaged \(.+\); use --overwrite"):
            RowFile(path, SETTINGS, data)
    assert RowFile(path, SETTINGS, data, overwrite=True).rows == {}
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ComdefendError, match="cannot be read"):
        RowFile(path, SETTINGS, data)
    file = RowFile(tmp_path / "gone.tsv", SETTINGS, data)
    (tmp_path / "gone.tsv").unlink()
    (tmp_path / "gone.tsv").mkdir()
    with pytest.raises(ComdefendError, match=r"gone\.tsv"):
        file.add(ROWS[0])
    assert file.rows == {}


def test_images_are_certified_each_by_its_own_noise(tmp_path: Path) -> None:
    """What the file has is left as it is; the others get the certificate of their place's noise, whichever are certified before."""
    data = flat(10, 200, 125, 220)
    smoothed = Smoothed(None, Bright(), sigma=0.12, n=200, n0=20, seed=5)
    wanted = {idx: smoothed.certify_one(data.pixels[idx], make_stream(5, idx)) for idx in range(4)}
    file = RowFile(tmp_path / "rows.tsv", SETTINGS, data)
    file.add(Row(1, 1, -1, 0.0, False, 0.0))
    rows = list(certify_images(smoothed, data, file))
    assert [row.idx for row in rows] == [0, 2, 3] and sorted(file.rows) == [0, 1, 2, 3]
    for row in rows:
        assert (row.predict, row.radius) == (wanted[row.idx].label, wanted[row.idx].radius)
        assert row.label == data.labels[row.idx] and row.correct == (row.predict == row.label) and 0 <= row.seconds < 60
    assert {row.idx: row.correct for row in rows} == {0: True, 2: wanted[2].label == 0, 3: True} and rows[0].radius > 0.2


def test_radii_are_those_that_the_draws_can_certify() -> None:
    """0, the fixed ones and the L-infinity balls around a cube of so many values, in order, below the radius of unanimous draws."""
    balls = {f"{192**0.5 * level / 255:.3f} (L-infinity {level}/255)": 192**0.5 * level / 255 for level in (1, 2)}
    everything = {"0": 0.0, "0.25": 0.25, "0.5": 0.5, "0.75": 0.75, "1": 1.0, **balls}
    found = list_radii((3, 8, 8), 1.0, 1000, 0.001)
    assert found == everything and list(found.values()) == sorted(found.values())
    most = find_radius(0.25, bound_share(100, 100, 0.001))
    found = list_radii((3, 8, 8), 0.25, 100, 0.001)
    assert found == {name: radius for name, radius in everything.items() if radius < most} and 1 < len(found) < len(everything)
    # A radius that unanimous draws certify exactly is nobody's: rounding and the noise's own error come off.
    assert "0.25" not in list_radii((1, 1, 1), 0.25 / find_radius(1.0, bound_share(100, 100, 0.001)), 100, 0.001)


def test_rows_are_counted_at_each_radius() -> None:
    """Only those that are right, with at least the radius; shares and Wilson's interval of all images."""
    table = sum_up(ROWS, {"0": 0.0, "0.25": 0.25, "0.2500123": 0.2500123, "1": 1.0})
    assert [(row["name"], row["radius"], row["held"], row["n"]) for row in table] == [
        ("0", 0.0, 2, 3),
        ("0.25", 0.25, 2, 3),
        ("0.2500123", 0.25, 1, 3),
        ("1", 1.0, 0, 3),
    ]
    assert all(row.items() >= compute_percentages(row["held"], 3).items() for row in table)
    wrong = Row(3, 1, 0, 5.0, False, 0.0)
    assert sum_up([*ROWS, wrong], {"1": 1.0})[0]["held"] == 0, "a certificate of a wrong class certifies nothing that is wanted"


def test_the_curve_shows_the_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accuracy falls from that at radius 0 to 0 beyond the largest certified radius; its band and the clean accuracy stand there."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    axes = []
    make = figure.add_subplot
    monkeypatch.setattr(figure, "add_subplot", lambda self: axes.append(make(self)) or axes[-1])
    draw_curve(ROWS, 0.12, 88.9, tmp_path / "curve.png")
    ((drawn,), picture) = axes, Image.open(tmp_path / "curve.png")
    places, shares = drawn.lines[0].get_data()
    assert (places[0], places[-1], len(places)) == (0, pytest.approx(0.3 * 1.05), 201)
    assert list(shares) == [sum_up(ROWS, {"": place})[0]["accuracy"] for place in places]
    band = drawn.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (compute_percentages(0, 3)["low"], compute_percentages(2, 3)["high"])
    assert set(np.asarray(drawn.lines[1].get_ydata())) == {88.9} and drawn.get_ylim() == (0, 100) and drawn.get_xlim() == (0, places[-1])
    words = [drawn.get_title("left"), drawn.get_xlabel(), drawn.get_ylabel(), *(text.get_text() for text in drawn.get_legend().get_texts())]
    assert "n = 3" in words[0] and "L2 radius" in words[1] and "%" in words[2] and "sigma 0.12" in words[3] and "clean" in words[4]
    assert picture.size == (690, 480) and "Software" not in picture.info
    # Again, in place of the first; of no image that is right there is a curve too.
    draw_curve([ROWS[1]], 0.12, 0.0, tmp_path / "curve.png")
    assert axes[1].get_xlim() == (0, 0.01) and json.dumps(list(axes[1].lines[0].get_ydata())) == json.dumps([0.0] * 201)
