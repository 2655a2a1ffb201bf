"""How data sets are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from comdefend_cli.data.datasets import load_dataset
from comdefend_cli.errors import DatasetError


def refused(name: str, folder: Path, words: str) -> str:
    """The message that a data set is refused by: one line, with a remedy."""
    with pytest.raises(DatasetError, match=words) as caught:
        load_dataset(name, folder, download=False)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message
