#!/usr/bin/env python3
"""Make the tables of finished evaluations anew, from what they measured of each image.

    python benchmarks/headlines.py results.json [results.json ...]

Beside each `results.json` of `comdefend evaluate` its `tables.md` is replaced: earlier releases gave the lowest accuracy over the
attacks of a threat model as its headline, which counts an image that another attack broke as held.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comdefend_cli.errors import ComdefendError, UsageError, explain
from comdefend_cli.evaluate.reporting.text import make_markdown
from comdefend_cli.runtime.files import write_atomically


def main(argv: Sequence[str] | None = None) -> None:
    """Replace the tables."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("results", nargs="+", type=Path)
    for file in made.parse_args(argv).results:
        tables = file.with_name("tables.md")
        write_atomically(tables, make_markdown(read_results(file)).encode(), overwrite=True)
        print(tables)


def read_results(file: Path) -> dict[str, Any]:
    """The contents of a `results.json`.

    Raises:
        UsageError: it is no such file.
    """
    try:
        results = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be read as JSON: {explain(error)}") from error
    if not isinstance(results, dict) or not {"cells", "systems"} <= results.keys():
        raise UsageError(f"{file}: is not the results.json of comdefend evaluate")
    return results


if __name__ == "__main__":
    try:
        main()
    except ComdefendError as error:
        sys.exit(f"error: {error}")
