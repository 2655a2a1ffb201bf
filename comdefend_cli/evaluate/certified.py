"""What `comdefend certify` found, beside what attacks left: read from its folders for the systems of an evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comdefend_cli.errors import ComdefendError, UsageError, explain

SUMMARY = "summary.json"
_NUMBERS = ("sigma", "alpha", "n", "n0", "images")
_TEXTS = ("data", "classifier sha256", "weights", "weights sha256")


def read_certificates(folder: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of a folder of `comdefend certify`, with the system of an evaluation that it is of.

    Args:
        folder: where summary.json is.
        results: of the evaluation, as results.json has them.

    Returns:
        An entry of results.json: "classifier" and "defence" as the evaluation names them, "sigma", "alpha", "n" and "n0" as of
        :class:`.Smoothed`, "images", and "certified", a list of "name", "radius", "accuracy", "low" and "high".

    Raises:
        ComdefendError: it cannot be read.
        UsageError: it is no such summary, or of a classifier, weights or data that the evaluation does not have.
    """
    path = folder / SUMMARY
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        entry = {name: _number(found[name]) for name in _NUMBERS}
        said = {name: str(found[name]) for name in _TEXTS}
        rows = [
            {"name": str(row["name"]), **{name: _number(row[name]) for name in ("radius", "accuracy", "low", "high")}}
            for row in found["certified"]
        ]
    except OSError as error:
        raise ComdefendError(f"{path}: cannot read: {explain(error)}; make it with comdefend certify") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path}: not a summary of comdefend certify ({explain(error)}); make it anew") from error
    if said["data"] != results["data"]["name"]:
        raise UsageError(f"{path}: is of {said['data']}, not {results['data']['name']}; certify on the same data")
    for system in results["systems"]:
        own = system["settings"].get("sha256", "") if system["settings"].get("defence") != "none" else ""
        if (system["classifier_sha256"], own) == (said["classifier sha256"], said["weights sha256"]):
            return {"classifier": system["classifier"], "defence": system["defence"], **entry, "certified": rows}
    raise UsageError(f"{path}: is of another classifier or of other weights ({said['weights']}) than this evaluation; name these in it")


def list_radii(certificates: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of all radii of several summaries, ascending."""
    radii = {row["name"]: row["radius"] for entry in certificates for row in entry["certified"]}
    return sorted(radii, key=lambda name: float(radii[name]))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return value
