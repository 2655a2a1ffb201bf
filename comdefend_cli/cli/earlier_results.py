"""Whether `comdefend evaluate` may write over the results.json that an earlier run left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comdefend_cli.errors import UsageError

#: What decides results beside the systems, by its name in results.json and for people.
#: What is written beside it, before it.
BESIDE = ("report.html", "tables.md", "charts")
_DECISIVE = {"format_version": "format", "protocol": "protocol", "data": "data", "precision": "precision"}


def accept_earlier(path: Path, planned: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Whether the results there are of the same settings, so that a run goes on from them; False where there are none.

    Args:
        path: of results.json.
        planned: what the run would write, measurements aside.
        overwrite: whether anything there may be replaced.

    Raises:
        UsageError: there are results of other settings, or something else, and it may not be replaced.
    """
    if overwrite:
        return False
    if not path.exists():
        for name in BESIDE:
            if (path.parent / name).exists():
                raise UsageError(f"{path.parent / name}: already exists; use --overwrite to replace it, or name another --out")
        return False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        changed = _list_changes(found, json.loads(json.dumps(planned)))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UsageError(f"{path}: is not of comdefend evaluate; use --overwrite to replace it, or name another --out") from None
    if changed:
        raise UsageError(f"{path}: is of another {' and '.join(changed)}; use --overwrite to replace it, or name another --out")
    return True


def _list_changes(found: Mapping[str, Any], planned: Mapping[str, Any]) -> list[str]:
    changed = []
    for name, said in _DECISIVE.items():
        if found[name] != planned[name]:
            differing = [key for key, value in planned[name].items() if found[name].get(key) != value] if name == "protocol" else []
            changed.append(f"{said} ({', '.join(differing)})" if differing else said)
    systems = [[_identify(entry) for entry in results["systems"]] for results in (found, planned)]
    return changed if systems[0] == systems[1] else [*changed, "choice of classifiers or defences"]


def _identify(system: Mapping[str, Any]) -> tuple[Any, ...]:
    return system["classifier"], system["classifier_sha256"], system["defence"], system["settings"]
